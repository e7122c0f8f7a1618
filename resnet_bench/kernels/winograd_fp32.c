/* 3x3 convolutions of float maps with stride 1, and their gradients, with 36 products where the plain way needs 144.
 *
 * An output of 4x4 pixels and the 6x6 pixels that it comes from are a tile. A tile's 36 pixels are transformed to 36
 * frequencies, and so is each filter; at each frequency the convolution is a matrix product, from channels to output
 * channels. The gradient of the filters is a matrix product at each frequency too, over tiles. After A. Lavin and
 * S. Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), F(4x4, 3x3). Tiles of 3 pixels in a row
 * save products where the side of a map is not a multiple of 4 (winograd_4x4.h).
 *
 * Maps are in channels-last order, [images, height, width, channels]; filters and their gradient are [outputs, channels,
 * 3, 3]. Channels and outputs are multiples of LANES. Every thread count gives the same bits.
 *
 * Vectors are those of the compiler, as wide as the processor's, so that this is one source for all of them.
 */

typedef float value, factor;

/* What makes the filters' frequencies as large as exact ones. */
#define OF_B (1.0f / 6)

/* Tiles whose frequencies are at hand at once, near a core. */
#define TILES 48
/* The same for the gradient of filters that are too many to be summed up near a core: sums are read and written for each such
 * block. */
#define TILES_OF_FAR_SUMS 192
#define MOST_TILES TILES_OF_FAR_SUMS
/* Strips of outputs that are multiplied before they are transformed, 64 outputs. */
#define STRIPS (64 / (COLUMNS * LANES))

#include "winograd_4x4.h"

/* What channels and outputs must be multiples of. */
int lanes(void) { return LANES; }

INLINE vector load(const float *from) { return *(const unaligned *)from; }
INLINE void store(float *to, vector numbers) { *(unaligned *)to = numbers; }

/* Numbers between rows, and between frequencies, such that they do not all want the same place in a core's first cache. */
INLINE int64_t spread(int64_t numbers) { return numbers + CACHE_LINE / (int64_t)sizeof(float); }

/* --- transforms ---------------------------------------------------------------------------------- */

/* Behind those of winograd_4x4.h. */
INLINE void frequencies_of_line(const vector *x, vector *y, const int from, const int to) {
    const vector x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const vector even_a = x1 + x2, odd_a = A * (x1 - x2), even_b = x3 + x4, odd_b = B * (x3 - x4);
    y[0] = x0 + even_a + even_b;
    y[to] = odd_a + odd_b;
    y[2 * to] = A2 * even_a + B2 * even_b;
    y[3 * to] = x5 + A2 * odd_a + B2 * odd_b;
}

/* --- matrix products ----------------------------------------------------------------------------- */

/* Blocks of rows that ask for the next filters, each for its part: one alone would ask faster than the memory gives. */
#define ASKING 4

/* A part of it that the registers hold: some rows, and some vectors of columns. */
INLINE void multiply_block(
    const struct product *p, int64_t row, const int rows, const int columns, const int asks
) {
    vector sums[ROWS][COLUMNS];
    const int64_t of_row = p->of_row, of_step = p->of_step, of_line = p->of_line;
    const float *left = p->rows + row * of_row, *right = p->columns;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) sums[r][c] = (vector){0};
    const int64_t asked = COLUMNS * LANES / ASKING;
    const float *behind = filters_behind(p, row / ROWS, asked);
    for (int64_t k = 0; k < p->steps; k++, left += of_step, right += of_line) {
        if (asks && rows == ROWS && row / ROWS < ASKING) ask(behind + k * asked, 0);
        vector factors[COLUMNS];
        for (int c = 0; c < columns; c++) factors[c] = load(right + c * LANES);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) sums[r][c] += left[r * of_row] * factors[c];
    }
    float *at = p->sums + row * p->of_sum;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float *to = at + r * p->of_sum + c * LANES;
            if (p->add) sums[r][c] += load(to);
            store(to, sums[r][c]);
        }
}

