/* 3x3 convolutions of bfloat16 maps with stride 1, and their gradients, with 36 products where the plain way needs 144.
 *
 * An output of 4x4 pixels and the 6x6 pixels that it comes from are a tile, as in winograd_fp32.c, whose polynomials these
 * are. What is multiplied are sums of so many pixels that factors of bfloat16, with 8 digits, are too coarse for a
 * convolution: the error of its output is four times that of torch's. So they are whole numbers here, with up to 15
 * digits, of 16 bits: the processor multiplies and adds as many of them at once as of bfloat16. All frequencies of a tile,
 * and all of the filters to an output, have one scale, as large as their sum of products bears in 32 bits. Such outputs
 * are closer to exact ones than those of winograd.c, unless a few pixels of a tile are many times as large as the others.
 *
 * The gradient of the filters is summed over tiles, whose scales differ, and no other gradient comes from it: there the
 * factors are bfloat16.
 *
 * Maps are in channels-last order, [images, height, width, channels]; filters and their gradient are float, [outputs,
 * channels, 3, 3]. Channels and outputs are multiples of 32.
 */

#if !defined(__AVX512BF16__) || !defined(__AVX512VNNI__)
#error this processor does not multiply bfloat16 and whole numbers by AVX-512
#endif

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define LANES 16
#define COLUMNS 4

typedef uint16_t value;
/* Two factors, whose products with two others are added at once. */
typedef uint32_t pair;
typedef pair factor;

/* What makes the filters' frequencies all about as large. */
#define OF_B (1.0f / 3)

#include "winograd_4x4.h"

/* Tiles whose frequencies are at hand at once. */
#define TILES 24
/* Pairs of tiles that a gradient of filters is summed over before it is written. */
#define PAIRS 96
/* Pairs of channels whose products are summed as whole numbers. */
#define WHOLE_PAIRS 64
/* Bytes that such sums may take, of all threads. */
#define SUMS (512 << 20)

INLINE __m512 load(const value *from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void store(value *to, __m512 numbers) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(numbers)); }

/* --- transforms ---------------------------------------------------------------------------------- */

/* Behind those of winograd_4x4.h. */
INLINE void frequencies_of_line(const __m512 *x, __m512 *y, const int from, const int to) {
    const __m512 x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const __m512 even_a = x1 + x2, odd_a = x1 - x2, even_b = x3 + x4, odd_b = x3 - x4;
    y[0] = x0 + even_a + BACK_B * even_b;
    y[to] = A * odd_a + (BACK_B * B) * odd_b;
    y[2 * to] = A2 * even_a + (BACK_B * B2) * even_b;
    y[3 * to] = x5 + A3 * odd_a + (BACK_B * B3) * odd_b;
}

DEFINE_TRANSFORM(pixels_of_frequencies, frequencies_of_line, IN, OUT)

/* --- whole numbers ------------------------------------------------------------------------------- */

/* What pixels' frequencies are at most, filters' frequencies, and sums of products. */
#define LARGEST_PIXEL 32767
#define LARGEST_SUM 2147483647.0f
#define LARGEST_FILTER 32767.0f
/* Frequencies of pixels are at most this often the largest pixel: a line's coefficients added up, squared. */
#define GAIN 26.3f
/* Added to a number that is small enough, its last bits are the whole number next to it. */
#define ROUND_BY_ADDING 12582912.0f

/* Of each lane a pair of the whole numbers next to a scale's multiples. */
INLINE __m512i whole_pairs(__m512 first, __m512 second, __m512 scale) {
    const __m512i low = _mm512_castps_si512(first * scale + ROUND_BY_ADDING);
    const __m512i high = _mm512_castps_si512(second * scale + ROUND_BY_ADDING);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}

/* --- matrix products ----------------------------------------------------------------------------- */

enum factors { WHOLE, BFLOAT16 };

INLINE __m512i multiply_and_add(__m512i sums, __m512i left, __m512i right, const enum factors factors) {
    if (factors == WHOLE) return _mm512_dpwssd_epi32(sums, left, right);
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sums), (__m512bh)left, (__m512bh)right));
}

