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
#include <stdlib.h>
#include <string.h>

enum result { DONE, OUT_OF_MEMORY };

#define INLINE static inline __attribute__((always_inline))

#define LANES 16
#define FREQUENCIES 36
/* Pixels of a tile's output and of its input, in a row. */
#define OUT 4
#define IN 6
/* Rows and vectors of columns of a block of a matrix product, which fills the registers. */
#define ROWS 6
#define COLUMNS 4

/* Tiles whose frequencies are at hand at once. */
#define TILES 24
/* Pairs of tiles that a gradient of filters is summed over before it is written. */
#define PAIRS 96
/* Pairs of channels whose products are summed as whole numbers. */
#define WHOLE_PAIRS 64
/* Bytes that such sums may take, of all threads. */
#define SUMS (512 << 20)
#define CACHE_LINE 64

typedef uint16_t value;
/* Two factors, whose products with two others are added at once. */
typedef uint32_t pair;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

static void *memory(int64_t bytes) { return aligned_alloc(CACHE_LINE, parts_of(bytes, CACHE_LINE) * CACHE_LINE); }

INLINE __m512 load(const value *from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void store(value *to, __m512 numbers) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(numbers)); }

/* --- transforms ---------------------------------------------------------------------------------- */

/* The points' absolute values, their squares and cubes. */
#define A 0.70710678118654752f
#define B 1.41421356237309505f
#define A2 0.5f
#define B2 2.0f
#define A3 (A2 * A)
#define B3 (B2 * B)
/* What the filters' frequencies at these points are scaled by, such that all are about as large, and what their outputs
 * are scaled by for it. */
#define OF_A (-2.0f / 3)
#define OF_B (1.0f / 3)
#define BACK_B 0.5f

/* Each transforms a line; `from` and `to` are the distances between its numbers. */

INLINE void pixels_of_line(const __m512 *x, __m512 *y, const int from, const int to) {
    const __m512 x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const __m512 even_a = x4 - B2 * x2, odd_a = x3 - B2 * x1, even_b = x4 - A2 * x2, odd_b = x3 - A2 * x1;
    y[0] = x0 + x4 - (A2 + B2) * x2;
    y[to] = even_a + A * odd_a, y[2 * to] = even_a - A * odd_a;
    y[3 * to] = even_b + B * odd_b, y[4 * to] = even_b - B * odd_b;
    y[5 * to] = x1 + x5 - (A2 + B2) * x3;
}

INLINE void gradients_of_line(const __m512 *x, __m512 *y, const int from, const int to) {
    const __m512 x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from];
    const __m512 even_a = x0 + A2 * x2, odd_a = x1 + A2 * x3, even_b = x0 + B2 * x2, odd_b = x1 + B2 * x3;
    y[0] = x0;
    y[to] = even_a + A * odd_a, y[2 * to] = even_a - A * odd_a;
    y[3 * to] = even_b + B * odd_b, y[4 * to] = even_b - B * odd_b;
    y[5 * to] = x3;
}

INLINE void frequencies_of_line(const __m512 *x, __m512 *y, const int from, const int to) {
    const __m512 x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const __m512 even_a = x1 + x2, odd_a = x1 - x2, even_b = x3 + x4, odd_b = x3 - x4;
    y[0] = x0 + even_a + BACK_B * even_b;
    y[to] = A * odd_a + (BACK_B * B) * odd_b;
    y[2 * to] = A2 * even_a + (BACK_B * B2) * even_b;
    y[3 * to] = x5 + A3 * odd_a + (BACK_B * B3) * odd_b;
}

INLINE void taps_of_line(const __m512 *x, __m512 *y, const int from, const int to) {
    const __m512 x0 = x[0], x1 = x[from], x2 = x[2 * from];
    const __m512 even_a = OF_A * (x0 + A2 * x2), odd_a = (OF_A * A) * x1;
    const __m512 even_b = OF_B * (x0 + B2 * x2), odd_b = (OF_B * B) * x1;
    y[0] = x0;
    y[to] = even_a + odd_a, y[2 * to] = even_a - odd_a;
    y[3 * to] = even_b + odd_b, y[4 * to] = even_b - odd_b;
    y[5 * to] = x2;
}

