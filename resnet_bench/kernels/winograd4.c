/* 3x3 convolutions of bfloat16 maps with stride 1, and their gradients, with 36 products where the plain way needs 144.
 *
 * An output of 4x4 pixels and the 6x6 pixels that it comes from are a tile, or of 3 in a row where that saves products, as
 * in winograd_fp32.c, whose polynomials these are. What is multiplied are sums of so many pixels that factors of bfloat16,
 * with 8 digits, are too coarse for a convolution: the error of its output is four times that of torch's. So they are
 * whole numbers here, with up to 15 digits, of 16 bits: the processor multiplies and adds as many of them at once as of
 * bfloat16. All frequencies of a tile, and all of the filters to an output, have one scale, as large as their sum of
 * products bears in 32 bits. Such outputs are closer to exact ones than those of winograd.c, unless a few pixels of a tile
 * are many times as large as the others.
 *
 * The gradient of the filters is summed over tiles, whose scales differ, and no other gradient comes from it: there the
 * factors are bfloat16.
 *
 * A tile's outputs are also up to four windows of a 2x2 max pool behind the convolution, which can be part of it as in
 * winograd.c. Maps are in channels-last order, [images, height, width, channels]; filters and their gradient are float,
 * [outputs, channels, 3, 3]. Channels and outputs are multiples of 8.
 */

#if !defined(__AVX512BF16__) || !defined(__AVX512VNNI__)
#error this processor does not multiply bfloat16 and whole numbers by AVX-512
#endif

#include <math.h>

#include "vectors.h"

typedef uint16_t value;
/* Two factors, whose products with two others are added at once. */
typedef uint32_t pair;
typedef pair factor;

/* What makes the filters' frequencies all about as large. */
#define OF_B (1.0f / 3)

/* Tiles whose frequencies are at hand at once, at most. */
#define TILES 24
/* Pairs of tiles that a gradient of filters is summed over before it is written. */
#define PAIRS 128
#define MOST_TILES (2 * PAIRS)

#include "winograd_4x4.h"

/* Pairs of channels whose products are summed as whole numbers. */
#define WHOLE_PAIRS 64
/* Bytes that such sums may take, of all threads. */
#define SUMS (512 << 20)

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