/* A part of it that the registers hold: some rows, and some vectors of columns. */
INLINE void multiply_block(
    const struct product *p, int64_t row, const int rows, const int columns, const enum factors factors
) {
    __m512i sums[ROWS][COLUMNS];
    const int64_t of_row = p->of_row, of_step = p->of_step, of_line = p->of_line;
    const pair *left = p->rows + row * of_row, *right = p->columns;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sums[r][c] = _mm512_setzero_si512();
    for (int64_t k = 0; k < p->steps; k++, left += of_step, right += of_line) {
        __m512i line[COLUMNS];
        for (int c = 0; c < columns; c++) line[c] = _mm512_loadu_si512(right + c * LANES);
        for (int r = 0; r < rows; r++) {
            const __m512i factor = _mm512_set1_epi32(left[r * of_row]);
            for (int c = 0; c < columns; c++) sums[r][c] = multiply_and_add(sums[r][c], factor, line[c], factors);
        }
    }
    float *at = p->sums + row * p->of_sum;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float *to = at + r * p->of_sum + c * LANES;
            __m512 found = factors == WHOLE ? _mm512_cvtepi32_ps(sums[r][c]) : _mm512_castsi512_ps(sums[r][c]);
            if (p->add) found += _mm512_loadu_ps(to);
            _mm512_storeu_ps(to, found);
        }
}

INLINE void multiply_whole_block(const struct product *p, int64_t row, const int rows, const int columns) {
    multiply_block(p, row, rows, columns, WHOLE);
}

INLINE void multiply_bfloat16_block(const struct product *p, int64_t row, const int rows, const int columns) {
    multiply_block(p, row, rows, columns, BFLOAT16);
}

DEFINE_MULTIPLY(multiply_whole, multiply_whole_block)
DEFINE_MULTIPLY(multiply_bfloat16, multiply_bfloat16_block)

/* --- tiles --------------------------------------------------------------------------------------- */

/* Asks for the pixels of the tile behind this one, which the processor does not see coming among so many lines. */
INLINE void ask_ahead(const struct maps *maps, int64_t image, int64_t row, int64_t column, const int rows) {
    const int64_t of_line = maps->width * maps->channels;
    const value *corner = maps->values + (image * maps->height + row) * of_line + column * maps->channels;
    for (int y = 0; y < rows; y++)
        for (int64_t i = 0; i < OUT * maps->channels; i += CACHE_LINE / (int64_t)sizeof(value))
            _mm_prefetch((const char *)(corner + y * of_line + i), _MM_HINT_T0);
}

/* --- filters ------------------------------------------------------------------------------------- */

/* Filters' frequencies, strip by strip of the outputs: [strip][frequency][pair of channels][output of the strip]; and for
 * each output what they are to be multiplied by. */
static void transform_filters(const struct filters *filters, pair *transformed, float *back, float *scratch, int threads) {
    const int64_t outputs = filters->outputs, channels = filters->channels, pairs = channels / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; output += LANES) {
        const int64_t strip = strip_with(outputs, output), begin = strip_begin(outputs, strip);
        const int64_t width = strip_begin(outputs, strip + 1) - begin;
        pair *to = transformed + begin * FREQUENCIES * pairs + output - begin;
        vector *taps = (vector *)(scratch + output * channels * 9);
        __m512 largest = {0}, largest_sum = {0}, check = {0};
        for (int64_t first = 0; first < channels; first += 2 * WHOLE_PAIRS) {
            __m512 sums[FREQUENCIES] = {0};
            for (int64_t c = first; c < smaller(first + 2 * WHOLE_PAIRS, channels); c++) {
                __m512 x[FREQUENCIES];
                taps_at(filters, output, c, taps + 9 * c);
                frequencies_of_taps(taps + 9 * c, x);
                for (int f = 0; f < FREQUENCIES; f++) {
                    sums[f] += _mm512_abs_ps(x[f]);
                    largest = _mm512_max_ps(largest, _mm512_abs_ps(x[f]));
                }
            }
            for (int f = 0; f < FREQUENCIES; f++) {
                largest_sum = _mm512_max_ps(largest_sum, sums[f]);
                check += 0.0f * sums[f];
            }
        }
        /* Rounding adds up to a half to each factor. */
        const __m512 bearable = _mm512_set1_ps(LARGEST_SUM / LARGEST_PIXEL - WHOLE_PAIRS);
        const __m512 up = _mm512_min_ps(LARGEST_FILTER / largest, bearable / largest_sum);
        /* Filters that are as good as zero have no inverse; one that is not a finite number makes none of the others one. */
        const __mmask16 zero = _mm512_cmp_ps_mask(largest_sum, _mm512_set1_ps(1e-30f), _CMP_LT_OQ);
        _mm512_storeu_ps(back + output, _mm512_mask_mov_ps(1.0f / up + check, zero, _mm512_setzero_ps()));
        const __m512 scale = _mm512_mask_mov_ps(up, zero, _mm512_setzero_ps());
        for (int64_t c = 0; c < pairs; c++) {
            __m512 x[2][FREQUENCIES];
            for (int i = 0; i < 2; i++) frequencies_of_taps(taps + 9 * (2 * c + i), x[i]);
            for (int f = 0; f < FREQUENCIES; f++)
                _mm512_storeu_si512(to + (f * pairs + c) * width, whole_pairs(x[0][f], x[1][f], scale));
        }
    }
}

