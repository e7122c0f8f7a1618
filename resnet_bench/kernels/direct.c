/* Convolutions with a stride, and their gradients, as matrix products of pixels where they lie.
 *
 * In channels-last order the pixels under a row of a filter's taps lie in a row, too. So an output is a sum over the
 * filter's rows of runs of `kernel * channels` products, and a block of some outputs by some vectors of channels stays in
 * registers until it is whole. The gradient of the maps is such a convolution of the outputs' gradients for each place that
 * a pixel can have in a stride, with the taps that meet it there. The gradient of the filters is a product over pixels.
 *
 * Maps are in channels-last order, [images, height, width, channels]; filters are float, [outputs, channels, kernel,
 * kernel], and their gradient [outputs, kernel, kernel, channels]. Compiled once for each type of the maps' values, which
 * -DBF16 chooses; products are summed in float. Values of bfloat16 are read in pairs, as the processor's instruction
 * multiplies them: outputs and `stride * channels` are even, and if `kernel * channels` is odd, a run reads one value more
 * and multiplies it by zero: where it is not a finite number, neither is the output.
 */

#if defined(BF16) && !defined(__AVX512BF16__)
#error this processor does not multiply bfloat16 by AVX-512
#endif

/* Rows of a block at most. */
#define ROWS 8

#include "products.h"

/* A factor is what is multiplied at once: VALUES of a map's values by as many others, whose products are added. */
#ifdef BF16
#define VALUES 2
typedef uint16_t value;
typedef uint32_t factor;
typedef __m512bh factors;
#else
#define VALUES 1
typedef float value, factor;
typedef vector factors;
#endif

/* Factors of pixels that make images worth a matrix product: small maps are multiplied some at once. */
#define PIXELS 96
/* Bytes that sums of a gradient of filters may take, of all threads. */
#define SUMS (256 << 20)

/* --- vectors ------------------------------------------------------------------------------------- */

INLINE void store_sums(float *to, vector sums) { *(unaligned *)to = sums; }

/* Where a `count` is given, only so many lanes of a vector are read or written, if it has more. */
#ifdef BF16
INLINE __mmask16 lanes_of(int64_t count) { return count < LANES ? (1 << count) - 1 : 0xffff; }

INLINE vector load(const float *from, int64_t count) {
    return (vector)_mm512_maskz_loadu_ps(lanes_of(count), from);
}

INLINE factors load_factors(const factor *from) { return (factors)_mm512_loadu_si512(from); }

INLINE vector multiply_and_add(vector sums, factor one, factors others) {
    return (vector)_mm512_dpbf16_ps((__m512)sums, (factors)_mm512_set1_epi32(one), others);
}

INLINE void store(value *to, vector numbers, int64_t count) {
    _mm256_mask_storeu_epi16(to, lanes_of(count), (__m256i)_mm512_cvtneps_pbh((__m512)numbers));
}

/* Some numbers that are `distance` apart. */
INLINE vector gather(const float *from, int64_t distance, int64_t count) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places = _mm512_mullo_epi32(lane, _mm512_set1_epi32(distance));
    return (vector)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes_of(count), places, from, sizeof(float));
}

/* Factors of numbers that follow each other. */
INLINE void pack(const vector numbers[VALUES], factor *to) {
    __m512i halves[VALUES];
    for (int i = 0; i < VALUES; i++)
        halves[i] = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)numbers[i]));
    _mm512_storeu_si512(to, _mm512_or_si512(halves[0], _mm512_slli_epi32(halves[1], 16)));
}

/* Factors of the values that lie at VALUES places `distance` apart, of which the last may be none. */
INLINE void interleave(const value *from, int64_t distance, int has_last, factor *to, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 lanes = lanes_of(count - i), others = has_last ? lanes : 0;
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from + i));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(others, from + distance + i));
        _mm512_storeu_si512(to + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}
#else
INLINE vector load(const float *from, int64_t count) {
    vector numbers = {0};
    if (count >= LANES) return *(const unaligned *)from;
    memcpy(&numbers, from, count * sizeof(float));
    return numbers;
}

INLINE factors load_factors(const factor *from) { return *(const unaligned *)from; }
INLINE vector multiply_and_add(vector sums, factor one, factors others) { return sums + one * others; }

INLINE void store(value *to, vector numbers, int64_t count) {
    if (count >= LANES)
        store_sums(to, numbers);
    else
        memcpy(to, &numbers, count * sizeof(value));
}

