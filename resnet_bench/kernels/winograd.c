/* 3x3 convolutions with stride 1, and their gradients, with 16 products where the plain way needs 36.
 *
 * An output of 2x2 pixels and the 4x4 pixels that it comes from are a tile. A tile's 16 pixels are transformed to 16
 * frequencies, and so is each filter; at each frequency the convolution is a matrix product, from channels to output
 * channels. The gradient of the filters is a matrix product at each frequency too, over tiles. After A. Lavin and
 * S. Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(2x2, 3x3).
 *
 * Maps are bfloat16 in channels-last order, [images, height, width, channels]; filters and their gradient are float,
 * [outputs, channels, 3, 3]. Transforms are computed in float, factors of products rounded to bfloat16 and products
 * summed in float, as the processor's own instruction does.
 *
 * A tile's outputs are also what a 2x2 max pool behind the convolution takes the largest of. Then only that is written,
 * with its place in the tile, and of the gradient there is only that of the largest: all others are zero.
 */

#ifndef __AVX512BF16__
#error this processor does not multiply bfloat16 by AVX-512
#endif

#include "vectors.h"

#define OUT 2

typedef uint16_t value;
/* Two values, whose products with two others are added at once. */
typedef uint32_t pair;
typedef pair factor;

#include "winograd.h"

/* Tiles whose frequencies are at hand at once: as many as leave room for filters in a core's second cache. */
#define TILES 48
#define TILES_OF_MANY_CHANNELS 24
#define MANY_CHANNELS 256
/* Pixels between a tile and those that are asked for. */
#define AHEAD 4
/* Pairs of tiles that a gradient of filters is summed over before it is written. */
#define PAIRS 128

/* Bytes that such sums may take, of all threads. */
#define SUMS (256 << 20)

/* --- values -------------------------------------------------------------------------------------- */

/* The first lanes, fewer than all. */
INLINE __mmask16 first_lanes(int64_t count) { return (1 << count) - 1; }

/* Calls a function for each vector of channels, with the channels before it and the lanes that are filled behind its
 * arguments. A mask that the compiler knows to be full costs nothing. */
#define FOR_CHANNELS(channels, function, ...)                                                                   \
    do {                                                                                                        \
        int64_t c = 0;                                                                                          \
        for (; c + LANES <= (channels); c += LANES) function(__VA_ARGS__, c, ALL_LANES);                        \
        if (c < (channels)) function(__VA_ARGS__, c, first_lanes((channels) - c));                              \
    } while (0)

/* --- transforms ---------------------------------------------------------------------------------- */

/* Each works on rows and then on columns; `step` is the distance between a line's numbers. */

INLINE void pixels_of_line(__m512 *x, int step) {
    __m512 first = x[0] - x[2 * step], second = x[step] + x[2 * step];
    __m512 third = x[2 * step] - x[step], fourth = x[step] - x[3 * step];
    x[0] = first, x[step] = second, x[2 * step] = third, x[3 * step] = fourth;
}

/* Frequencies of 4x4 pixels, in their place. */
INLINE void frequencies_of_pixels(__m512 x[FREQUENCIES]) {
    for (int i = 0; i < 4; i++) pixels_of_line(x + i, 4);
    for (int i = 0; i < 4; i++) pixels_of_line(x + 4 * i, 1);
}

/* Frequencies of the gradients of 2x2 pixels of the output. */
INLINE void frequencies_of_gradients(const __m512 y[4], __m512 x[FREQUENCIES]) {
    __m512 rows[4][2];
    for (int j = 0; j < 2; j++) {
        rows[0][j] = y[j], rows[1][j] = y[j] + y[2 + j];
        rows[2][j] = y[j] - y[2 + j], rows[3][j] = -y[2 + j];
    }
    for (int i = 0; i < 4; i++) {
        x[4 * i] = rows[i][0], x[4 * i + 1] = rows[i][0] + rows[i][1];
        x[4 * i + 2] = rows[i][0] - rows[i][1], x[4 * i + 3] = -rows[i][1];
    }
}

/* 2x2 pixels of the output. */
INLINE void pixels_of_frequencies(const __m512 x[FREQUENCIES], __m512 y[4]) {
    __m512 rows[2][4];
    for (int j = 0; j < 4; j++) {
        rows[0][j] = x[j] + x[4 + j] + x[8 + j];
        rows[1][j] = x[4 + j] - x[8 + j] - x[12 + j];
    }
    for (int i = 0; i < 2; i++) {
        y[2 * i] = rows[i][0] + rows[i][1] + rows[i][2];
        y[2 * i + 1] = rows[i][1] - rows[i][2] - rows[i][3];
    }
}