/* --- the convolution ----------------------------------------------------------------------------- */

struct convolution {
    struct maps maps;
    struct tiling tiling;
    int64_t padding;
    const pair *filters;
    /* What an output's sums are to be multiplied by, for its filters. */
    const float *back;
    const float *bias;
    struct maps outputs;
    const value *nothing;
    /* Pairs of a frequency of the tiles at hand. */
    int64_t of_frequency;
};

/* Numbers between the sums of two tiles, such that they do not all want the same place in a core's first cache. */
#define OF_TILE (FREQUENCIES * COLUMNS * LANES + LANES)

/* What a thread works with. */
struct workplace {
    /* Frequencies of tiles, whole, [frequency][tile][pair of channels], and what a tile's are to be multiplied by. */
    pair *tiles;
    float *back;
    /* [tile][frequency][output of a strip] */
    float *sums;
};

/* The largest pixel of a tile; infinite where one is not a finite number. */
INLINE float largest_pixel(const value *const pixels[FREQUENCIES], int64_t channels) {
    __m512i largest = _mm512_setzero_si512();
    const __m512i without_sign = _mm512_set1_epi16(0x7fff);
    for (int64_t c = 0; c < channels; c += 2 * LANES)
        for (int i = 0; i < FREQUENCIES; i++)
            largest = _mm512_max_epu16(largest, _mm512_and_si512(_mm512_loadu_si512(pixels[i] + c), without_sign));
    const __m512i even = _mm512_and_si512(largest, _mm512_set1_epi32(0xffff)), odd = _mm512_srli_epi32(largest, 16);
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(even, odd)) << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found <= 3e38f ? found : INFINITY;
}

INLINE void transform_tile(const struct convolution *own, const struct tile *tile, const struct workplace *at, int64_t i) {
    const int64_t channels = own->maps.channels;
    const value *pixels[FREQUENCIES];
    find_pixels(&own->maps, tile->image, tile->row - own->padding, tile->column - own->padding, IN, own->nothing, pixels);
    ask_ahead(&own->maps, tile->image, tile->row - own->padding, tile->column - own->padding + IN, IN);
    const float largest = largest_pixel(pixels, channels);
    /* Smaller ones are as good as zero, and have no inverse. */
    const __m512 scale = _mm512_set1_ps(largest < 1e-30f ? 0.0f : LARGEST_PIXEL / (GAIN * largest));
    at->back[i] = largest < 1e-30f ? 0.0f : largest < INFINITY ? largest * (GAIN / LARGEST_PIXEL) : NAN;
    for (int64_t c = 0; c < channels; c += 2 * LANES) {
        __m512 x[2][FREQUENCIES], y[2][FREQUENCIES];
        for (int f = 0; f < FREQUENCIES; f++) {
            const __m512i both = _mm512_loadu_si512(pixels[f] + c);
            x[0][f] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            x[1][f] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
        }
        for (int half = 0; half < 2; half++) frequencies_of_pixels(x[half], y[half]);
        pair *to = at->tiles + (i * channels + c) / 2;
        for (int f = 0; f < FREQUENCIES; f++)
            _mm512_storeu_si512(to + f * own->of_frequency, whole_pairs(y[0][f], y[1][f], scale));
    }
}