INLINE vector gather(const float *from, int64_t distance, int64_t count) {
    vector numbers = {0};
    for (int lane = 0; lane < smaller(count, LANES); lane++) numbers[lane] = from[lane * distance];
    return numbers;
}

INLINE void pack(const vector numbers[VALUES], factor *to) { store_sums(to, numbers[0]); }

INLINE void interleave(const value *from, int64_t distance, int has_last, factor *to, int64_t count) {
    memcpy(to, from, count * sizeof(value));
}
#endif

/* --- matrix products ----------------------------------------------------------------------------- */

/* What a block of sums runs over: lines of steps; and the factors from one to the next, of rows and of columns. */
struct steps {
    int64_t lines, steps;
    int64_t of_line, of_step;
    int64_t columns_of_line, columns_of_step;
};

/* Sums of products of some rows and some vectors of columns. */
INLINE void multiply(
    const struct steps *own, const factor *const *rows, const factor *columns, vector sums[ROWS][COLUMNS], const int count,
    const int vectors
) {
    const factor *row[ROWS];
    const int64_t steps = own->steps, of_step = own->of_step, columns_of_step = own->columns_of_step;
    for (int r = 0; r < count; r++) {
        row[r] = rows[r];
        for (int c = 0; c < vectors; c++) sums[r][c] = (vector){0};
    }
    for (int64_t line = 0; line < own->lines; line++) {
        const factor *column = columns + line * own->columns_of_line;
        int64_t at = line * own->of_line;
        for (int64_t step = 0; step < steps; step++, at += of_step, column += columns_of_step) {
            factors others[COLUMNS];
            for (int c = 0; c < vectors; c++) others[c] = load_factors(column + c * LANES);
            for (int r = 0; r < count; r++)
                for (int c = 0; c < vectors; c++) sums[r][c] = multiply_and_add(sums[r][c], row[r][at], others[c]);
        }
    }
}

/* Defines a function for all of some rows, block by block. Not inline, or the compiler is short of registers. */
#define DEFINE_BLOCKS(name, block, type)                                                                           \
    INLINE void name##_rows(const type *own, int64_t rows, const int vectors) {                                    \
        const int whole = vectors == COLUMNS ? 6 : ROWS;                                                           \
        int64_t row = 0;                                                                                           \
        for (; row + whole <= rows; row += whole) block(own, row, whole, vectors);                                 \
        for (; row + 4 <= rows; row += 4) block(own, row, 4, vectors);                                             \
        for (; row + 2 <= rows; row += 2) block(own, row, 2, vectors);                                             \
        if (row < rows) block(own, row, 1, vectors);                                                               \
    }                                                                                                              \
    static __attribute__((noinline)) void name(const type *own, int64_t rows, int64_t vectors) {                   \
        if (vectors == 1) name##_rows(own, rows, 1);                                                               \
        if (vectors == 2) name##_rows(own, rows, 2);                                                               \
        if (COLUMNS == 4 && vectors == 3) name##_rows(own, rows, 3);                                               \
        if (COLUMNS == 4 && vectors == 4) name##_rows(own, rows, 4);                                               \
    }

/* --- maps with a margin -------------------------------------------------------------------------- */

/* Maps, and the rows and columns of zeros that a copy of an image has around it; of those below and to the right only how
 * much there is of the copy tells. */
struct maps {
    const value *values;
    int64_t images, height, width, channels;
    int64_t above, left;
    /* Values of a row of a copy, whole factors of them, and of a copy. */
    int64_t of_row, of_image;
};

static struct maps maps_of(
    const value *values, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t above, int64_t below,
    int64_t left, int64_t right
) {
    const int64_t of_row = parts_of((left + width + right) * channels, VALUES) * VALUES, of_image = (above + height + below) * of_row;
    return (struct maps){values, images, height, width, channels, above, left, of_row, of_image};
}

/* Maps with the margin that a convolution has. */
static struct maps padded(
    const value *values, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride,
    int64_t padding, int64_t out_height, int64_t out_width
) {
    const int64_t below = larger((out_height - 1) * stride + kernel - padding - height, 0);
    const int64_t right = larger((out_width - 1) * stride + kernel - padding - width, 0);
    return maps_of(values, images, height, width, channels, padding, below, padding, right);
}