/* Frequencies of the 9 taps of filters. */
INLINE void frequencies_of_taps(const __m512 w[9], __m512 x[FREQUENCIES]) {
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 rows[4][3];
    for (int j = 0; j < 3; j++) {
        __m512 ends = half * (w[j] + w[6 + j]), middle = half * w[3 + j];
        rows[0][j] = w[j], rows[1][j] = ends + middle, rows[2][j] = ends - middle, rows[3][j] = w[6 + j];
    }
    for (int i = 0; i < 4; i++) {
        __m512 ends = half * (rows[i][0] + rows[i][2]), middle = half * rows[i][1];
        x[4 * i] = rows[i][0], x[4 * i + 1] = ends + middle, x[4 * i + 2] = ends - middle, x[4 * i + 3] = rows[i][2];
    }
}

/* The 9 taps of filters' gradients. */
INLINE void taps_of_frequencies(const __m512 x[FREQUENCIES], __m512 w[9]) {
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 rows[3][4];
    for (int j = 0; j < 4; j++) {
        rows[0][j] = x[j] + half * (x[4 + j] + x[8 + j]);
        rows[1][j] = half * (x[4 + j] - x[8 + j]);
        rows[2][j] = half * (x[4 + j] + x[8 + j]) + x[12 + j];
    }
    for (int i = 0; i < 3; i++) {
        w[3 * i] = rows[i][0] + half * (rows[i][1] + rows[i][2]);
        w[3 * i + 1] = half * (rows[i][1] - rows[i][2]);
        w[3 * i + 2] = half * (rows[i][1] + rows[i][2]) + rows[i][3];
    }
}

#include "winograd_bf16.h"

/* Of each lane a pair. */
INLINE void store_pairs(pair *to, __m256i first, __m256i second) {
    __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16);
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(first), high));
}

/* --- matrix products ----------------------------------------------------------------------------- */