/* Transforms what some outputs of a tile are from, and writes them. */
INLINE void write_tile(
    const struct convolution *own, const struct tile *tile, const struct workplace *at, int64_t i, int64_t begin,
    int64_t width
) {
    const struct maps *outputs = &own->outputs;
    const int64_t rows = smaller(OUT, outputs->height - tile->row), columns = smaller(OUT, outputs->width - tile->column);
    value *corner = (value *)outputs->values +
                    ((tile->image * outputs->height + tile->row) * outputs->width + tile->column) * outputs->channels;
    for (int64_t c = 0; c < width; c += LANES) {
        __m512 x[FREQUENCIES], y[OUT * OUT];
        for (int f = 0; f < FREQUENCIES; f++) {
            const float *sums = at->sums + i * OF_TILE + f * width + c;
            x[f] = _mm512_loadu_ps(sums);
            /* The next tile's, which are in the second cache. */
            _mm_prefetch((const char *)(sums + OF_TILE), _MM_HINT_T0);
        }
        pixels_of_frequencies(x, y);
        const __m512 back = at->back[i] * _mm512_loadu_ps(own->back + begin + c);
        const __m512 bias = own->bias ? _mm512_loadu_ps(own->bias + begin + c) : _mm512_setzero_ps();
        for (int row = 0; row < OUT; row++)
            for (int column = 0; column < OUT; column++)
                if (row < rows && column < columns)
                    store(
                        corner + (row * outputs->width + column) * outputs->channels + begin + c,
                        y[OUT * row + column] * back + bias
                    );
    }
}

static void convolve_tiles(const struct convolution *own, int64_t first, int64_t count, const struct workplace *at) {
    const int64_t outputs = own->outputs.channels, pairs = own->maps.channels / 2;
    for (int64_t i = 0; i < count; i++) {
        const struct tile tile = tile_at(&own->tiling, first + i);
        transform_tile(own, &tile, at, i);
    }
    for (int64_t strip = 0; strip < strips_of(outputs); strip++) {
        const int64_t begin = strip_begin(outputs, strip), width = strip_begin(outputs, strip + 1) - begin;
        for (int f = 0; f < FREQUENCIES; f++)
            for (int64_t k = 0; k < pairs; k += WHOLE_PAIRS) {
                const struct product product = {
                    at->tiles + f * own->of_frequency + k, pairs, 1,
                    own->filters + (begin * FREQUENCIES + f * width) * pairs + k * width, width,
                    smaller(WHOLE_PAIRS, pairs - k), at->sums + f * width, OF_TILE, k > 0,
                };
                multiply_whole(&product, count, width);
            }
        for (int64_t i = 0; i < count; i++) {
            const struct tile tile = tile_at(&own->tiling, first + i);
            write_tile(own, &tile, at, i, begin, width);
        }
    }
}

/* A convolution, or the gradient of its maps. Every number of threads gives the same bits.
 *
 * maps     [images, height, width, channels]
 * padding  rows and columns of zeros around the maps
 * weights  [outputs, channels, 3, 3]; where `turned`, [channels, outputs, 3, 3], whose rows and columns run backwards
 * bias     [outputs], or NULL
 * results  [images, height + 2 * padding - 2, width + 2 * padding - 2, outputs], written. Where a tile's pixels, or the
 *          filters to an output, have one that is not a finite number, none of theirs is one
 *
 * Returns 0, or 1 without memory.
 */
int convolve(
    const value *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int64_t padding,
    const float *weights,
    int64_t outputs,
    int64_t turned,
    const float *bias,
    value *results,
    int threads
) {
    const struct filters filters = {weights, outputs, channels, turned};
    const int64_t out_height = height + 2 * padding - 2, out_width = width + 2 * padding - 2;
    pair *transformed = memory(FREQUENCIES * channels * outputs * sizeof(int16_t));
    float *back = memory(outputs * sizeof(float)), *scratch = memory(outputs * channels * 9 * sizeof(float));
    value *nothing = calloc(channels, sizeof(value));
    const struct convolution own = {
        {maps, height, width, channels}, tiling_of(images, out_height, out_width), padding,
        transformed, back, bias, {results, out_height, out_width, outputs}, nothing,
        TILES * channels / 2 + CACHE_LINE / (int64_t)sizeof(pair),
    };
    const int64_t tiles = tiles_of(&own.tiling);
    int result = transformed && back && scratch && nothing ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        transform_filters(&filters, transformed, back, scratch, threads);
#pragma omp parallel num_threads(threads) reduction(| : result)
        {
            const struct workplace at = {
                memory(FREQUENCIES * own.of_frequency * sizeof(pair)),
                memory(TILES * sizeof(float)),
                memory(TILES * OF_TILE * sizeof(float)),
            };
            if (!at.tiles || !at.back || !at.sums) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += TILES)
                if (result == DONE) convolve_tiles(&own, first, smaller(TILES, tiles - first), &at);
            free(at.tiles);
            free(at.back);
            free(at.sums);
        }
    }
    free(transformed);
    free(back);
    free(scratch);
    free(nothing);
    return result;
}