#include "winograd_bf16.h"

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
    /* Of the intrinsics GCC copies each sum twice. */
    if (factors == WHOLE)
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
    else
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
    return sums;
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
    const pair *behind = filters_behind(p, row / ROWS, LANES);
    for (int64_t k = 0; k < p->steps; k++, left += of_step, right += of_line) {
        if (factors == WHOLE && rows == ROWS) ask(behind + k * LANES, 0);
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

/* What is added to sums that are far away. */
INLINE void add_bfloat16_block(const struct product *p, int64_t row, const int rows, const int columns) {
    ask_for_sums(p, row, rows, columns);
    multiply_block(p, row, rows, columns, BFLOAT16);
}

DEFINE_MULTIPLY(multiply_whole, multiply_whole_block)
DEFINE_MULTIPLY(multiply_bfloat16, multiply_bfloat16_block)
DEFINE_MULTIPLY(add_bfloat16, add_bfloat16_block)

/* --- filters ------------------------------------------------------------------------------------- */

/* Numbers between two frequencies of filters: without, all would want the same place in a core's caches. */
#define APART (CACHE_LINE / (int64_t)sizeof(pair))

/* Where a strip's begin, and how many pairs a frequency of it takes. */
INLINE int64_t strip_of_filters(int64_t outputs, int64_t pairs, int64_t strip) {
    return FREQUENCIES * (strip_begin(outputs, strip) * pairs + strip * APART);
}
INLINE int64_t of_filters_frequency(int64_t pairs, int64_t width) { return pairs * width + APART; }

/* Filters to a vector of outputs; their taps are kept in `taps` meanwhile. */
INLINE void transform_filters_to(
    const struct filters *filters, int64_t output, vector *taps, pair *transformed, float *back
) {
    const int64_t outputs = filters->outputs, channels = filters->channels, pairs = channels / 2;
    const int64_t strip = strip_with(outputs, output), begin = strip_begin(outputs, strip);
    const int64_t width = strip_begin(outputs, strip + 1) - begin;
    const int64_t of_frequency = of_filters_frequency(pairs, width);
    pair *to = transformed + strip_of_filters(outputs, pairs, strip) + output - begin;
    __m512 largest = {0}, largest_sum = {0}, check = {0};
    for (int64_t first = 0; first < channels; first += 2 * WHOLE_PAIRS) {
        __m512 sums[FREQUENCIES] = {0};
        for (int64_t c = first; c < smaller(first + 2 * WHOLE_PAIRS, channels); c += 2) {
            __m512 x[2][FREQUENCIES];
            for (int i = 0; i < 2; i++) {
                taps_at(filters, output, c + i, taps + 9 * (c + i));
                frequencies_of_taps(taps + 9 * (c + i), x[i]);
            }
#pragma GCC unroll 36
            for (int f = 0; f < FREQUENCIES; f++) {
                const __m512 one = _mm512_abs_ps(x[0][f]), other = _mm512_abs_ps(x[1][f]);
                sums[f] += one + other;
                largest = _mm512_max_ps(largest, _mm512_max_ps(one, other));
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
#pragma GCC unroll 36
        for (int f = 0; f < FREQUENCIES; f++)
            _mm512_storeu_si512(to + f * of_frequency + c * width, whole_pairs(x[0][f], x[1][f], scale));
    }
}

/* Filters' frequencies, strip by strip of the outputs: [strip][frequency][pair of channels][output of the strip]; and for
 * each output what they are to be multiplied by. */
static int transform_filters(const struct filters *filters, pair *transformed, float *back, int threads) {
    const int64_t outputs = filters->outputs;
    int result = DONE;
#pragma omp parallel num_threads(threads) reduction(| : result)
    {
        vector *taps = memory(LANES * filters->channels * 9 * sizeof(float));
        if (!taps) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
        for (int64_t output = 0; output < outputs; output += LANES)
            if (taps) transform_filters_to(filters, output, taps, transformed, back);
        free(taps);
    }
    return result;
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
    /* Pairs of a frequency of the tiles at hand, and numbers between the sums of two tiles: such that they do not all want
     * the same place in a core's first cache. */
    int64_t of_frequency, of_tile;
};

/* What a thread works with. */
struct workplace {
    /* Frequencies of tiles, whole, [frequency][tile][pair of channels], and what a tile's are to be multiplied by. */
    pair *tiles;
    float *back;
    /* [tile][frequency][output of a strip] */
    float *sums;
};

/* Those of two vectors that have channels from one on. */
INLINE __mmask32 lanes_from(int64_t c, int64_t channels) { return ((uint64_t)1 << smaller(channels - c, 2 * LANES)) - 1; }

/* The largest pixel of a tile, of which `needed` in a row count, or of the pool's windows that it meets; infinite where one
 * is not a finite number, or so large that a frequency may not be one. */
INLINE float largest_pixel(const struct pixels *pixels, const int needed, int64_t channels) {
    /* Several, such that none waits for another. */
    __m512i in_column[IN] = {0};
    const __m512i without_sign = _mm512_set1_epi16(0x7fff);
    for (int64_t c = 0; c < channels; c += 2 * LANES) {
        const __mmask32 lanes = lanes_from(c, channels);
#pragma GCC unroll 36
        for (int i = 0; i < FREQUENCIES; i++) {
            if (i / IN >= needed || i % IN >= needed) continue;
            const __m512i both = _mm512_maskz_loadu_epi16(lanes, pixels->values[i] + c);
            in_column[i % IN] = _mm512_max_epu16(in_column[i % IN], _mm512_and_si512(both, without_sign));
        }
    }
    __m512i largest = in_column[0];
    for (int i = 1; i < IN; i++) largest = _mm512_max_epu16(largest, in_column[i]);
    const __m512i even = _mm512_and_si512(largest, _mm512_set1_epi32(0xffff)), odd = _mm512_srli_epi32(largest, 16);
    const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(even, odd)) << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found <= 1e37f ? found : INFINITY;
}

/* A pixel's channels, as many as two vectors have. */
INLINE __m512i load_both(const struct pixels *pixels, int at, int64_t c, __mmask32 lanes, const int pooled) {
    if (!pooled) return _mm512_maskz_loadu_epi16(lanes, pixels->values[at] + c);
    const __m256i places = _mm256_maskz_loadu_epi8(lanes, pixels->places[at] + c);
    const __mmask32 largest = _mm256_mask_cmpeq_epi8_mask(lanes, places, _mm256_set1_epi8(pixels->own[at]));
    return _mm512_maskz_loadu_epi16(largest, pixels->values[at] + c);
}

INLINE void transform_tile(
    const struct convolution *own, const struct tile *tile, const struct workplace *at, int64_t i, const int pooled,
    const int needed
) {
    const int64_t channels = own->maps.channels, row = tile->row - own->padding, column = tile->column - own->padding;
    struct pixels pixels;
    /* Those that none of its outputs comes from are left out: they would coarsen its scale. */
    const int64_t end_row = smaller(own->maps.height, row + tile->rows + 2);
    const int64_t end_column = smaller(own->maps.width, column + tile->columns + 2);
    find_pixels(&own->maps, tile->image, row, column, end_row, end_column, IN, pooled, own->nothing, &pixels);
    const float largest = largest_pixel(&pixels, needed, channels);
    /* Smaller ones are as good as zero, and have no inverse. */
    const __m512 scale = _mm512_set1_ps(largest < 1e-30f ? 0.0f : LARGEST_PIXEL / (GAIN * largest));
    at->back[i] = largest < 1e-30f ? 0.0f : largest < INFINITY ? largest * (GAIN / LARGEST_PIXEL) : NAN;
    const int64_t of_frequency = own->of_frequency;
    for (int64_t c = 0; c < channels; c += 2 * LANES) {
        const __mmask32 lanes = lanes_from(c, channels);
        /* What is written only to be read again is what takes the time: a line is all that is at hand. */
        vector half[2][FREQUENCIES] = {0};
#pragma GCC unroll 6
        for (int x = 0; x < needed; x++) {
            vector column[2][IN] = {0};
            for (int y = 0; y < needed; y++) {
                const __m512i both = load_both(&pixels, IN * y + x, c, lanes, pooled);
                column[0][y] = (vector)_mm512_slli_epi32(both, 16);
                column[1][y] = (vector)_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000));
            }
            for (int i = 0; i < 2; i++) pixels_of_line(column[i], half[i] + x, 1, IN);
        }
        /* What is behind a tile's last channels is written before what belongs there. */
        pair *to = at->tiles + (i * channels + c) / 2;
#pragma GCC unroll 6
        for (int y = 0; y < needed; y++) {
            vector row[2][IN];
            for (int i = 0; i < 2; i++) pixels_of_line(half[i] + IN * y, row[i], 1, 1);
            for (int x = 0; x < needed; x++)
                _mm512_storeu_si512(
                    to + (IN * y + x) * of_frequency, whole_pairs((__m512)row[0][x], (__m512)row[1][x], scale)
                );
        }
    }
}