INLINE void multiply_narrow_block(const struct product *p, int64_t row, const int rows, const int columns) {
    multiply_block(p, row, rows, columns, 0);
}

INLINE void multiply_wide_block(const struct product *p, int64_t row, const int rows, const int columns) {
    multiply_block(p, row, rows, columns, 1);
}

/* What is added to sums that are far away. */
INLINE void add_wide_block(const struct product *p, int64_t row, const int rows, const int columns) {
    ask_for_sums(p, row, rows, columns);
    multiply_block(p, row, rows, columns, 0);
}

DEFINE_MULTIPLY(multiply, multiply_narrow_block)
DEFINE_MULTIPLY(multiply_wide, multiply_wide_block)
DEFINE_MULTIPLY(add_wide, add_wide_block)

/* --- tiles --------------------------------------------------------------------------------------- */

/* Frequencies of tiles, [frequency][tile][channel]. */
struct frequencies {
    float *values;
    int64_t of_frequency, of_tile;
};

INLINE struct frequencies allocate_frequencies(int64_t tiles, int64_t channels) {
    const int64_t of_tile = spread(channels), of_frequency = spread(tiles * of_tile);
    return (struct frequencies){memory(FREQUENCIES * of_frequency * sizeof(float)), of_frequency, of_tile};
}

/* Where a square's pixels are; `nothing`, which is zeros, is where the map has none, and from `end_row` and `end_column` on. */
INLINE void find_pixels(
    const struct maps *maps, int64_t image, int64_t row, int64_t column, int64_t end_row, int64_t end_column,
    const int size, const value *nothing, const value **pixels
) {
    for (int y = 0; y < size; y++) {
        const int row_inside = (uint64_t)(row + y) < (uint64_t)end_row;
        const value *line = maps->values + ((image * maps->height + row + y) * maps->width + column) * maps->channels;
        for (int x = 0; x < size; x++) {
            const int inside = row_inside & ((uint64_t)(column + x) < (uint64_t)end_column);
            pixels[size * y + x] = inside ? line + x * maps->channels : nothing;
        }
    }
}

/* Of a tile's pixels, of which a line has `size`, or of its gradients. */
INLINE void transform_line(const int size, const vector *x, vector *y, const int from, const int to) {
    if (size == IN)
        pixels_of_line(x, y, from, to);
    else
        gradients_of_line(x, y, from, to);
}

/* A tile's pixels, in lines of IN, or its gradients, in lines of OUT; `needed` are the frequencies in a row. */
INLINE void transform_tile(
    const struct maps *maps, const struct tile *tile, int64_t padding, const int size, const float *nothing,
    const struct frequencies *to, int64_t place, const int needed
) {
    const float *pixels[FREQUENCIES];
    const int64_t row = tile->row - padding, column = tile->column - padding;
    const int64_t end_row = size == IN ? maps->height : smaller(maps->height, row + tile->rows);
    const int64_t end_column = size == IN ? maps->width : smaller(maps->width, column + tile->columns);
    find_pixels(maps, tile->image, row, column, end_row, end_column, size, nothing, pixels);
    /* Lines of pixels, of which a small tile needs as many as frequencies, or of gradients. */
    const int lines = smaller(size, needed);
    float *at = to->values + place * to->of_tile;
    const int64_t of_frequency = to->of_frequency;
    for (int64_t c = 0; c < maps->channels; c += LANES) {
        vector half[FREQUENCIES] = {0};
#pragma GCC unroll 6
        for (int x = 0; x < lines; x++) {
            vector column[IN] = {0};
            for (int y = 0; y < lines; y++) column[y] = load(pixels[size * y + x] + c);
            transform_line(size, column, half + x, 1, size);
        }
#pragma GCC unroll 6
        for (int y = 0; y < needed; y++) {
            vector row[IN];
            transform_line(size, half + size * y, row, 1, 1);
            for (int x = 0; x < needed; x++) store(at + (IN * y + x) * of_frequency + c, row[x]);
        }
    }
}