/* Memory for copies of some images, whose margins are zero, and for a value behind them; NULL if there is none. */
static value *copies_of(const struct maps *own, int64_t images) {
    const int64_t bytes = images * own->of_image * (int64_t)sizeof(value) + CACHE_LINE;
    value *copies = memory(bytes);
    return copies ? memset(copies, 0, bytes) : NULL;
}

/* Fills in the pixels of a copy. */
static void copy_image(const struct maps *own, int64_t image, value *to) {
    const int64_t values = own->width * own->channels;
    const value *from = own->values + image * own->height * values;
    to += own->above * own->of_row + own->left * own->channels;
    for (int64_t y = 0; y < own->height; y++) memcpy(to + y * own->of_row, from + y * values, values * sizeof(value));
}

/* --- the convolution, and the gradient of the maps ----------------------------------------------- */

/* Taps of a row or column, each `step` behind the one before it. */
struct taps {
    int64_t first, step, count;
};

/* Where a pixel's first factor lies in the copies of some images, and its result. */
struct place {
    int64_t from, to;
};

/* Results that have the same taps: all outputs, or the pixels of maps that have one place in a stride. */
struct phase {
    struct taps rows, columns;
    /* Of a pixel of the maps that are read; and of the first result and of the steps to the next, in pixels. */
    int64_t first_row, first_column, step;
    int64_t out_row, out_column, out_step;
    int64_t height, width;
};

struct convolution {
    struct maps maps;
    const float *weights;
    int64_t kernel, of_input, of_output;
    const float *bias;
    value *results;
    int64_t height, width, outputs;
    int threads;
};

struct block {
    struct steps steps;
    const factor *maps, *filters;
    const struct place *places;
    const float *bias;
    value *results;
    /* Outputs in the strip. */
    int64_t outputs;
};

INLINE void convolve_block(const struct block *own, int64_t first, const int count, const int vectors) {
    const factor *rows[ROWS];
    vector sums[ROWS][COLUMNS];
    for (int r = 0; r < count; r++) rows[r] = own->maps + own->places[first + r].from;
    multiply(&own->steps, rows, own->filters, sums, count, vectors);
    for (int c = 0; c < vectors; c++) {
        const int64_t there = own->outputs - c * LANES;
        const vector bias = own->bias ? load(own->bias + c * LANES, there) : (vector){0};
        for (int r = 0; r < count; r++)
            store(own->results + own->places[first + r].to + c * LANES, sums[r][c] + bias, there);
    }
}

DEFINE_BLOCKS(convolve_pixels, convolve_block, struct block)

/* Filters of a phase, strip by strip of the outputs: [strip][row of taps][factor of taps and inputs][output of the strip]. */
static void pack_filters(const struct convolution *own, const struct phase *phase, const struct steps *steps, factor *to) {
    const int64_t channels = own->maps.channels;
#pragma omp parallel for collapse(2) num_threads(own->threads) schedule(static)
    for (int64_t output = 0; output < own->outputs; output += LANES)
        for (int64_t line = 0; line < steps->lines; line++) {
            const int64_t strip = strip_with(own->outputs, output);
            const int64_t begin = strip_begin(own->outputs, strip), width = strip_begin(own->outputs, strip + 1) - begin;
            const float *weights = own->weights + output * own->of_output;
            const int64_t tap_row = phase->rows.first + line * phase->rows.step;
            factor *packed = to + begin * steps->lines * steps->steps + line * steps->steps * width + output - begin;
            int64_t column = 0, input = 0;
            for (int64_t step = 0; step < steps->steps; step++, packed += width) {
                vector found[VALUES] = {0};
                for (int i = 0; i < VALUES; i++) {
                    const int64_t tap = own->kernel * tap_row + phase->columns.first + column * phase->columns.step;
                    const float *from = weights + input * own->of_input + tap;
                    if (column < phase->columns.count) found[i] = gather(from, own->of_output, own->outputs - output);
                    if (++input == channels) input = 0, column++;
                }
                pack(found, packed);
            }
        }
}