/* Writes some outputs of a tile. */
INLINE void write_tile(const struct maps *outputs, const struct tile *tile, const __m512 y[OUT * OUT], int64_t c, __mmask16 lanes) {
    const int64_t rows = smaller(tile->rows, outputs->height - tile->row);
    const int64_t columns = smaller(tile->columns, outputs->width - tile->column);
    const int64_t of_pixel = outputs->channels, of_line = outputs->width * of_pixel;
    value *corner = (value *)outputs->values +
                    (tile->image * outputs->height + tile->row) * of_line + tile->column * of_pixel + c;
    for (int row = 0; row < OUT; row++)
        for (int column = 0; column < OUT; column++)
            if (row < rows && column < columns)
                store(corner + row * of_line + column * of_pixel, y[OUT * row + column], lanes);
}

/* Writes the largest of each window of the pool. */
INLINE void write_windows(const struct maps *outputs, const struct tile *tile, const __m512 y[OUT * OUT], int64_t c, __mmask16 lanes) {
    for (int row = 0; row < OUT; row += 2)
        for (int column = 0; column < OUT; column += 2) {
            const struct tile window = {tile->image, tile->row + row, tile->column + column};
            if (window.row >= outputs->height || window.column >= outputs->width) continue;
            const __m512 *corner = y + OUT * row + column;
            const __m512 four[4] = {corner[0], corner[1], corner[OUT], corner[OUT + 1]};
            write_largest(outputs, &window, four, c, lanes);
        }
}