INLINE void gradient_frequencies_of_line(const __m512 *x, __m512 *y, const int from, const int to) {
    const __m512 x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const __m512 even_a = OF_A * (x1 + x2), even_b = (OF_B * BACK_B) * (x3 + x4);
    y[0] = x0 + even_a + even_b;
    y[to] = (OF_A * A) * (x1 - x2) + (OF_B * BACK_B * B) * (x3 - x4);
    y[2 * to] = x5 + A2 * even_a + B2 * even_b;
}

/* A transform of a square of numbers by that of its lines, columns first. */
#define DEFINE_TRANSFORM(name, of_line, in, out)                                                                   \
    INLINE void name(const __m512 *x, __m512 *y) {                                                              \
        __m512 half[(out) * (in)];                                                                              \
        for (int i = 0; i < (in); i++) of_line(x + i, half + i, in, in);                                        \
        for (int i = 0; i < (out); i++) of_line(half + (in) * i, y + (out) * i, 1, 1);                          \
    }

DEFINE_TRANSFORM(frequencies_of_pixels, pixels_of_line, IN, IN)
DEFINE_TRANSFORM(frequencies_of_gradients, gradients_of_line, OUT, IN)
DEFINE_TRANSFORM(pixels_of_frequencies, frequencies_of_line, IN, OUT)
DEFINE_TRANSFORM(frequencies_of_taps, taps_of_line, 3, IN)
DEFINE_TRANSFORM(taps_of_frequencies, gradient_frequencies_of_line, IN, 3)

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

/* What is multiplied: `sums[r][c]`, or what is added to it, is the sum over k of `rows[r][k] * columns[k][c]`, a pair of
 * products each. */
struct product {
    const pair *rows;
    int64_t of_row, of_step;
    const pair *columns;
    int64_t of_line;
    int64_t pairs;
    float *sums;
    int64_t of_sum;
    int add;
};

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
    for (int64_t k = 0; k < p->pairs; k++, left += of_step, right += of_line) {
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

INLINE void multiply_rows(const struct product *p, int64_t rows, const int columns, const enum factors factors) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) multiply_block(p, row, ROWS, columns, factors);
    for (; row + 2 <= rows; row += 2) multiply_block(p, row, 2, columns, factors);
    if (row < rows) multiply_block(p, row, 1, columns, factors);
}

/* Up to as many columns as a block has. Not inline, or the compiler is short of registers. */
#define DEFINE_MULTIPLY(name, factors)                                                                             \
    static __attribute__((noinline)) void name(const struct product *p, int64_t rows, int64_t columns) {        \
        switch (columns / LANES) {                                                                              \
        case 1:                                                                                                 \
            multiply_rows(p, rows, 1, factors);                                                                 \
            break;                                                                                              \
        case 2:                                                                                                 \
            multiply_rows(p, rows, 2, factors);                                                                 \
            break;                                                                                              \
        case 3:                                                                                                 \
            multiply_rows(p, rows, 3, factors);                                                                 \
            break;                                                                                              \
        case 4:                                                                                                 \
            multiply_rows(p, rows, 4, factors);                                                                 \
            break;                                                                                              \
        }                                                                                                       \
    }

DEFINE_MULTIPLY(multiply_whole, WHOLE)
DEFINE_MULTIPLY(multiply_bfloat16, BFLOAT16)

/* Columns are multiplied in strips of up to as many as a block has, as equal as can be. */
INLINE int64_t strips_of(int64_t columns) { return parts_of(columns, COLUMNS * LANES); }
INLINE int64_t strip_begin(int64_t columns, int64_t strip) {
    return columns / LANES * strip / strips_of(columns) * LANES;
}

/* --- tiles --------------------------------------------------------------------------------------- */

struct maps {
    const value *values;
    int64_t height, width, channels;
};

/* Tiles of a map's output, counted row by row, image by image. */
struct tiling {
    int64_t images, rows, columns;
};

INLINE int64_t tiles_of(const struct tiling *tiling) { return tiling->images * tiling->rows * tiling->columns; }

/* Where a tile's output begins. */
struct tile {
    int64_t image, row, column;
};

INLINE struct tile tile_at(const struct tiling *tiling, int64_t index) {
    const int64_t columns = tiling->columns, rows = tiling->rows;
    return (struct tile){index / (rows * columns), index / columns % rows * OUT, index % columns * OUT};
}