/* Computes a phase of some images, whose copies lie one behind the other. */
static void convolve_images(
    const struct convolution *own, const struct block *phase, int64_t pixels, int64_t image, value *copies
) {
    struct block block = *phase;
    block.maps = (const factor *)copies;
    value *results = own->results + image * own->height * own->width * own->outputs;
    for (int64_t strip = 0; strip < strips_of(own->outputs); strip++) {
        const int64_t begin = strip_begin(own->outputs, strip), end = strip_begin(own->outputs, strip + 1);
        block.filters = phase->filters + begin * block.steps.lines * block.steps.steps;
        block.steps.columns_of_step = end - begin;
        block.steps.columns_of_line = block.steps.steps * (end - begin);
        block.bias = own->bias ? own->bias + begin : NULL;
        block.results = results + begin;
        block.outputs = own->outputs - begin;
        convolve_pixels(&block, pixels, (end - begin) / LANES);
    }
}

/* Where the pixels of a phase lie, image behind image. */
static void find_places(const struct convolution *own, const struct phase *phase, int64_t images, struct place *places) {
    const struct maps *maps = &own->maps;
    for (int64_t image = 0; image < images; image++)
        for (int64_t y = 0; y < phase->height; y++)
            for (int64_t x = 0; x < phase->width; x++, places++) {
                const int64_t row = maps->above + phase->first_row + y * phase->step;
                const int64_t column = maps->left + phase->first_column + x * phase->step;
                const int64_t out_row = phase->out_row + y * phase->out_step;
                const int64_t out_column = phase->out_column + x * phase->out_step;
                places->from = (image * maps->of_image + row * maps->of_row + column * maps->channels) / VALUES;
                places->to = ((image * own->height + out_row) * own->width + out_column) * own->outputs;
            }
}

/* Computes all phases. */
static int convolve_phases(const struct convolution *own, const struct phase *phases, int count) {
    const int64_t channels = own->maps.channels, all = own->maps.images;
    const int64_t at_once = smaller(all, parts_of(PIXELS, larger(phases->height * phases->width, 1)));
    struct block blocks[count];
    int result = DONE;
    for (int i = 0; i < count; i++) {
        const struct phase *phase = phases + i;
        struct block *block = blocks + i;
        const int64_t steps = parts_of(phase->columns.count * channels, VALUES);
        *block = (struct block){{phase->rows.count, steps, own->maps.of_row / VALUES, 1}};
        const int64_t taps = phase->rows.count * steps;
        factor *filters = memory(larger(taps, 1) * filled(own->outputs) * sizeof(factor));
        struct place *places = memory(larger(at_once * phase->height * phase->width, 1) * sizeof(struct place));
        block->filters = filters, block->places = places;
        if (!filters || !places) {
            result = OUT_OF_MEMORY;
            continue;
        }
        pack_filters(own, phase, &block->steps, filters);
        find_places(own, phase, at_once, places);
    }
    if (result == DONE) {
#pragma omp parallel num_threads(own->threads) reduction(| : result)
        {
            value *copies = copies_of(&own->maps, at_once);
            if (!copies) result |= OUT_OF_MEMORY;
#pragma omp for schedule(static)
            for (int64_t first = 0; first < all; first += at_once) {
                if (!copies) continue;
                const int64_t images = smaller(at_once, all - first);
                for (int64_t image = 0; image < images; image++)
                    copy_image(&own->maps, first + image, copies + image * own->maps.of_image);
                for (int i = 0; i < count; i++)
                    convolve_images(own, blocks + i, images * phases[i].height * phases[i].width, first, copies);
            }
            free(copies);
        }
    }
    for (int i = 0; i < count; i++) {
        free((void *)blocks[i].filters);
        free((void *)blocks[i].places);
    }
    return result;
}

/* Computes a convolution. Returns 0, or 1 without memory.
 *
 *   bias: [outputs], or null.
 *   results: [images, out_height, out_width, outputs].
 */
int convolve(
    const value *maps, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride,
    int64_t padding, const float *weights, const float *bias, value *results, int64_t out_height, int64_t out_width,
    int64_t outputs, int threads
) {
    const struct convolution own = {
        padded(maps, images, height, width, channels, kernel, stride, padding, out_height, out_width),
        weights, kernel, kernel * kernel, channels * kernel * kernel,
        bias, results, out_height, out_width, outputs, threads,
    };
    const struct taps taps = {0, 1, kernel};
    const struct phase phase = {taps, taps, -padding, -padding, stride, 0, 0, 1, out_height, out_width};
    return convolve_phases(&own, &phase, 1);
}