/* Transforms what some outputs of a tile are from, and writes them. */
INLINE void finish_tile(
    const struct convolution *own, const struct tile *tile, const struct workplace *at, int64_t i, int64_t begin,
    int64_t width, const int needed
) {
    for (int64_t c = 0; c < width; c += LANES) {
        const float *sums = at->sums + i * own->of_tile + c;
        __m512 half[OUT * IN] = {0}, y[OUT * OUT] = {0};
#pragma GCC unroll 6
        for (int x = 0; x < needed; x++) {
            __m512 column[IN] = {0};
            for (int line = 0; line < needed; line++) column[line] = _mm512_loadu_ps(sums + (IN * line + x) * width);
            frequencies_of_line(column, half + x, 1, IN);
        }
        for (int row = 0; row < needed - 2; row++) frequencies_of_line(half + IN * row, y + OUT * row, 1, 1);
        const __m512 back = at->back[i] * _mm512_loadu_ps(own->back + begin + c);
        const __mmask16 lanes = lanes_from(begin + c, own->outputs.channels);
        const __m512 bias = own->bias ? _mm512_maskz_loadu_ps(lanes, own->bias + begin + c) : _mm512_setzero_ps();
        for (int j = 0; j < OUT * OUT; j++) y[j] = y[j] * back + bias;
        if (own->outputs.places)
            write_windows(&own->outputs, tile, y, begin + c, lanes);
        else
            write_tile(&own->outputs, tile, y, begin + c, lanes);
    }
}

static void convolve_tiles(const struct convolution *own, int64_t first, int64_t count, const struct workplace *at) {
    const int64_t outputs = own->outputs.channels, pairs = own->maps.channels / 2;
    struct order order;
    put_in_order(&own->tiling, first, count, &order);
    const struct tile *tiles = order.tiles;
    for (int64_t i = 0; i < count; i++)
        if (own->maps.places)
            BY_SIZE(is_small(tiles + i), transform_tile, own, tiles + i, at, i, 1);
        else
            BY_SIZE(is_small(tiles + i), transform_tile, own, tiles + i, at, i, 0);
    struct tile next = tiles[count];
    for (int64_t strip = 0; strip < strips_of(outputs); strip++) {
        const int64_t begin = strip_begin(outputs, strip), width = strip_begin(outputs, strip + 1) - begin;
        const pair *filters = own->filters + strip_of_filters(outputs, pairs, strip);
        for (int f = 0; f < FREQUENCIES; f++) {
            const struct span span = tiles_with(&order, f);
            for (int64_t k = 0; k < pairs; k += WHOLE_PAIRS) {
                const struct product product = {
                    at->tiles + f * own->of_frequency + span.begin * pairs + k, pairs, 1,
                    filters + f * of_filters_frequency(pairs, width) + k * width, width,
                    smaller(WHOLE_PAIRS, pairs - k),
                    at->sums + span.begin * own->of_tile + f * width, own->of_tile, k > 0,
                };
                multiply_whole(&product, span.end - span.begin, width);
            }
        }
        for (int64_t i = 0; i < count; i++) {
            ask_for_outputs(&own->outputs, tiles + i + AHEAD, begin, width);
            if (strip == strips_of(outputs) - 1) {
                ask_for_pixels(&own->maps, &next, own->padding, IN);
                advance(&own->tiling, &next);
            }
            BY_SIZE(is_small(tiles + i), finish_tile, own, tiles + i, at, i, begin, width);
        }
    }
}

/* A convolution, or the gradient of its maps. Every number of threads gives the same bits.
 *
 * Arguments are those of winograd.c. Where a tile's pixels, or the filters to an output, have one that is not a finite
 * number, none of theirs is one.
 *
 * Returns 0, or 1 without memory.
 */