/* A part of it that the registers hold: some rows, and some columns of as many lanes. */
INLINE void multiply_block(const struct product *p, int64_t row, int64_t column, const int rows, const int columns) {
    __m512 sums[8][4];
    float *at = p->sums + row * p->of_sum + column;
    const pair *left = p->rows + row * p->of_row, *right = p->columns + column;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            sums[r][c] = p->add ? _mm512_loadu_ps(at + r * p->of_sum + c * LANES) : _mm512_setzero_ps();
    for (int64_t k = 0; k < p->steps; k++) {
        __m512bh factors[4];
        for (int c = 0; c < columns; c++)
            factors[c] = (__m512bh)_mm512_loadu_si512(right + k * p->of_line + c * LANES);
        for (int r = 0; r < rows; r++) {
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(left[r * p->of_row + k * p->of_step]);
            for (int c = 0; c < columns; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], factor, factors[c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) _mm512_storeu_ps(at + r * p->of_sum + c * LANES, sums[r][c]);
}

INLINE void multiply_rows(const struct product *p, int64_t rows, int64_t column, const int columns, const int at_once) {
    int64_t row = 0;
    for (; row + at_once <= rows; row += at_once) multiply_block(p, row, column, at_once, columns);
    for (; row < rows; row += 2) multiply_block(p, row, column, 2, columns);
}

/* An even number of rows, and up to four times as many columns as there are lanes. */
static void multiply(const struct product *p, int64_t rows, int64_t column, int64_t columns) {
    switch (columns / LANES) {
    case 1:
        multiply_rows(p, rows, column, 1, 8);
        break;
    case 2:
        multiply_rows(p, rows, column, 2, 8);
        break;
    case 3:
        multiply_rows(p, rows, column, 3, 8);
        break;
    case 4:
        multiply_rows(p, rows, column, 4, 6);
        break;
    }
}

/* --- tiles --------------------------------------------------------------------------------------- */

/* Asks for the pixels of the tiles behind this one, which the processor does not see coming among so many lines. */
INLINE void ask_ahead(
    const struct maps *maps, int64_t image, int64_t row, int64_t column, const int rows, const int columns, const int pooled
) {
    if (pooled) return;
    const value *corner = maps->values + ((image * maps->height + row) * maps->width + column + AHEAD) * maps->channels;
    for (int y = 0; y < rows; y++)
        for (int64_t i = 0; i < columns * maps->channels; i += CACHE_LINE / (int64_t)sizeof(value))
            _mm_prefetch((const char *)(corner + y * maps->width * maps->channels + i), _MM_HINT_T0);
}

/* --- filters ------------------------------------------------------------------------------------- */

/* Filters' frequencies, strip by strip of the outputs: [strip][frequency][pair of channels][output of the strip]. */
static void transform_filters(const struct filters *filters, pair *transformed, int threads) {
    const int64_t outputs = filters->outputs, pairs = filters->channels / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; output += LANES) {
        const int64_t strip = strip_with(outputs, output), begin = strip_begin(outputs, strip);
        const int64_t width = strip_begin(outputs, strip + 1) - begin;
        pair *to = transformed + begin * FREQUENCIES * pairs + output - begin;
        for (int64_t c = 0; c < pairs; c++) {
            __m512 taps[9], x[2][FREQUENCIES];
            for (int i = 0; i < 2; i++) {
                taps_at(filters, output, 2 * c + i, (vector *)taps);
                frequencies_of_taps(taps, x[i]);
            }
            for (int f = 0; f < FREQUENCIES; f++) store_pairs(to + (f * pairs + c) * width, values(x[0][f]), values(x[1][f]));
        }
    }
}

/* --- the convolution ----------------------------------------------------------------------------- */

struct convolution {
    struct maps maps;
    struct tiling tiling;
    int64_t padding;
    const pair *filters;
    const float *bias;
    struct maps outputs;
    const value *nothing;
    /* Tiles at hand at once, and the values of a frequency of them. */
    int64_t room, of_frequency;
};

/* Some channels of a tile. */
INLINE void transform_tile(
    const struct pixels *pixels, const int pooled, value *transformed, int64_t of_frequency, int64_t c, __mmask16 lanes
) {
    __m512 x[FREQUENCIES];
    for (int f = 0; f < FREQUENCIES; f++) x[f] = load_pixel(pixels, f, c, lanes, pooled);
    frequencies_of_pixels(x);
    for (int f = 0; f < FREQUENCIES; f++) store(transformed + f * of_frequency + c, x[f], lanes);
}

INLINE void transform_tiles(
    const struct convolution *own, int64_t first, int64_t count, value *transformed, const int pooled
) {
    const int64_t channels = own->maps.channels;
    struct tile tile = tile_at(&own->tiling, first);
    for (int64_t i = 0; i < count; i++, advance(&own->tiling, &tile)) {
        const int64_t row = tile.row - own->padding, column = tile.column - own->padding;
        struct pixels pixels;
        const int64_t height = own->maps.height, width = own->maps.width;
        find_pixels(&own->maps, tile.image, row, column, height, width, 4, pooled, own->nothing, &pixels);
        ask_ahead(&own->maps, tile.image, row, column + 2, 4, 2, pooled);
        FOR_CHANNELS(channels, transform_tile, &pixels, pooled, transformed + i * channels, own->of_frequency);
    }
}

/* Writes some channels of a tile. */
INLINE void write_tile(
    const struct maps *outputs, const struct tile *tile, const __m512 y[4], int64_t c, __mmask16 lanes
) {
    const int64_t rows = smaller(2, outputs->height - tile->row), columns = smaller(2, outputs->width - tile->column);
    const int64_t corner = (tile->image * outputs->height + tile->row) * outputs->width + tile->column;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) {
            const int64_t pixel = corner + row * outputs->width + column;
            store((value *)outputs->values + pixel * outputs->channels + c, y[2 * row + column], lanes);
        }
}

/* Computes and writes some channels of a tile. */
INLINE void finish_tile(
    const struct convolution *own, const struct tile *tile, const float *sums, int64_t of_frequency, int64_t c,
    __mmask16 lanes
) {
    __m512 x[FREQUENCIES], y[4];
    for (int f = 0; f < FREQUENCIES; f++) x[f] = _mm512_loadu_ps(sums + f * of_frequency);
    pixels_of_frequencies(x, y);
    const __m512 bias = own->bias ? _mm512_maskz_loadu_ps(lanes, own->bias + c) : _mm512_setzero_ps();
    for (int j = 0; j < 4; j++) y[j] += bias;
    if (own->outputs.places)
        write_largest(&own->outputs, tile, y, c, lanes);
    else
        write_tile(&own->outputs, tile, y, c, lanes);
}