/* --- filters ------------------------------------------------------------------------------------- */

/* Filters' frequencies, in groups of strips of the outputs: [group][frequency][strip][channel][output of the strip]. */
INLINE float *strip_of_filters(const float *transformed, int64_t channels, int64_t outputs, int64_t strip, int f) {
    const int64_t group = strip / STRIPS, of_frequency = spread(channels * STRIPS * COLUMNS * LANES);
    const int64_t before = strip_begin(outputs, strip) - strip_begin(outputs, group * STRIPS);
    return (float *)transformed + (group * FREQUENCIES + f) * of_frequency + before * channels;
}

INLINE float *allocate_filters(int64_t channels, int64_t outputs) {
    const int64_t of_frequency = spread(channels * STRIPS * COLUMNS * LANES);
    return memory(parts_of(strips_of(outputs), STRIPS) * FREQUENCIES * of_frequency * sizeof(float));
}

static void transform_filters(const struct filters *filters, float *transformed, int threads) {
    const int64_t outputs = filters->outputs, channels = filters->channels;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; output += LANES) {
        const int64_t strip = strip_with(outputs, output), begin = strip_begin(outputs, strip);
        const int64_t width = strip_begin(outputs, strip + 1) - begin;
        float *first = strip_of_filters(transformed, channels, outputs, strip, 0) + output - begin;
        const int64_t of_frequency = strip_of_filters(transformed, channels, outputs, strip, 1) + output - begin - first;
        for (int64_t c = 0; c < channels; c++) {
            vector taps[9], x[FREQUENCIES];
            taps_at(filters, output, c, taps);
            frequencies_of_taps(taps, x);
            for (int f = 0; f < FREQUENCIES; f++) store(first + f * of_frequency + c * width, x[f]);
        }
    }
}

/* --- the convolution ----------------------------------------------------------------------------- */

struct convolution {
    struct maps maps;
    struct tiling tiling;
    int64_t padding;
    const float *filters;
    const float *bias;
    struct maps outputs;
    const float *nothing;
};

/* Transforms what some outputs of a tile are from, and writes them. */
INLINE void write_tile(
    const struct convolution *own, const struct tile *tile, const float *sums, int64_t of_frequency, int64_t begin,
    int64_t width, const int needed
) {
    const struct maps *outputs = &own->outputs;
    const int64_t rows = smaller(tile->rows, outputs->height - tile->row);
    const int64_t columns = smaller(tile->columns, outputs->width - tile->column);
    const int64_t of_pixel = outputs->channels, of_line = outputs->width * of_pixel;
    float *corner = (float *)outputs->values + (tile->image * outputs->height + tile->row) * of_line +
                    tile->column * of_pixel + begin;
    for (int64_t c = 0; c < width; c += LANES) {
        vector half[OUT * IN] = {0};
#pragma GCC unroll 6
        for (int x = 0; x < needed; x++) {
            vector column[IN] = {0};
            for (int y = 0; y < needed; y++) column[y] = load(sums + (IN * y + x) * of_frequency + c);
            frequencies_of_line(column, half + x, 1, IN);
        }
        const vector bias = own->bias ? load(own->bias + begin + c) : (vector){0};
#pragma GCC unroll 4
        for (int y = 0; y < needed - 2; y++) {
            vector row[OUT];
            frequencies_of_line(half + IN * y, row, 1, 1);
            for (int x = 0; x < OUT; x++)
                if (y < rows && x < columns) store(corner + y * of_line + x * of_pixel + c, row[x] + bias);
        }
    }
}