/* Where a square's pixels are; `nothing`, which is zeros, is where the map has none. */
INLINE void find_pixels(
    const struct maps *maps, int64_t image, int64_t row, int64_t column, const int size, const value *nothing,
    const value **pixels
) {
    for (int y = 0; y < size; y++) {
        const int row_inside = (uint64_t)(row + y) < (uint64_t)maps->height;
        const value *line = maps->values + ((image * maps->height + row + y) * maps->width + column) * maps->channels;
        for (int x = 0; x < size; x++) {
            const int inside = row_inside & ((uint64_t)(column + x) < (uint64_t)maps->width);
            pixels[size * y + x] = inside ? line + x * maps->channels : nothing;
        }
    }
}

/* Asks for the pixels of the tile behind this one, which the processor does not see coming among so many lines. */
INLINE void ask_ahead(const struct maps *maps, int64_t image, int64_t row, int64_t column, const int rows) {
    const int64_t of_line = maps->width * maps->channels;
    const value *corner = maps->values + (image * maps->height + row) * of_line + column * maps->channels;
    for (int y = 0; y < rows; y++)
        for (int64_t i = 0; i < OUT * maps->channels; i += CACHE_LINE / (int64_t)sizeof(value))
            _mm_prefetch((const char *)(corner + y * of_line + i), _MM_HINT_T0);
}

/* --- filters ------------------------------------------------------------------------------------- */

struct filters {
    const float *weights;
    int64_t outputs, channels;
    /* Whether channels and outputs change places, and rows and columns run backwards: for the gradient of the maps. */
    int turned;
};

/* Filters from one channel to a vector of outputs. */
INLINE void taps_at(const struct filters *filters, int64_t output, int64_t channel, __m512 taps[9]) {
    const int64_t of_output = filters->turned ? 9 : 9 * filters->channels;
    const int64_t of_channel = filters->turned ? 9 * filters->outputs : 9;
    const float *from = filters->weights + output * of_output + channel * of_channel;
    float numbers[9][LANES];
    for (int lane = 0; lane < LANES; lane++, from += of_output)
        for (int tap = 0; tap < 9; tap++) numbers[filters->turned ? 8 - tap : tap][lane] = from[tap];
    for (int tap = 0; tap < 9; tap++) taps[tap] = _mm512_loadu_ps(numbers[tap]);
}

/* Filters' frequencies, strip by strip of the outputs: [strip][frequency][pair of channels][output of the strip]; and for
 * each output what they are to be multiplied by. */