/* --- the gradient of the filters ----------------------------------------------------------------- */

#include "winograd_bf16.h"

/* Of each lane a pair of bfloat16. */
INLINE void store_pairs(pair *to, __m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0
    );
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first)));
}

static __attribute__((noinline)) void transform_pair(const struct gradient *own, int64_t index, int64_t place, const struct pairs *to) {
    const value *pixels[2][FREQUENCIES], *corners[2][OUT * OUT];
    for (int i = 0; i < 2; i++) {
        const struct tile tile = tile_at(&own->tiling, index + i);
        /* Behind the last tile of an odd number comes one of an image that is not there: nothing is inside. */
        const int64_t row = tile.row + (tile.image < own->tiling.images ? 0 : own->maps.height + own->padding);
        find_pixels(
            &own->maps, tile.image, row - own->padding, tile.column - own->padding, IN, own->nothing, pixels[i]
        );
        find_pixels(&own->gradients, tile.image, row, tile.column, OUT, own->nothing, corners[i]);
        ask_ahead(&own->maps, tile.image, row - own->padding, tile.column - own->padding + OUT + IN, IN);
        ask_ahead(&own->gradients, tile.image, row, tile.column + 2 * OUT, OUT);
    }
    __m512 x[FREQUENCIES], y[2][FREQUENCIES];
    for (int64_t c = 0; c < own->maps.channels; c += LANES) {
        for (int i = 0; i < 2; i++) {
            for (int f = 0; f < FREQUENCIES; f++) x[f] = load(pixels[i][f] + c);
            frequencies_of_pixels(x, y[i]);
        }
        pair *at = to->of_maps + place * own->maps.channels + c;
        for (int f = 0; f < FREQUENCIES; f++) store_pairs(at + f * own->of_frequency, y[0][f], y[1][f]);
    }
    for (int64_t c = 0; c < own->gradients.channels; c += LANES) {
        for (int i = 0; i < 2; i++) {
            for (int j = 0; j < OUT * OUT; j++) x[j] = load(corners[i][j] + c);
            frequencies_of_gradients(x, y[i]);
        }
        pair *at = to->of_gradients + place * own->gradients.channels + c;
        for (int f = 0; f < FREQUENCIES; f++) store_pairs(at + f * own->of_gradients_frequency, y[0][f], y[1][f]);
    }
}

static void add_pairs(
    const struct gradient *own, int64_t first, int64_t count, const struct pairs *pairs, float *sums, int add
) {
    const int64_t outputs = own->gradients.channels, channels = own->maps.channels;
    for (int64_t i = 0; i < count; i++) transform_pair(own, 2 * (first + i), i, pairs);
    for (int f = 0; f < FREQUENCIES; f++)
        for (int64_t strip = 0; strip < strips_of(channels); strip++) {
            const int64_t begin = strip_begin(channels, strip);
            const struct product product = {
                pairs->of_gradients + f * own->of_gradients_frequency, 1, outputs,
                pairs->of_maps + f * own->of_frequency + begin, channels,
                count, sums + f * outputs * channels + begin, channels, add,
            };
            multiply_bfloat16(&product, outputs, strip_begin(channels, strip + 1) - begin);
        }
}

/* The gradient of a convolution's filters. It is summed up in as many parts as there are threads.
 *
 * maps       [images, height, width, channels]
 * padding    rows and columns of zeros around the maps
 * gradients  of the outputs, [images, height + 2 * padding - 2, width + 2 * padding - 2, outputs]
 * results    [outputs, channels, 3, 3], written
 *
 * Returns 0, or 1 without memory.
 */
int gradient_of_filters(
    const value *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int64_t padding,
    const value *gradients,
    int64_t outputs,
    float *results,
    int threads
) {
    const struct maps of_maps = {maps, height, width, channels};
    const struct maps of_gradients = {gradients, height + 2 * padding - 2, width + 2 * padding - 2, outputs};
    return sum_up(&of_maps, &of_gradients, images, padding, results, threads);
}