/* Some tiles; `sums` holds as many, of the outputs that are multiplied together. */
static void convolve_tiles(
    const struct convolution *own, int64_t first, int64_t count, const struct frequencies *at_hand,
    const struct frequencies *sums
) {
    const int64_t channels = own->maps.channels, outputs = own->outputs.channels, strips = strips_of(outputs);
    struct order order;
    put_in_order(&own->tiling, first, count, &order);
    const struct tile *tiles = order.tiles;
    for (int64_t i = 0; i < count; i++) {
        ask_for_pixels(&own->maps, tiles + i + AHEAD, own->padding, IN);
        BY_SIZE(is_small(tiles + i), transform_tile, &own->maps, tiles + i, own->padding, IN, own->nothing, at_hand, i);
    }
    for (int64_t strip = 0; strip < strips; strip += STRIPS) {
        const int64_t last = smaller(strip + STRIPS, strips), begin = strip_begin(outputs, strip);
        for (int f = 0; f < FREQUENCIES; f++) {
            const struct span span = tiles_with(&order, f);
            const float *from = at_hand->values + f * at_hand->of_frequency + span.begin * at_hand->of_tile;
            float *to = sums->values + f * sums->of_frequency + span.begin * sums->of_tile;
            for (int64_t s = strip; s < last; s++) {
                const int64_t at = strip_begin(outputs, s), columns = strip_begin(outputs, s + 1) - at;
                const struct product product = {
                    from, at_hand->of_tile, 1, strip_of_filters(own->filters, channels, outputs, s, f), columns,
                    channels, to + at - begin, sums->of_tile, 0,
                };
                if (channels >= WIDE)
                    multiply_wide(&product, span.end - span.begin, columns);
                else
                    multiply(&product, span.end - span.begin, columns);
            }
        }
        const int64_t width = strip_begin(outputs, last) - begin;
        for (int64_t i = 0; i < count; i++) {
            ask_for_outputs(&own->outputs, tiles + i + AHEAD, begin, width);
            const float *from = sums->values + i * sums->of_tile;
            BY_SIZE(is_small(tiles + i), write_tile, own, tiles + i, from, sums->of_frequency, begin, width);
        }
    }
}

/* A convolution, or the gradient of its maps.
 *
 * maps     [images, height, width, channels]
 * padding  rows and columns of zeros around the maps
 * weights  [outputs, channels, 3, 3]; where `turned`, [channels, outputs, 3, 3], whose rows and columns run backwards
 * bias     [outputs], or NULL
 * results  [images, height + 2 * padding - 2, width + 2 * padding - 2, outputs], written
 *
 * Returns 0, or 1 without memory.
 */
int convolve(
    const float *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int64_t padding,
    const float *weights,
    int64_t outputs,
    int64_t turned,
    const float *bias,
    float *results,
    int threads
) {
    const struct filters filters = {weights, outputs, channels, turned};
    const int64_t out_height = height + 2 * padding - 2, out_width = width + 2 * padding - 2;
    float *transformed = allocate_filters(channels, outputs), *nothing = calloc(channels, sizeof(float));
    const struct convolution own = {
        {maps, height, width, channels}, tiling_with_short(images, out_height, out_width, 0), padding,
        transformed, bias, {results, out_height, out_width, outputs}, nothing,
    };
    const int64_t tiles = tiles_of(&own.tiling), room = tiles_at_hand(tiles, TILES, threads);
    int result = transformed && nothing ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        transform_filters(&filters, transformed, threads);
#pragma omp parallel num_threads(threads) reduction(| : result)
        {
            const struct frequencies at_hand = allocate_frequencies(room, channels);
            const struct frequencies sums = allocate_frequencies(room, smaller(STRIPS * COLUMNS * LANES, outputs));
            if (!at_hand.values || !sums.values) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < tiles; first += room)
                if (result == DONE) convolve_tiles(&own, first, smaller(room, tiles - first), &at_hand, &sums);
            free(at_hand.values);
            free(sums.values);
        }
    }
    free(transformed);
    free(nothing);
    return result;
}

/* --- the gradient of the filters ----------------------------------------------------------------- */