/* Taps of the filter that meet a map's pixel, from the last on, and the first output that one of them belongs to. */
static struct taps taps_at(int64_t place, int64_t kernel, int64_t stride, int64_t padding, int64_t *output) {
    const int64_t first = (place + padding) % stride, count = parts_of(kernel - first, stride);
    *output = (place + padding) / stride - (count - 1);
    return (struct taps){first + stride * (count - 1), -stride, count};
}

/* Computes the gradient of the maps: [images, height, width, channels]. Returns 0, or 1 without memory.
 *
 * The kernel is as long as the stride, or longer, and longer than the padding.
 */
int gradient_of_maps(
    const value *gradients, int64_t images, int64_t out_height, int64_t out_width, int64_t outputs, int64_t kernel,
    int64_t stride, int64_t padding, const float *weights, value *results, int64_t height, int64_t width, int64_t channels,
    int threads
) {
    struct phase phases[stride * stride];
    int64_t above = 0, below = 0, left = 0, right = 0;
    for (int64_t y = 0; y < stride; y++)
        for (int64_t x = 0; x < stride; x++) {
            struct phase *phase = phases + y * stride + x;
            *phase = (struct phase){.step = 1, .out_row = y, .out_column = x, .out_step = stride};
            phase->rows = taps_at(y, kernel, stride, padding, &phase->first_row);
            phase->columns = taps_at(x, kernel, stride, padding, &phase->first_column);
            phase->height = parts_of(larger(height - y, 0), stride), phase->width = parts_of(larger(width - x, 0), stride);
            above = larger(above, -phase->first_row), left = larger(left, -phase->first_column);
            below = larger(below, phase->first_row + phase->height - 1 + phase->rows.count - out_height);
            right = larger(right, phase->first_column + phase->width - 1 + phase->columns.count - out_width);
        }
    const struct convolution own = {
        maps_of(gradients, images, out_height, out_width, outputs, above, below, left, right),
        weights, kernel, channels * kernel * kernel, kernel * kernel,
        NULL, results, height, width, channels, threads,
    };
    return convolve_phases(&own, phases, stride * stride);
}

/* --- the gradient of the filters ----------------------------------------------------------------- */

/* Factors of the pixels of some images: those of the gradients, [image][factor][output]; and of the maps, for each the
 * channels under a row of taps, [image][row within the stride][row][factor in the row][tap and channel]. */
struct gradient {
    struct maps maps;
    const value *gradients;
    int64_t out_height, out_width, outputs;
    int64_t kernel, stride;
    /* Factors of a row; taps and channels of a row of filters; both and outputs filled up. */
    int64_t factors_of_row, columns, room, gradients_room;
    /* Rows of the maps that have one place in a stride, and factors of an image's, and of its gradients'. */
    int64_t rows, of_image, of_gradients;
    int64_t at_once, parts, of_part;
    float *sums;
};

static void arrange_maps(const struct gradient *own, const value *copy, factor *to) {
    const struct maps *maps = &own->maps;
    const int64_t of_pixel = own->stride * maps->channels;
    for (int64_t row = 0; row < (own->out_height - 1) * own->stride + own->kernel; row++) {
        const value *from = copy + row * maps->of_row;
        factor *factors = to + (row % own->stride * own->rows + row / own->stride) * own->factors_of_row * own->room;
        for (int64_t x = 0; x < own->out_width; x += VALUES, from += VALUES * of_pixel, factors += own->room)
            interleave(from, of_pixel, x + 1 < own->out_width, factors, own->columns);
    }
}

static void arrange_gradients(const struct gradient *own, int64_t image, factor *to) {
    const value *from = own->gradients + image * own->out_height * own->out_width * own->outputs;
    for (int64_t y = 0; y < own->out_height; y++)
        for (int64_t x = 0; x < own->out_width; x += VALUES, to += own->gradients_room) {
            const value *pixel = from + (y * own->out_width + x) * own->outputs;
            interleave(pixel, own->outputs, x + 1 < own->out_width, to, own->outputs);
        }
}

struct sum_block {
    struct steps steps;
    const factor *gradients, *maps;
    float *sums;
    int64_t of_sum;
    int add;
};

INLINE void sum_up_block(const struct sum_block *own, int64_t first, const int count, const int vectors) {
    const factor *rows[ROWS];
    vector sums[ROWS][COLUMNS];
    for (int r = 0; r < count; r++) rows[r] = own->gradients + first + r;
    multiply(&own->steps, rows, own->maps, sums, count, vectors);
    for (int r = 0; r < count; r++)
        for (int c = 0; c < vectors; c++) {
            float *to = own->sums + (first + r) * own->of_sum + c * LANES;
            if (own->add) sums[r][c] += load(to, LANES);
            store_sums(to, sums[r][c]);
        }
}