int convolve(
    const value *maps,
    const uint8_t *places,
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
    uint8_t *out_places,
    int64_t out_height,
    int64_t out_width,
    int threads
) {
    const struct filters filters = {weights, outputs, channels, turned};
    pair *transformed = memory(strip_of_filters(outputs, channels / 2, strips_of(outputs)) * sizeof(pair));
    float *back = memory(filled(outputs) * sizeof(float));
    value *nothing = calloc(channels, sizeof(value));
    const struct tiling tiling = tiling_with_short(images, out_height, out_width, out_places != 0);
    const struct convolution own = {
        {maps, height, width, channels, places}, tiling, padding,
        transformed, back, bias, {results, out_height, out_width, outputs, out_places}, nothing,
        TILES * channels / 2 + CACHE_LINE / (int64_t)sizeof(pair),
        FREQUENCIES * smaller(filled(outputs), COLUMNS * LANES) + LANES,
    };
    const int64_t tiles = tiles_of(&tiling), room = tiles_at_hand(tiles, TILES, threads);
    int result = transformed && back && nothing ? DONE : OUT_OF_MEMORY;
    if (result == DONE) result = transform_filters(&filters, transformed, back, threads);
    if (result == DONE) {
#pragma omp parallel num_threads(threads) reduction(| : result)
        {
            const struct workplace at = {
                memory(FREQUENCIES * own.of_frequency * sizeof(pair)),
                memory(TILES * sizeof(float)),
                memory(TILES * own.of_tile * sizeof(float)),
            };
            if (!at.tiles || !at.back || !at.sums) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += room)
                if (result == DONE) convolve_tiles(&own, first, smaller(room, tiles - first), &at);
            free(at.tiles);
            free(at.back);
            free(at.sums);
        }
    }
    free(transformed);
    free(back);
    free(nothing);
    return result;
}

/* --- the gradient of the filters ----------------------------------------------------------------- */

/* Of each lane a pair of bfloat16. */
INLINE void store_pairs(pair *to, __m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0
    );
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first)));
}

INLINE void transform_pair(
    const struct gradient *own, const struct tile *tile, int64_t place, const struct pairs *to, const int pooled,
    const int needed
) {
    const struct maps *maps = &own->maps, *gradients = &own->gradients;
    struct pixels pixels[2], corners[2];
    for (int i = 0; i < 2; i++) {
        const int64_t image = tile[i].image, row = tile[i].row, column = tile[i].column;
        /* Behind the last tile of an odd number comes one of an image that is not there: nothing is inside. */
        const int64_t missing = image < own->tiling.images ? 0 : maps->height + own->padding;
        const int64_t end_row = row + tile[i].rows, end_column = column + tile[i].columns, padding = own->padding;
        find_pixels(
            maps, image, row + missing - padding, column - padding, smaller(maps->height, end_row - padding + 2),
            smaller(maps->width, end_column - padding + 2), IN, 0, own->nothing, &pixels[i]
        );
        find_pixels(
            gradients, image, row + missing, column, smaller(gradients->height, end_row),
            smaller(gradients->width, end_column), OUT, pooled, own->nothing, &corners[i]
        );
    }
    for (int i = 2; i < 4; i++) {
        ask_for_pixels(maps, tile + i, own->padding, IN);
        ask_for_pixels(gradients, tile + i, 0, OUT);
    }
    const int64_t of_frequency = own->of_frequency, of_gradients_frequency = own->of_gradients_frequency;
    vector half[2][FREQUENCIES] = {0};
    for (int64_t c = 0; c < maps->channels; c += LANES) {
        const __mmask16 lanes = lanes_from(c, maps->channels);
#pragma GCC unroll 6
        for (int x = 0; x < needed; x++)
            for (int i = 0; i < 2; i++) {
                vector column[IN] = {0};
                for (int y = 0; y < needed; y++) column[y] = (vector)load_pixel(&pixels[i], IN * y + x, c, lanes, 0);
                pixels_of_line(column, half[i] + x, 1, IN);
            }
        pair *at = to->of_maps + place * own->room + c;
#pragma GCC unroll 6
        for (int y = 0; y < needed; y++) {
            vector row[2][IN];
            for (int i = 0; i < 2; i++) pixels_of_line(half[i] + IN * y, row[i], 1, 1);
            for (int x = 0; x < needed; x++)
                store_pairs(at + (IN * y + x) * of_frequency, (__m512)row[0][x], (__m512)row[1][x]);
        }
    }
    for (int64_t c = 0; c < gradients->channels; c += LANES) {
        const __mmask16 lanes = lanes_from(c, gradients->channels);
#pragma GCC unroll 6
        for (int x = 0; x < OUT; x++)
            for (int i = 0; i < 2; i++) {
                vector column[OUT];
                for (int y = 0; y < OUT; y++)
                    column[y] = (vector)load_pixel(&corners[i], OUT * y + x, c, lanes, pooled);
                gradients_of_line(column, half[i] + x, 1, OUT);
            }
        pair *at = to->of_gradients + place * own->gradients_room + c;
#pragma GCC unroll 6
        for (int y = 0; y < needed; y++) {
            vector row[2][IN];
            for (int i = 0; i < 2; i++) gradients_of_line(half[i] + OUT * y, row[i], 1, 1);
            for (int x = 0; x < needed; x++)
                store_pairs(at + (IN * y + x) * of_gradients_frequency, (__m512)row[0][x], (__m512)row[1][x]);
        }
    }
}