/* The taps' gradients of one output's filters, from sums [frequency][output][channel]. */
INLINE void write_taps(const float *sums, int64_t of_frequency, int64_t channels, float *to) {
    for (int64_t c = 0; c < channels; c += LANES) {
        vector x[FREQUENCIES], taps[9];
        for (int f = 0; f < FREQUENCIES; f++) x[f] = load(sums + f * of_frequency + c);
        taps_of_frequencies(x, taps);
        store_taps(taps, to + 9 * c, 9, LANES);
    }
}

/* The gradient of a convolution's filters. Tiles are summed up block by block, by all threads together.
 *
 * maps       [images, height, width, channels]
 * padding    rows and columns of zeros around the maps
 * gradients  of the outputs, [images, height + 2 * padding - 2, width + 2 * padding - 2, outputs]
 * results    [outputs, channels, 3, 3], written
 *
 * Returns 0, or 1 without memory.
 */
int gradient_of_filters(
    const float *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int64_t padding,
    const float *gradients,
    int64_t outputs,
    float *results,
    int threads
) {
    const struct maps of_maps = {maps, height, width, channels};
    const struct maps of_gradients = {gradients, height + 2 * padding - 2, width + 2 * padding - 2, outputs};
    const struct tiling tiling = tiling_with_short(images, of_gradients.height, of_gradients.width, 0);
    const int64_t tiles = tiles_of(&tiling), at_once = outputs * channels > WIDE * WIDE ? TILES_OF_FAR_SUMS : TILES;
    const int64_t room = tiles_at_hand(tiles, at_once, 1);
    const int64_t strips = strips_of(channels), of_frequency = spread(outputs * channels);
    float *nothing = calloc(larger(outputs, channels), sizeof(float)), *sums = memory(FREQUENCIES * of_frequency * sizeof(float));
    const struct frequencies left = allocate_frequencies(room, outputs), right = allocate_frequencies(room, channels);
    const int result = nothing && sums && left.values && right.values ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        if (!tiles) memset(sums, 0, FREQUENCIES * of_frequency * sizeof(float));
#pragma omp parallel num_threads(threads)
        {
            for (int64_t first = 0; first < tiles; first += room) {
                const int64_t count = smaller(room, tiles - first);
                struct order order;
                put_in_order(&tiling, first, count, &order);
#pragma omp for schedule(static)
                for (int64_t i = 0; i < count; i++) {
                    const struct tile *tile = order.tiles + i;
                    ask_for_pixels(&of_maps, tile + AHEAD, padding, IN);
                    ask_for_pixels(&of_gradients, tile + AHEAD, 0, OUT);
                    BY_SIZE(is_small(tile), transform_tile, &of_maps, tile, padding, IN, nothing, &right, i);
                    BY_SIZE(is_small(tile), transform_tile, &of_gradients, tile, 0, OUT, nothing, &left, i);
                }
#pragma omp for schedule(static)
                for (int64_t i = 0; i < FREQUENCIES * strips; i++) {
                    const int64_t f = i / strips, begin = strip_begin(channels, i % strips);
                    const int64_t width_of_strip = strip_begin(channels, i % strips + 1) - begin;
                    const struct span span = tiles_with(&order, f);
                    const struct product product = {
                        left.values + f * left.of_frequency + span.begin * left.of_tile, 1, left.of_tile,
                        right.values + f * right.of_frequency + span.begin * right.of_tile + begin, right.of_tile,
                        span.end - span.begin, sums + f * of_frequency + begin, channels, first > 0,
                    };
                    if (product.add && channels >= WIDE)
                        add_wide(&product, outputs, width_of_strip);
                    else
                        multiply(&product, outputs, width_of_strip);
                }
            }
#pragma omp for schedule(static)
            for (int64_t output = 0; output < outputs; output++)
                write_taps(sums + output * channels, of_frequency, channels, results + output * channels * 9);
        }
    }
    free(nothing);
    free(sums);
    free(left.values);
    free(right.values);
    return result;
}