DEFINE_BLOCKS(sum_up, sum_up_block, struct sum_block)

/* Adds what some images give to sums, [row of taps][output][tap and channel]. */
static void add_images(
    const struct gradient *own, int64_t images, const factor *maps, const factor *gradients, float *sums, int add
) {
    for (int64_t line = 0; line < own->kernel; line++)
        for (int64_t strip = 0; strip < strips_of(own->columns); strip++) {
            const int64_t begin = strip_begin(own->columns, strip), end = strip_begin(own->columns, strip + 1);
            const int64_t row = line % own->stride * own->rows + line / own->stride;
            const struct sum_block block = {
                {images, own->out_height * own->factors_of_row,
                 own->of_gradients, own->gradients_room, own->of_image, own->room},
                gradients, maps + row * own->factors_of_row * own->room + begin,
                sums + line * own->outputs * own->room + begin, own->room, add,
            };
            sum_up(&block, own->outputs, (end - begin) / LANES);
        }
}

static int add_part(const struct gradient *own, int64_t part) {
    const int64_t groups = parts_of(own->maps.images, own->at_once);
    const int64_t begin = groups * part / own->parts * own->at_once;
    const int64_t end = smaller(groups * (part + 1) / own->parts * own->at_once, own->maps.images);
    value *copy = copies_of(&own->maps, 1);
    factor *maps = memory(own->at_once * own->of_image * sizeof(factor));
    factor *gradients = memory(own->at_once * own->of_gradients * sizeof(factor));
    const int result = copy && maps && gradients ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        float *sums = own->sums + part * own->of_part;
        if (begin >= end) memset(sums, 0, own->of_part * sizeof(float));
        for (int64_t first = begin; first < end; first += own->at_once) {
            const int64_t images = smaller(own->at_once, end - first);
            for (int64_t image = 0; image < images; image++) {
                copy_image(&own->maps, first + image, copy);
                arrange_maps(own, copy, maps + image * own->of_image);
                arrange_gradients(own, first + image, gradients + image * own->of_gradients);
            }
            add_images(own, images, maps, gradients, sums, first > begin);
        }
    }
    free(copy);
    free(maps);
    free(gradients);
    return result;
}

/* Computes the gradient of the filters, [outputs, kernel, kernel, channels]. Returns 0, or 1 without memory.
 *
 * It is summed up in as many parts as there are threads.
 */
int gradient_of_filters(
    const value *maps, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride,
    int64_t padding, const value *gradients, int64_t out_height, int64_t out_width, int64_t outputs, float *results,
    int threads
) {
    const int64_t factors_of_row = parts_of(out_width, VALUES), columns = kernel * channels;
    const int64_t rows = out_height + (kernel - 1) / stride;
    const int64_t room = filled(columns), gradients_room = filled(outputs), of_part = kernel * outputs * room;
    const int64_t affordable = SUMS / (of_part * (int64_t)sizeof(float)), parts = smaller(threads, affordable + 1);
    const struct gradient own = {
        padded(maps, images, height, width, channels, kernel, stride, padding, out_height, out_width),
        gradients, out_height, out_width, outputs, kernel, stride, factors_of_row, columns, room, gradients_room,
        rows, stride * rows * factors_of_row * room, out_height * factors_of_row * gradients_room,
        smaller(images, parts_of(PIXELS, out_height * factors_of_row)), parts, of_part,
        memory(parts * of_part * sizeof(float)),
    };
    int result = own.sums ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
#pragma omp parallel for num_threads(parts) schedule(static) reduction(| : result)
        for (int64_t part = 0; part < parts; part++) result |= add_part(&own, part);
    }
    if (result == DONE) {
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
        for (int64_t output = 0; output < outputs; output++)
            for (int64_t line = 0; line < kernel; line++) {
                const float *sums = own.sums + (line * outputs + output) * room;
                float *to = results + (output * kernel + line) * columns;
                for (int64_t i = 0; i < columns; i++) {
                    float sum = sums[i];
                    for (int64_t part = 1; part < parts; part++) sum += sums[part * of_part + i];
                    to[i] = sum;
                }
            }
    }
    free(own.sums);
    return result;
}