/* Finishes a strip of the outputs' channels. */
INLINE void write_tiles(
    const struct convolution *own, int64_t first, int64_t count, const float *sums, int64_t begin, int64_t width
) {
    const int64_t of_frequency = own->room * width, outputs = own->outputs.channels;
    struct tile tile = tile_at(&own->tiling, first);
    for (int64_t i = 0; i < count; i++, advance(&own->tiling, &tile))
        for (int64_t c = 0; c < width; c += LANES) {
            const float *own_sums = sums + i * width + c;
            if (begin + c + LANES <= outputs)
                finish_tile(own, &tile, own_sums, of_frequency, begin + c, ALL_LANES);
            else
                finish_tile(own, &tile, own_sums, of_frequency, begin + c, first_lanes(outputs - begin - c));
        }
}

INLINE void convolve_tiles(
    const struct convolution *own, int64_t first, int64_t count, value *transformed, float *sums
) {
    const int64_t channels = own->maps.channels, outputs = own->outputs.channels, pairs = channels / 2;
    if (own->maps.places)
        transform_tiles(own, first, count, transformed, 1);
    else
        transform_tiles(own, first, count, transformed, 0);
    for (int64_t strip = 0; strip < strips_of(outputs); strip++) {
        const int64_t begin = strip_begin(outputs, strip), width = strip_begin(outputs, strip + 1) - begin;
        for (int f = 0; f < FREQUENCIES; f++) {
            const struct product product = {
                (const pair *)(transformed + f * own->of_frequency), pairs, 1,
                own->filters + (begin * FREQUENCIES + f * width) * pairs, width,
                pairs, sums + f * own->room * width, width, 0,
            };
            multiply(&product, parts_of(count, 2) * 2, 0, width);
        }
        write_tiles(own, first, count, sums, begin, width);
    }
}

/* A convolution, or the gradient of its maps.
 *
 * maps        [images, height, width, channels]; channels are a multiple of 8
 * places      NULL; or the places of the largest among four, of which alone there are maps: see `struct maps`
 * padding     rows and columns of zeros around the maps
 * weights     [outputs, channels, 3, 3]; where `turned`, [channels, outputs, 3, 3], whose rows and columns run backwards
 * outputs     a multiple of 8, too
 * bias        [outputs], or NULL
 * results     [images, out_height, out_width, outputs], written; at most height + 2 * padding - 2 rows, and one more
 *             where there are places, for a map whose last row no window of the pool has; likewise columns
 * out_places  NULL; or [images, out_height / 2, out_width / 2, outputs], written, as are the results then: of each four
 *             outputs only the largest, and its place; height and width are even
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
    pair *transformed = memory(FREQUENCIES * channels * filled(outputs) * sizeof(value));
    value *nothing = calloc(channels, sizeof(value));
    const int64_t room = channels > MANY_CHANNELS ? TILES_OF_MANY_CHANNELS : TILES;
    const int64_t of_frequency = room * channels + CACHE_LINE / (int64_t)sizeof(value);
    const struct convolution own = {
        {maps, height, width, channels, places}, tiling_of(images, out_height, out_width), padding,
        transformed, bias, {results, out_height, out_width, outputs, out_places}, nothing, room, of_frequency,
    };
    const int64_t tiles = tiles_of(&own.tiling);
    int result = transformed && nothing ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        transform_filters(&filters, transformed, threads);
#pragma omp parallel num_threads(threads)
        {
            value *own_tiles = memory(FREQUENCIES * of_frequency * sizeof(value));
            float *sums = memory(FREQUENCIES * room * 4 * LANES * sizeof(float));
            if (!own_tiles || !sums) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += room)
                if (own_tiles && sums) convolve_tiles(&own, first, smaller(room, tiles - first), own_tiles, sums);
            free(own_tiles);
            free(sums);
        }
    }
    free(transformed);
    free(nothing);
    return result;
}

/* --- the gradient of the filters ----------------------------------------------------------------- */

/* Some channels of two tiles of the maps. */
INLINE void transform_pixels(
    const struct pixels pixels[2], pair *transformed, int64_t of_frequency, int64_t c, __mmask16 lanes
) {
    __m256i rounded[2][FREQUENCIES];
    for (int i = 0; i < 2; i++) {
        __m512 x[FREQUENCIES];
        for (int f = 0; f < FREQUENCIES; f++) x[f] = load_pixel(&pixels[i], f, c, lanes, 0);
        frequencies_of_pixels(x);
        for (int f = 0; f < FREQUENCIES; f++) rounded[i][f] = values(x[f]);
    }
    for (int f = 0; f < FREQUENCIES; f++) store_pairs(transformed + f * of_frequency + c, rounded[0][f], rounded[1][f]);
}