static void transform_filters(const struct filters *filters, pair *transformed, float *back, float *scratch, int threads) {
    const int64_t outputs = filters->outputs, channels = filters->channels, pairs = channels / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; output += LANES) {
        int64_t strip = 0;
        while (strip_begin(outputs, strip + 1) <= output) strip++;
        const int64_t begin = strip_begin(outputs, strip), width = strip_begin(outputs, strip + 1) - begin;
        pair *to = transformed + begin * FREQUENCIES * pairs + output - begin;
        __m512 *taps = (__m512 *)(scratch + output * channels * 9);
        __m512 sums[FREQUENCIES] = {0}, largest = {0}, largest_sum = {0}, check = {0};
        for (int64_t c = 0; c < channels; c++) {
            __m512 x[FREQUENCIES];
            taps_at(filters, output, c, taps + 9 * c);
            frequencies_of_taps(taps + 9 * c, x);
            for (int f = 0; f < FREQUENCIES; f++) {
                const __m512 before = c % (2 * WHOLE_PAIRS) ? sums[f] : _mm512_setzero_ps();
                sums[f] = before + _mm512_abs_ps(x[f]);
                largest = _mm512_max_ps(largest, _mm512_abs_ps(x[f]));
                largest_sum = _mm512_max_ps(largest_sum, sums[f]);
                check += 0.0f * x[f];
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
        {maps, height, width, channels}, {images, parts_of(out_height, OUT), parts_of(out_width, OUT)}, padding,
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

struct gradient {
    struct maps maps, gradients;
    struct tiling tiling;
    int64_t padding;
    /* Pairs of a frequency of the maps, and of one of the gradients. */
    int64_t of_frequency, of_gradients_frequency;
    const value *nothing;
    /* What tiles are summed up in, a part of the tiles each: [part][frequency][output][channel]. */
    int64_t parts, of_part;
    float *sums;
};

/* Frequencies of tiles, two by two: [frequency][pair of tiles][channel]. */
struct pairs {
    pair *of_maps, *of_gradients;
};

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

/* Adds what some pairs of tiles give. */
static void add_pairs(const struct gradient *own, int64_t first, int64_t count, const struct pairs *pairs, float *sums) {
    const int64_t outputs = own->gradients.channels, channels = own->maps.channels;
    for (int64_t i = 0; i < count; i++) transform_pair(own, 2 * (first + i), i, pairs);
    for (int f = 0; f < FREQUENCIES; f++)
        for (int64_t strip = 0; strip < strips_of(channels); strip++) {
            const int64_t begin = strip_begin(channels, strip);
            const struct product product = {
                pairs->of_gradients + f * own->of_gradients_frequency, 1, outputs,
                pairs->of_maps + f * own->of_frequency + begin, channels,
                count, sums + f * outputs * channels + begin, channels, 1,
            };
            multiply_bfloat16(&product, outputs, strip_begin(channels, strip + 1) - begin);
        }
}

static int add_part(const struct gradient *own, int64_t part) {
    const int64_t all = parts_of(tiles_of(&own->tiling), 2);
    const int64_t begin = all * part / own->parts, end = all * (part + 1) / own->parts;
    const struct pairs pairs = {
        memory(FREQUENCIES * own->of_frequency * sizeof(pair)),
        memory(FREQUENCIES * own->of_gradients_frequency * sizeof(pair)),
    };
    const int result = pairs.of_maps && pairs.of_gradients ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        float *sums = own->sums + part * own->of_part;
        memset(sums, 0, own->of_part * sizeof(float));
        for (int64_t first = begin; first < end; first += PAIRS)
            add_pairs(own, first, smaller(PAIRS, end - first), &pairs, sums);
    }
    free(pairs.of_maps);
    free(pairs.of_gradients);
    return result;
}

/* The taps' gradients of one output's filters. */
INLINE void write_taps(const struct gradient *own, int64_t output, float *to) {
    const int64_t channels = own->maps.channels, outputs = own->gradients.channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        __m512 x[FREQUENCIES], taps[9];
        float numbers[9][LANES];
        for (int f = 0; f < FREQUENCIES; f++) {
            const float *sums = own->sums + (f * outputs + output) * channels + c;
            x[f] = _mm512_loadu_ps(sums);
            for (int64_t part = 1; part < own->parts; part++) x[f] += _mm512_loadu_ps(sums + part * own->of_part);
        }
        taps_of_frequencies(x, taps);
        for (int tap = 0; tap < 9; tap++) _mm512_storeu_ps(numbers[tap], taps[tap]);
        for (int lane = 0; lane < LANES; lane++)
            for (int tap = 0; tap < 9; tap++) to[(c + lane) * 9 + tap] = numbers[tap][lane];
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
    const int64_t out_height = height + 2 * padding - 2, out_width = width + 2 * padding - 2;
    const int64_t of_part = FREQUENCIES * outputs * channels;
    const int64_t affordable = SUMS / (of_part * (int64_t)sizeof(float)), parts = smaller(threads, affordable + 1);
    value *nothing = calloc(larger(outputs, channels), sizeof(value));
    const struct gradient own = {
        {maps, height, width, channels},
        {gradients, out_height, out_width, outputs},
        {images, parts_of(out_height, OUT), parts_of(out_width, OUT)},
        padding,
        PAIRS * channels + CACHE_LINE / (int64_t)sizeof(pair), PAIRS * outputs + CACHE_LINE / (int64_t)sizeof(pair),
        nothing, parts, of_part, memory(parts * of_part * sizeof(float)),
    };
    int result = own.sums && nothing ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
#pragma omp parallel for num_threads(parts) schedule(static) reduction(| : result)
        for (int64_t part = 0; part < parts; part++) result |= add_part(&own, part);
    }
    if (result == DONE) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t output = 0; output < outputs; output++) write_taps(&own, output, results + output * channels * 9);
    }
    free(own.sums);
    free(nothing);
    return result;
}