/* Not inline, or the compiler is short of registers. */
static __attribute__((noinline)) void transform_pair_of_whole(
    const struct gradient *own, const struct tile *tile, int64_t place, const struct pairs *to
) {
    BY_SIZE(is_small(tile) && is_small(tile + 1), transform_pair, own, tile, place, to, 0);
}

static __attribute__((noinline)) void transform_pair_of_pooled(
    const struct gradient *own, const struct tile *tile, int64_t place, const struct pairs *to
) {
    BY_SIZE(is_small(tile) && is_small(tile + 1), transform_pair, own, tile, place, to, 1);
}

static void add_pairs(
    const struct gradient *own, int64_t first, int64_t count, const struct pairs *pairs, float *sums, int add
) {
    const int64_t outputs = own->gradients.channels, room = own->room;
    struct order order;
    put_in_order(&own->tiling, 2 * first, 2 * count, &order);
    for (int64_t i = 0; i < count; i++)
        if (own->gradients.places)
            transform_pair_of_pooled(own, order.tiles + 2 * i, i, pairs);
        else
            transform_pair_of_whole(own, order.tiles + 2 * i, i, pairs);
    for (int f = 0; f < FREQUENCIES; f++) {
        const struct span span = tiles_with(&order, f);
        const int64_t from = span.begin / 2, steps = parts_of(span.end, 2) - from;
        for (int64_t strip = 0; strip < strips_of(room); strip++) {
            const int64_t begin = strip_begin(room, strip);
            const struct product product = {
                pairs->of_gradients + f * own->of_gradients_frequency + from * own->gradients_room, 1,
                own->gradients_room, pairs->of_maps + f * own->of_frequency + from * room + begin, room,
                steps, sums + f * outputs * room + begin, room, add,
            };
            const int64_t width = strip_begin(room, strip + 1) - begin;
            if (add && room >= WIDE)
                add_bfloat16(&product, outputs, width);
            else
                multiply_bfloat16(&product, outputs, width);
        }
    }
}

/* The gradient of a convolution's filters. It is summed up in as many parts as there are threads.
 *
 * Arguments are those of winograd.c. Returns 0, or 1 without memory.
 */
int gradient_of_filters(
    const value *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int64_t padding,
    const value *gradients,
    const uint8_t *places,
    int64_t outputs,
    int64_t out_height,
    int64_t out_width,
    float *results,
    int threads
) {
    const struct maps of_maps = {maps, height, width, channels};
    const struct maps of_gradients = {gradients, out_height, out_width, outputs, places};
    const struct tiling tiling = tiling_with_short(images, out_height, out_width, 0);
    return sum_up(&of_maps, &of_gradients, tiling, padding, results, threads);
}