/* Some channels of two tiles' gradients. */
INLINE void transform_gradients(
    const struct pixels pixels[2], const int pooled, pair *transformed, int64_t of_frequency, int64_t c, __mmask16 lanes
) {
    __m256i rounded[2][FREQUENCIES];
    for (int i = 0; i < 2; i++) {
        __m512 y[4], x[FREQUENCIES];
        for (int j = 0; j < 4; j++) y[j] = load_pixel(&pixels[i], j, c, lanes, pooled);
        frequencies_of_gradients(y, x);
        for (int f = 0; f < FREQUENCIES; f++) rounded[i][f] = values(x[f]);
    }
    for (int f = 0; f < FREQUENCIES; f++) store_pairs(transformed + f * of_frequency + c, rounded[0][f], rounded[1][f]);
}

INLINE void transform_pair(
    const struct gradient *own, int64_t index, int64_t place, const struct pairs *to, const int pooled
) {
    const int64_t padding = own->padding;
    const struct maps *maps = &own->maps, *gradients = &own->gradients;
    struct pixels pixels[2], corners[2];
    struct tile tile = tile_at(&own->tiling, index);
    for (int i = 0; i < 2; i++, advance(&own->tiling, &tile)) {
        /* Behind the last tile of an odd number comes one of an image that is not there: nothing is inside. */
        const int64_t missing = tile.image < own->tiling.images ? 0 : maps->height + padding;
        const int64_t row = tile.row + missing, first_row = row - padding, first_column = tile.column - padding;
        find_pixels(
            maps, tile.image, first_row, first_column, maps->height, maps->width, 4, 0, own->nothing, &pixels[i]
        );
        find_pixels(
            gradients, tile.image, row, tile.column, gradients->height, gradients->width, 2, pooled, own->nothing,
            &corners[i]
        );
        ask_ahead(maps, tile.image, first_row, first_column + 2, 4, 2, 0);
        ask_ahead(gradients, tile.image, row, tile.column, 2, 2, pooled);
    }
    pair *of_maps = to->of_maps + place * own->room, *of_gradients = to->of_gradients + place * own->gradients_room;
    FOR_CHANNELS(own->maps.channels, transform_pixels, pixels, of_maps, own->of_frequency);
    FOR_CHANNELS(own->gradients.channels, transform_gradients, corners, pooled, of_gradients, own->of_gradients_frequency);
}

static void add_pairs(
    const struct gradient *own, int64_t first, int64_t count, const struct pairs *pairs, float *sums, int add
) {
    const int64_t outputs = own->gradients.channels, room = own->room;
    for (int64_t i = 0; i < count; i++)
        if (own->gradients.places)
            transform_pair(own, 2 * (first + i), i, pairs, 1);
        else
            transform_pair(own, 2 * (first + i), i, pairs, 0);
    for (int64_t strip = 0; strip < strips_of(room); strip++) {
        const int64_t begin = strip_begin(room, strip), width = strip_begin(room, strip + 1) - begin;
        for (int f = 0; f < FREQUENCIES; f++) {
            const struct product product = {
                pairs->of_gradients + f * own->of_gradients_frequency, 1, own->gradients_room,
                pairs->of_maps + f * own->of_frequency, room,
                count, sums + f * outputs * room, room, add,
            };
            multiply(&product, outputs, begin, width);
        }
    }
}

/* The gradient of a convolution's filters. It is summed up in as many parts as there are threads.
 *
 * maps        [images, height, width, channels]; channels are a multiple of 8
 * padding     rows and columns of zeros around the maps
 * gradients   of the outputs, [images, out_height, out_width, outputs]; outputs are a multiple of 8, too
 * places      NULL; or the places of the largest among four, which alone have gradients: see `struct maps`
 * results     [outputs, channels, 3, 3], written
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
    const uint8_t *places,
    int64_t outputs,
    int64_t out_height,
    int64_t out_width,
    float *results,
    int threads
) {
    const struct maps of_maps = {maps, height, width, channels};
    const struct maps of_gradients = {gradients, out_height, out_width, outputs, places};
    const struct tiling tiling = tiling_of(images, out_height, out_width);
    return sum_up(&of_maps, &of_gradients, tiling, padding, results, threads);
}
