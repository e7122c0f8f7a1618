/* BatchNorm in training, with the activation behind it and a 2x2 max pool before or behind it, or a 3x3 one of stride 2
 * behind it, in as few passes over memory as there can be: two forward (one where a pool comes first, whose output is
 * small), two backward. Or with the shortcut of a residual block added before the activation, which may be normalised itself.
 *
 * Maps are in channels-last order, [images, height, width, channels]. Compiled once for each type of their values, which
 * -DBF16 chooses; whatever is computed is computed in float, and summed up over rows in double. The work is cut into
 * parts that do not depend on the number of threads, and their sums are added in one order: so the bits do not either.
 */

#include <math.h>

#include "vectors.h"

/* Windows of 2x2, or OVERLAPPING ones: of 3x3 around every second pixel of every second row. */
enum pool { NO_POOL, POOL_BEFORE, POOL_BEHIND, OVERLAPPING_BEHIND };
enum activation { IDENTITY, RELU, SILU };

/* Parts of the work: more than any processor here has threads, of enough rows that their sums are nothing. */
#define MOST_PARTS 64
#define ROWS_IN_PART 64
/* Rows whose values are summed in float before they are added in double. */
#define ROWS_IN_FLOAT 512
/* And rows that are summed before they are added to those, which costs fewer digits; what belongs to a channel is read once
 * for them. */
#define ROWS_TOGETHER 8
/* From what is computed to what the memory is asked for; at least as many rows as are summed together. */
#define BYTES_AHEAD 4096

/* --- values -------------------------------------------------------------------------------------- */

/* Channels are computed LANES at a time; their number is a multiple of 16. */
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

INLINE floats numbers(const float *from) {
    floats read;
    memcpy(&read, from, sizeof read);
    return read;
}

INLINE void put(float *to, floats numbers) { memcpy(to, &numbers, sizeof numbers); }

INLINE floats choose(ints mask, floats yes, floats no) { return (floats)((mask & (ints)yes) | (~mask & (ints)no)); }

#ifdef BF16
typedef uint16_t value;
typedef uint16_t values __attribute__((vector_size(2 * LANES)));

INLINE floats load(const value *from) {
    values read;
    memcpy(&read, from, sizeof read);
    return (floats)(__builtin_convertvector(read, words) << 16);
}

/* To the nearest, ties to even, as torch rounds. */
INLINE void store(value *to, floats numbers) {
#ifdef __AVX512BF16__
    const __m256bh written = _mm512_cvtneps_pbh((__m512)numbers);
#else
    words bits = (words)numbers;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    ints nan = numbers != numbers;
    values written = __builtin_convertvector((words)((nan & 0x7fc0) | (~nan & (ints)rounded)), values);
#endif
    memcpy(to, &written, sizeof written);
}
#else
typedef float value;

INLINE floats load(const value *from) { return numbers(from); }
INLINE void store(value *to, floats numbers) { put(to, numbers); }
#endif

INLINE ints load_places(const uint8_t *from) {
    bytes read;
    memcpy(&read, from, sizeof read);
    return __builtin_convertvector(read, ints);
}

INLINE void store_places(uint8_t *to, ints places) {
    bytes written = __builtin_convertvector(places, bytes);
    memcpy(to, &written, sizeof written);
}

/* --- activations --------------------------------------------------------------------------------- */

/* 1 / (1 + exp(-x)): the power of two by its exponent's bits, and a polynomial for what is left, within a millionth. */
INLINE floats sigmoid(floats x) {
    const floats zero = {0};
    floats exponent = x * -1.44269504f;
    exponent = choose(exponent < -126.0f, zero - 126.0f, exponent);
    exponent = choose(exponent > 126.0f, zero + 126.0f, exponent);
    const float round_by_adding = 12582912.0f;
    floats whole = (exponent + round_by_adding) - round_by_adding, rest = exponent - whole;
    floats polynomial = zero + 1.5403530e-4f;
    polynomial = polynomial * rest + 1.3333558e-3f;
    polynomial = polynomial * rest + 9.6181291e-3f;
    polynomial = polynomial * rest + 5.5504109e-2f;
    polynomial = polynomial * rest + 2.4022651e-1f;
    polynomial = polynomial * rest + 6.9314718e-1f;
    polynomial = polynomial * rest + 1.0f;
    floats power = (floats)((__builtin_convertvector(whole, ints) + 127) << 23);
    return 1.0f / (1.0f + polynomial * power);
}

INLINE floats activated(floats x, enum activation activation) {
    switch (activation) {
    case RELU:
        return (floats)(~(x < 0.0f) & (ints)x);
    case SILU:
        return x * sigmoid(x);
    default:
        return x;
    }
}

/* The derivative of the activation at x, times a gradient. */
INLINE floats pulled_back(floats gradient, floats x, enum activation activation) {
    switch (activation) {
    case RELU:
        /* As torch's: where x is not a number, the gradient is passed on. */
        return (floats)(~(x <= 0.0f) & (ints)gradient);
    case SILU: {
        floats passed = sigmoid(x);
        return gradient * passed * (1.0f + x * (1.0f - passed));
    }
    default:
        return gradient;
    }
}

/* Calls a function with an activation behind its arguments, a separate loop per activation. */
#define WITH_ACTIVATION(activation, function, ...)      \
    do {                                                \
        switch (activation) {                           \
        case IDENTITY:                                  \
            function(__VA_ARGS__, IDENTITY);            \
            break;                                      \
        case RELU:                                      \
            function(__VA_ARGS__, RELU);                \
            break;                                      \
        case SILU:                                      \
            function(__VA_ARGS__, SILU);                \
            break;                                      \
        }                                               \
    } while (0)

/* --- sums over rows ------------------------------------------------------------------------------ */

/* For each channel two sums; `recent` is of the last rows, in float. */
struct sums {
    int64_t channels;
    int64_t rows;
    float *recent;
    double *total;
};

INLINE void settle(struct sums *sums) {
    for (int64_t i = 0; i < 2 * sums->channels; i++) {
        sums->total[i] += sums->recent[i];
        sums->recent[i] = 0.0f;
    }
    sums->rows = 0;
}

INLINE int64_t end_of_rows(int64_t row, int64_t last) { return row + ROWS_TOGETHER < last ? row + ROWS_TOGETHER : last; }

INLINE int begins_line(int64_t c) { return c % (CACHE_LINE / (int64_t)sizeof(value)) == 0; }

/* Asks the memory for channels of rows that come later. The processor sees them coming by itself where rows are narrow; a
 * few wide ones fill a page, behind which it does not look. */
INLINE void ask_ahead(const value *maps, int64_t row, int64_t c, int64_t channels) {
    const int64_t away = BYTES_AHEAD / (int64_t)sizeof(value) / channels;
    const int64_t first = row + (away < ROWS_TOGETHER ? ROWS_TOGETHER : away);
    if (!begins_line(c)) return;
    for (int64_t next = first; next < first + ROWS_TOGETHER; next++) __builtin_prefetch(maps + next * channels + c);
}

/* Asks for what the next band of overlapping windows has two rows below a square of 2x2 pixels. */
INLINE void ask_below(const value *corner, int64_t below, int64_t c, int64_t channels) {
    if (!begins_line(c)) return;
    for (int y = 2; y < 4; y++)
        for (int x = 0; x < 2; x++) __builtin_prefetch(corner + y * below + x * channels, 0, 2);
}

/* Blocks of some rows and of channels that are computed at once: from each one's first `row` and channel `c` on. */
#define FOR_BLOCKS(row, c, first, last, channels)                           \
    for (int64_t row = first; row < last; row += ROWS_TOGETHER)             \
        for (int64_t c = 0; c < channels; c += LANES)

/* The places `at` of a block's values. */
#define FOR_VALUES(at, row, c, last, channels)                              \
    for (int64_t at = row * channels + c, behind = end_of_rows(row, last) * channels; at < behind; at += channels)

INLINE void count_rows(struct sums *sums, int64_t rows) {
    sums->rows += rows;
    if (sums->rows >= ROWS_IN_FLOAT) settle(sums);
}

/* One set of sums for each part of the work, and vectors of a number for each channel. */
struct parts {
    int64_t count;
    struct sums sums[MOST_PARTS];
    float *recent;
    double *total;
    float *vectors;
};

static int begin(struct parts *parts, int64_t rows, int64_t channels) {
    const int64_t count = rows / ROWS_IN_PART;
    parts->count = count < 1 ? 1 : count > MOST_PARTS ? MOST_PARTS : count;
    parts->vectors = malloc(4 * channels * sizeof(float));
    parts->recent = calloc(parts->count * 2 * channels, sizeof(float));
    parts->total = calloc(parts->count * 2 * channels, sizeof(double));
    for (int64_t part = 0; part < parts->count; part++)
        parts->sums[part] = (struct sums){
            channels, 0, parts->recent + part * 2 * channels, parts->total + part * 2 * channels
        };
    return parts->vectors && parts->recent && parts->total ? DONE : OUT_OF_MEMORY;
}

/* Adds all parts up in the first one's. */
static double *finish(struct parts *parts) {
    for (int64_t part = 0; part < parts->count; part++) {
        settle(&parts->sums[part]);
        for (int64_t i = 0; part && i < 2 * parts->sums->channels; i++) parts->total[i] += parts->sums[part].total[i];
    }
    return parts->total;
}

static void end(struct parts *parts) {
    free(parts->vectors);
    free(parts->recent);
    free(parts->total);
}

INLINE void add_to(struct sums *sums, int64_t c, floats first, floats second) {
    float *recent = sums->recent + c, *other = recent + sums->channels;
    put(recent, numbers(recent) + first);
    put(other, numbers(other) + second);
}

/* Adds the distances of values from `reference`, and their squares. */
INLINE void add_moments(struct sums *sums, const value *rows, int64_t count, const float *reference) {
    const int64_t channels = sums->channels;
    FOR_BLOCKS(row, c, 0, count, channels) {
        floats first = {0}, second = {0};
        const floats center = numbers(reference + c);
        ask_ahead(rows, row, c, channels);
        FOR_VALUES(at, row, c, count, channels) {
            floats distance = load(rows + at) - center;
            first += distance;
            second += distance * distance;
        }
        add_to(sums, c, first, second);
    }
    count_rows(sums, count);
}

/* --- the layer ----------------------------------------------------------------------------------- */

struct layer {
    int64_t images, height, width, channels;
    enum pool pool;
    enum activation activation;
    const float *mean;
    /* What comes before the activation is scale * value + shift. */
    float *scale, *shift;
    /* The gradient of a value is scale * gradient - (offset + pull * value), gradient being that before the activation. */
    float *offset, *pull;
};

/* The layer, in the vectors that `begin` made. */
static struct layer layer_of(
    const struct parts *parts,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    enum pool pool,
    enum activation activation,
    const float *mean
) {
    float *vectors = parts->vectors;
    return (struct layer){
        images, height, width, channels, pool, activation,
        mean, vectors, vectors + channels, vectors + 2 * channels, vectors + 3 * channels,
    };
}

/* What is left of a map's height or width by the pool. */
INLINE int64_t pooled_size(const struct layer *layer, int64_t size) {
    return layer->pool == NO_POOL ? size : layer->pool == OVERLAPPING_BEHIND ? (size + 1) / 2 : size / 2;
}

/* The work is handed out in bands: a row of a map, or two where they are pooled. */
INLINE int64_t bands_of(const struct layer *layer) { return layer->images * pooled_size(layer, layer->height); }

struct band {
    int64_t whole;  /* where it begins in the whole map */
    int64_t pooled; /* and in the pooled one */
    int last_of_odd; /* whether the row that the pool leaves out follows; of overlapping windows, whether there is one row */
    int is_first, is_last; /* of its map */
};

INLINE struct band band_at(const struct layer *layer, int64_t index) {
    const int64_t row = layer->width * layer->channels;
    if (layer->pool == NO_POOL) return (struct band){index * row, index * row, 0, 0, 0};
    const int64_t bands = pooled_size(layer, layer->height), image = index / bands, band = index % bands;
    return (struct band){
        (image * layer->height + 2 * band) * row,
        index * pooled_size(layer, layer->width) * layer->channels,
        layer->height % 2 && band == bands - 1, band == 0, band == bands - 1,
    };
}

/* Values of the output in a band. */
INLINE int64_t columns_of(const struct layer *layer) { return pooled_size(layer, layer->width); }

/* Rows of the whole map in a band, with the one that the pool leaves out. */
INLINE int64_t rows_of(const struct layer *layer, const struct band *band) {
    return layer->pool == OVERLAPPING_BEHIND ? 2 - band->last_of_odd : 2 + band->last_of_odd;
}

/* How many values of each channel the moments are of. */
static double values_of(const struct layer *layer) {
    if (layer->pool == POOL_BEFORE) return (double)layer->images * (layer->height / 2) * (layer->width / 2);
    return (double)layer->images * layer->height * layer->width;
}

/* What belongs to some channels, read once for a block: the compiler cannot know that nothing written changes it. */
struct constants {
    floats mean, scale, shift, offset, pull;
};

INLINE struct constants constants_at(const struct layer *layer, int64_t c) {
    return (struct constants){
        numbers(layer->mean + c), numbers(layer->scale + c), numbers(layer->shift + c),
        numbers(layer->offset + c), numbers(layer->pull + c),
    };
}

static void set_scale(
    const struct layer *layer, const float *variance, const float *weight, const float *bias, float eps
) {
    for (int64_t c = 0; c < layer->channels; c++) {
        layer->scale[c] = (float)((weight ? weight[c] : 1.0) / sqrt((double)variance[c] + eps));
        layer->shift[c] = (float)((bias ? bias[c] : 0.0) - (double)layer->mean[c] * layer->scale[c]);
    }
}

/* --- forward ------------------------------------------------------------------------------------- */

/* As for torch: NaN is passed on, and of equal values the first is taken. */
INLINE ints is_larger(floats other, floats best) { return (other > best) | (other != other); }

INLINE void take_larger(floats *best, ints *place, floats other, int32_t at) {
    ints larger = is_larger(other, *best);
    *best = choose(larger, other, *best);
    *place = (larger & at) | (~larger & *place);
}

/* What comes before the activation. */
INLINE floats scaled(const struct constants *own, floats x) { return x * own->scale + own->shift; }

/* The places `at` of a band's pooled values, and the first channel `c` of each. */
#define FOR_WINDOWS(at, c, layer)                                                       \
    for (int64_t column = 0; column < layer->width / 2; column++)                       \
        for (int64_t c = 0, at = column * layer->channels; c < layer->channels; c += LANES, at += LANES)

/* The largest of each window of 2x2, and which it was; of values as they are or, if `activate`, normalised and activated. */
INLINE void pool_band(
    const struct layer *layer,
    const value *band,
    value *pooled,
    uint8_t *places,
    int activate,
    enum activation activation
) {
    const int64_t channels = layer->channels, below = layer->width * channels;
    /* ReLU keeps the order, so that the largest alone needs it. */
    const enum activation each = activation == RELU ? IDENTITY : activation, last = activation == RELU ? RELU : IDENTITY;
    FOR_WINDOWS(at, c, layer) {
        const struct constants own = activate ? constants_at(layer, c) : (struct constants){0};
        const value *corner = band + 2 * at - c;
        floats window[] = {
            load(corner), load(corner + channels), load(corner + below), load(corner + below + channels)
        };
        if (activate)
            for (int i = 0; i < 4; i++) window[i] = activated(scaled(&own, window[i]), each);
        floats best = window[0];
        ints place = {0};
        for (int i = 1; i < 4; i++) take_larger(&best, &place, window[i], i);
        store(pooled + at, activated(best, last));
        store_places(places + at, place);
    }
}

/* A pixel's channels in three rows: as they are, and normalised and activated. */
struct pixels {
    floats plain[3], activated[3];
};

/* Those of some rows; what is outside of the map is never the largest. */
INLINE struct pixels pixels_at(
    const value *middle, int64_t below, const int inside[3], const struct constants *own, enum activation activation
) {
    struct pixels found;
    for (int row = 0; row < 3; row++) {
        found.plain[row] = inside[row] ? load(middle + (row - 1) * below) : (floats){0};
        found.activated[row] = inside[row] ? activated(scaled(own, found.plain[row]), activation) : (floats){0} - INFINITY;
    }
    return found;
}

/* The largest of each overlapping window of a band, which of the nine it was, and what it was before it was normalised. */
INLINE void pool_overlapping_band(
    const struct layer *layer,
    const struct band *band,
    const value *maps,
    value *pooled,
    value *largest,
    uint8_t *places,
    enum activation activation
) {
    const int64_t channels = layer->channels, width = layer->width, below = width * channels;
    const enum activation each = activation == RELU ? IDENTITY : activation, last = activation == RELU ? RELU : IDENTITY;
    const int inside[3] = {!band->is_first, 1, !band->last_of_odd}, nowhere[3] = {0};
    for (int64_t c = 0; c < channels; c += LANES) {
        const struct constants own = constants_at(layer, c);
        const value *middle = maps + band->whole + c;
        struct pixels columns[3];
        columns[2] = pixels_at(middle, below, nowhere, &own, each);
        for (int64_t column = 0; column < width; column += 2, middle += 2 * channels) {
            ask_below(middle, below, c, channels);
            columns[0] = columns[2];
            columns[1] = pixels_at(middle, below, inside, &own, each);
            columns[2] = pixels_at(middle + channels, below, column + 1 < width ? inside : nowhere, &own, each);
            /* The one in the middle is always there. */
            floats best = (floats){0} - INFINITY, plain = columns[1].plain[1];
            ints place = (ints){0} + 4;
            for (int i = 0; i < 9; i++) {
                const floats other = columns[i % 3].activated[i / 3];
                const ints larger = is_larger(other, best);
                best = choose(larger, other, best);
                plain = choose(larger, columns[i % 3].plain[i / 3], plain);
                place = (larger & i) | (~larger & place);
            }
            const int64_t at = band->pooled + column / 2 * channels + c;
            store(pooled + at, activated(best, last));
            store(largest + at, plain);
            store_places(places + at, place);
        }
    }
}

INLINE void activate_rows(
    const struct layer *layer, const value *maps, value *outputs, int64_t first, int64_t last, enum activation activation
) {
    const int64_t channels = layer->channels;
    FOR_BLOCKS(row, c, first, last, channels) {
        const struct constants own = constants_at(layer, c);
        ask_ahead(maps, row, c, channels);
        ask_ahead(outputs, row, c, channels);
        FOR_VALUES(at, row, c, last, channels) store(outputs + at, activated(scaled(&own, load(maps + at)), activation));
    }
}

/* Moments of what is normalised: of the maps, or of their maxima, which are made on the way. */
static void measure(
    const struct layer *layer,
    const value *maps,
    const float *reference,
    value *pooled,
    uint8_t *places,
    struct sums *sums,
    int64_t first,
    int64_t last
) {
    const int64_t width = layer->width, row = width * layer->channels;
    if (layer->pool == NO_POOL) {
        /* Bands follow each other without a gap; narrow ones are taken together. */
        const int64_t together = 1 + (ROWS_IN_FLOAT - 1) / width;
        for (int64_t index = first; index < last; index += together)
            add_moments(
                sums, maps + index * row, (last - index < together ? last - index : together) * width, reference
            );
        return;
    }
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        if (layer->pool == POOL_BEFORE) {
            pool_band(layer, maps + band.whole, pooled + band.pooled, places + band.pooled, 0, IDENTITY);
            add_moments(sums, pooled + band.pooled, width / 2, reference);
        } else
            add_moments(sums, maps + band.whole, rows_of(layer, &band) * width, reference);
    }
}

INLINE void normalize_as(
    const struct layer *layer,
    const value *maps,
    value *outputs,
    value *largest,
    uint8_t *places,
    int64_t first,
    int64_t last,
    enum activation activation
) {
    const int64_t columns = columns_of(layer);
    if (layer->pool == NO_POOL || layer->pool == POOL_BEFORE) {
        activate_rows(layer, maps, outputs, first * columns, last * columns, activation);
        return;
    }
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        if (layer->pool == OVERLAPPING_BEHIND)
            pool_overlapping_band(layer, &band, maps, outputs, largest, places, activation);
        else
            pool_band(layer, maps + band.whole, outputs + band.pooled, places + band.pooled, 1, activation);
    }
}

/* `maps` is what is normalised: of a pool that comes first, its output. */
static void normalize(
    const struct layer *layer, const value *maps, value *outputs, value *largest, uint8_t *places, int64_t first, int64_t last
) {
    WITH_ACTIVATION(layer->activation, normalize_as, layer, maps, outputs, largest, places, first, last);
}

/* Mean and variance of what is normalised, and from them the layer's scale and shift. */
static void take_moments(
    const struct layer *layer,
    struct parts *parts,
    const value *maps,
    const float *weight,
    const float *bias,
    float eps,
    float *mean,
    float *variance,
    value *pooled,
    uint8_t *places,
    int threads
) {
    const int64_t bands = bands_of(layer), count = parts->count;
    const double values = values_of(layer);
    float *reference = parts->vectors + 2 * layer->channels;
    /* The nearer to the mean, the fewer digits the squares lose. */
    const int64_t channels = layer->channels, first_rows = end_of_rows(0, layer->images * layer->height * layer->width);
    for (int64_t c = 0; c < channels; c += LANES) {
        floats sum = {0};
        for (int64_t row = 0; row < first_rows; row++) sum += load(maps + row * channels + c);
        put(reference + c, sum / (float)first_rows);
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < count; part++)
        measure(
            layer, maps, reference, pooled, places, &parts->sums[part],
            bands * part / count, bands * (part + 1) / count
        );
    const double *sums = finish(parts);
    for (int64_t c = 0; c < channels; c++) {
        const double distance = sums[c] / values, square = sums[c + channels] / values - distance * distance;
        mean[c] = (float)(reference[c] + distance);
        variance[c] = (float)(square < 0 ? 0 : square);
    }
    set_scale(layer, variance, weight, bias, eps);
}

/* Normalise maps by their own mean and variance.
 *
 * maps        [images, height, width, channels]
 * pool        before: the maps are pooled first; behind: what is normalised and activated is pooled
 * weight, bias  [channels], or both NULL
 * mean, variance  [channels], written: of what is normalised, the variance over all values
 * pooled      written where the pool comes before, its output, [images, height / 2, width / 2, channels]; where overlapping
 *             windows come behind, what the largest of each was before it was normalised, shaped as the output
 * places      written where there is a pool: which of the four or nine values was the largest, shaped as its output
 * outputs     written
 *
 * Returns 0, or 1 without memory.
 */
int forward(
    const value *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int pool,
    int activation,
    const float *weight,
    const float *bias,
    float eps,
    float *mean,
    float *variance,
    value *pooled,
    uint8_t *places,
    value *outputs,
    int threads
) {
    struct parts parts;
    if (begin(&parts, images * height * width, channels) != DONE) {
        end(&parts);
        return OUT_OF_MEMORY;
    }
    const struct layer layer = layer_of(&parts, images, height, width, channels, pool, activation, mean);
    take_moments(&layer, &parts, maps, weight, bias, eps, mean, variance, pooled, places, threads);
    const int64_t bands = bands_of(&layer), count = parts.count;
    const value *normalized = pool == POOL_BEFORE ? pooled : maps;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < count; part++)
        normalize(&layer, normalized, outputs, pooled, places, bands * part / count, bands * (part + 1) / count);
    end(&parts);
    return DONE;
}

/* --- backward ------------------------------------------------------------------------------------ */

/* Of four values, that at the place of each lane. */
INLINE floats at_place(ints place, const floats *window) {
    floats found = window[0];
    for (int i = 1; i < 4; i++) found = choose(place == i, window[i], found);
    return found;
}

/* Sums of gradients before the activation and of their products with distances from the mean: of rows that follow each
 * other, or of a band whose maps are pooled behind. */
INLINE void add_gradients(
    const struct layer *layer,
    const value *maps,
    const value *gradients,
    const uint8_t *places,
    struct sums *sums,
    int64_t first,
    int64_t last,
    int of_largest,
    enum activation activation
) {
    const int64_t channels = layer->channels, below = layer->width * channels;
    for (int64_t row = first; row < last; row = end_of_rows(row, last)) {
        for (int64_t c = 0; c < channels; c += LANES) {
            const struct constants own = constants_at(layer, c);
            floats plain = {0}, moment = {0};
            ask_ahead(gradients, row, c, channels);
            if (!of_largest) ask_ahead(maps, row, c, channels);
            FOR_VALUES(at, row, c, last, channels) {
                floats x;
                if (of_largest) {
                    const value *corner = maps + 2 * at - c;
                    floats window[] = {
                        load(corner), load(corner + channels), load(corner + below), load(corner + below + channels)
                    };
                    x = at_place(load_places(places + at), window);
                } else
                    x = load(maps + at);
                floats gradient = pulled_back(load(gradients + at), scaled(&own, x), activation);
                plain += gradient;
                moment += gradient * (x - own.mean);
            }
            add_to(sums, c, plain, moment);
        }
        count_rows(sums, end_of_rows(row, last) - row);
    }
}

INLINE void add_all_gradients_as(
    const struct layer *layer,
    const value *maps,
    const value *gradients,
    const uint8_t *places,
    struct sums *sums,
    int64_t first,
    int64_t last,
    enum activation activation
) {
    const int64_t columns = columns_of(layer);
    if (layer->pool != POOL_BEHIND) {
        /* Of overlapping windows, the largest are handed over. */
        add_gradients(layer, maps, gradients, NULL, sums, first * columns, last * columns, 0, activation);
        return;
    }
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        add_gradients(
            layer, maps + band.whole, gradients + band.pooled, places + band.pooled, sums, 0, columns, 1, activation
        );
    }
}

static void add_all_gradients(
    const struct layer *layer,
    const value *maps,
    const value *gradients,
    const uint8_t *places,
    struct sums *sums,
    int64_t first,
    int64_t last
) {
    WITH_ACTIVATION(layer->activation, add_all_gradients_as, layer, maps, gradients, places, sums, first, last);
}

/* A value's gradient from that before the activation. */
INLINE floats through_moments(const struct constants *own, floats gradient, floats x) {
    return own->scale * gradient - (own->offset + own->pull * x);
}

/* Gradients of values that no window holds: of a pool that comes first nothing, otherwise what they do to the moments. */
INLINE void left_out(const struct layer *layer, const value *in, value *out, int64_t pixels) {
    const int64_t channels = layer->channels;
    if (layer->pool == POOL_BEFORE) {
        memset(out, 0, pixels * channels * sizeof *out);
        return;
    }
    FOR_BLOCKS(pixel, c, 0, pixels, channels) {
        const struct constants own = constants_at(layer, c);
        FOR_VALUES(at, pixel, c, pixels, channels) store(out + at, through_moments(&own, (floats){0}, load(in + at)));
    }
}

INLINE void gradient_of_rows(
    const struct layer *layer,
    const value *maps,
    const value *gradients,
    value *outputs,
    int64_t first,
    int64_t last,
    enum activation activation
) {
    const int64_t channels = layer->channels;
    FOR_BLOCKS(row, c, first, last, channels) {
        const struct constants own = constants_at(layer, c);
        ask_ahead(maps, row, c, channels);
        ask_ahead(gradients, row, c, channels);
        ask_ahead(outputs, row, c, channels);
        FOR_VALUES(at, row, c, last, channels) {
            floats x = load(maps + at);
            floats gradient = pulled_back(load(gradients + at), scaled(&own, x), activation);
            store(outputs + at, through_moments(&own, gradient, x));
        }
    }
}

INLINE void gradient_of_windows(
    const struct layer *layer,
    const value *in,
    const value *gradients,
    const uint8_t *places,
    value *out,
    enum activation activation
) {
    const int64_t channels = layer->channels, below = layer->width * channels;
    const int64_t corners[] = {0, channels, below, below + channels};
    FOR_WINDOWS(at, c, layer) {
        const struct constants own = constants_at(layer, c);
        const ints place = load_places(places + at);
        value *corner = out + 2 * at - c;
        if (layer->pool == POOL_BEFORE) {
            floats x = load(in + at);
            floats gradient = pulled_back(load(gradients + at), scaled(&own, x), activation);
            floats whole = through_moments(&own, gradient, x);
            for (int i = 0; i < 4; i++) store(corner + corners[i], (floats)((place == i) & (ints)whole));
        } else {
            floats window[4];
            for (int i = 0; i < 4; i++) window[i] = load(in + 2 * at - c + corners[i]);
            floats x = at_place(place, window);
            floats gradient = pulled_back(load(gradients + at), scaled(&own, x), activation);
            for (int i = 0; i < 4; i++) {
                floats part = (floats)((place == i) & (ints)gradient);
                store(corner + corners[i], through_moments(&own, part, window[i]));
            }
        }
    }
}

/* Overlapping windows' gradients before the activation, and the places of their largest; 9 is none. */
struct windows {
    floats gradient;
    ints place;
};

INLINE struct windows windows_at(
    const value *largest, const value *gradients, const uint8_t *places, int64_t at, int inside, const struct constants *own,
    enum activation activation
) {
    if (!inside) return (struct windows){{0}, (ints){0} + 9};
    return (struct windows){
        pulled_back(load(gradients + at), scaled(own, load(largest + at)), activation), load_places(places + at)
    };
}

INLINE floats given_to(struct windows windows, int place) {
    return (floats)((windows.place == place) & (ints)windows.gradient);
}

/* A band's gradients: each pixel's come from up to four windows around it. */
INLINE void gradient_of_overlapping_windows(
    const struct layer *layer,
    const struct band *band,
    const value *maps,
    const value *largest,
    const value *gradients,
    const uint8_t *places,
    value *outputs,
    enum activation activation
) {
    const int64_t channels = layer->channels, width = layer->width, below = width * channels;
    const int64_t columns = columns_of(layer);
    for (int64_t c = 0; c < channels; c += LANES) {
        const struct constants own = constants_at(layer, c);
        int64_t at = band->pooled + c, next = at + columns * channels, pixel = band->whole + c;
        struct windows here = windows_at(largest, gradients, places, at, 1, &own, activation);
        struct windows under = windows_at(largest, gradients, places, next, !band->is_last, &own, activation);
        for (int64_t column = 1; column <= columns; column++, pixel += 2 * channels) {
            ask_below(maps + pixel, below, c, channels);
            ask_below(outputs + pixel, below, c, channels);
            at += channels, next += channels;
            const int beside = column < columns;
            const struct windows right = windows_at(largest, gradients, places, at, beside, &own, activation);
            const struct windows corner =
                windows_at(largest, gradients, places, next, beside && !band->is_last, &own, activation);
            const floats given[2][2] = {
                {given_to(here, 4), given_to(here, 5) + given_to(right, 3)},
                {given_to(here, 7) + given_to(under, 1),
                 given_to(here, 8) + given_to(right, 6) + given_to(under, 2) + given_to(corner, 0)},
            };
            for (int y = 0; y < 2 - band->last_of_odd; y++)
                for (int x = 0; x < 2 && 2 * column - 2 + x < width; x++) {
                    const int64_t to = pixel + y * below + x * channels;
                    store(outputs + to, through_moments(&own, given[y][x], load(maps + to)));
                }
            here = right, under = corner;
        }
    }
}

INLINE void propagate_as(
    const struct layer *layer,
    const value *maps,
    const value *largest,
    const value *gradients,
    const uint8_t *places,
    value *outputs,
    int64_t first,
    int64_t last,
    enum activation activation
) {
    const int64_t width = layer->width, row = width * layer->channels;
    if (layer->pool == NO_POOL) {
        gradient_of_rows(layer, maps, gradients, outputs, first * width, last * width, activation);
        return;
    }
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        if (layer->pool == OVERLAPPING_BEHIND) {
            gradient_of_overlapping_windows(layer, &band, maps, largest, gradients, places, outputs, activation);
            continue;
        }
        value *out = outputs + band.whole;
        /* Of a pool that comes first, `maps` are its maxima. */
        const value *in = maps + (layer->pool == POOL_BEFORE ? band.pooled : band.whole);
        gradient_of_windows(layer, in, gradients + band.pooled, places + band.pooled, out, activation);
        if (width % 2)
            for (int64_t line = 1; line <= 2; line++) {
                const int64_t last_pixel = line * row - layer->channels;
                left_out(layer, in + last_pixel, out + last_pixel, 1);
            }
        if (band.last_of_odd) left_out(layer, in + 2 * row, out + 2 * row, width);
    }
}

static void propagate(
    const struct layer *layer,
    const value *maps,
    const value *largest,
    const value *gradients,
    const uint8_t *places,
    value *outputs,
    int64_t first,
    int64_t last
) {
    WITH_ACTIVATION(layer->activation, propagate_as, layer, maps, largest, gradients, places, outputs, first, last);
}

/* Gradients of the parameters, and what those of values are computed with: of sums of gradients before the activation,
 * and of their products with distances from the mean. */
static void take_gradients(
    const struct layer *layer,
    const double *plain,
    const double *moment,
    const float *variance,
    float eps,
    float *weight_gradient,
    float *bias_gradient
) {
    const double count = values_of(layer);
    for (int64_t c = 0; c < layer->channels; c++) {
        const double precision = 1.0 / (variance[c] + (double)eps);
        const double pull = layer->scale[c] * precision * moment[c] / count;
        bias_gradient[c] = (float)plain[c];
        weight_gradient[c] = (float)(moment[c] * sqrt(precision));
        layer->pull[c] = (float)pull;
        layer->offset[c] = (float)(layer->scale[c] * plain[c] / count - pull * layer->mean[c]);
    }
}

/* The gradients of `forward`.
 *
 * maps        what was normalised: where the pool comes before, its output
 * images ... eps, places  as in `forward`; height and width are those of the maps that `forward` was given
 * mean, variance  as `forward` wrote them
 * largest     of overlapping windows, what `forward` wrote as `pooled`
 * gradients   of the outputs, in their shape
 * map_gradients     written, in the shape of the maps that `forward` was given
 * weight_gradient, bias_gradient  [channels], written
 *
 * Returns 0, or 1 without memory.
 */
int backward(
    const value *maps,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int pool,
    int activation,
    const float *weight,
    const float *bias,
    float eps,
    const float *mean,
    const float *variance,
    const value *largest,
    const uint8_t *places,
    const value *gradients,
    value *map_gradients,
    float *weight_gradient,
    float *bias_gradient,
    int threads
) {
    struct parts parts;
    if (begin(&parts, images * height * width, channels) != DONE) {
        end(&parts);
        return OUT_OF_MEMORY;
    }
    const struct layer layer = layer_of(&parts, images, height, width, channels, pool, activation, mean);
    const int64_t bands = bands_of(&layer), count = parts.count;
    const value *activated_ones = pool == OVERLAPPING_BEHIND ? largest : maps;
    set_scale(&layer, variance, weight, bias, eps);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < count; part++)
        add_all_gradients(
            &layer, activated_ones, gradients, places, &parts.sums[part], bands * part / count, bands * (part + 1) / count
        );
    const double *sums = finish(&parts);
    take_gradients(&layer, sums, sums + channels, variance, eps, weight_gradient, bias_gradient);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < count; part++)
        propagate(&layer, maps, largest, gradients, places, map_gradients, bands * part / count, bands * (part + 1) / count);
    end(&parts);
    return DONE;
}

/* --- with a shortcut ----------------------------------------------------------------------------- */

/* What comes before the activation: a normalised value, and that of the shortcut, which may be normalised, too. */
INLINE floats summed(
    const struct constants *own, const struct constants *of_shortcut, floats x, floats other, int normalized
) {
    return scaled(own, x) + (normalized ? scaled(of_shortcut, other) : other);
}

/* Those of the shortcut, if it has any. */
INLINE struct constants other_constants_at(const struct layer *shortcut, int64_t c, int normalized) {
    return normalized ? constants_at(shortcut, c) : (struct constants){0};
}

INLINE void add_as(
    const struct layer *layer,
    const struct layer *shortcut,
    const value *maps,
    const value *others,
    value *outputs,
    int64_t first,
    int64_t last,
    int normalized,
    enum activation activation
) {
    const int64_t channels = layer->channels;
    FOR_BLOCKS(row, c, first, last, channels) {
        const struct constants own = constants_at(layer, c), of_shortcut = other_constants_at(shortcut, c, normalized);
        ask_ahead(maps, row, c, channels);
        ask_ahead(others, row, c, channels);
        ask_ahead(outputs, row, c, channels);
        FOR_VALUES(at, row, c, last, channels) {
            floats sum = summed(&own, &of_shortcut, load(maps + at), load(others + at), normalized);
            store(outputs + at, activated(sum, activation));
        }
    }
}

/* Calls a function with whether there is a layer of the shortcut and an activation behind its arguments. */
#define WITH_SHORTCUT(shortcut, activation, function, ...)          \
    do {                                                            \
        if (shortcut)                                               \
            WITH_ACTIVATION(activation, function, __VA_ARGS__, 1);  \
        else                                                        \
            WITH_ACTIVATION(activation, function, __VA_ARGS__, 0);  \
    } while (0)

static void add(
    const struct layer *layer,
    const struct layer *shortcut,
    const value *maps,
    const value *others,
    value *outputs,
    int64_t first,
    int64_t last
) {
    WITH_SHORTCUT(shortcut, layer->activation, add_as, layer, shortcut, maps, others, outputs, first, last);
}

/* Normalise maps by their own mean and variance, add those of a shortcut, and activate the sum.
 *
 * maps        [images, height, width, channels]
 * others      in their shape: what is added
 * weight ... variance  as in `forward`
 * other_weight ... other_variance  the same of what is added; it is added as it is if `other_mean` is NULL
 * outputs     written
 *
 * Returns 0, or 1 without memory.
 */
int forward_sum(
    const value *maps,
    const value *others,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int activation,
    const float *weight,
    const float *bias,
    float eps,
    float *mean,
    float *variance,
    const float *other_weight,
    const float *other_bias,
    float other_eps,
    float *other_mean,
    float *other_variance,
    value *outputs,
    int threads
) {
    const int64_t rows = images * height * width;
    struct parts parts, other_parts;
    const int made = begin(&parts, rows, channels), other_made = begin(&other_parts, rows, channels);
    const int result = made == DONE && other_made == DONE ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        const struct layer layer = layer_of(&parts, images, height, width, channels, NO_POOL, activation, mean);
        const struct layer other =
            layer_of(&other_parts, images, height, width, channels, NO_POOL, activation, other_mean);
        take_moments(&layer, &parts, maps, weight, bias, eps, mean, variance, NULL, NULL, threads);
        if (other_mean)
            take_moments(
                &other, &other_parts, others, other_weight, other_bias, other_eps,
                other_mean, other_variance, NULL, NULL, threads
            );
        const struct layer *shortcut = other_mean ? &other : NULL;
        const int64_t count = parts.count;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < count; part++)
            add(&layer, shortcut, maps, others, outputs, rows * part / count, rows * (part + 1) / count);
    }
    end(&parts);
    end(&other_parts);
    return result;
}

/* Sums of gradients before the activation and of their products with distances from the means, which are two where the
 * shortcut is normalised. Where it is not, the gradients are its own and written, unless they are those of the outputs. */
INLINE void add_sum_gradients_as(
    const struct layer *layer,
    const struct layer *shortcut,
    const value *maps,
    const value *others,
    const value *gradients,
    value *other_gradients,
    struct sums *sums,
    struct sums *other_sums,
    int64_t first,
    int64_t last,
    int normalized,
    enum activation activation
) {
    const int64_t channels = layer->channels;
    for (int64_t row = first; row < last; row = end_of_rows(row, last)) {
        for (int64_t c = 0; c < channels; c += LANES) {
            const struct constants own = constants_at(layer, c), of_shortcut = other_constants_at(shortcut, c, normalized);
            floats plain = {0}, moment = {0}, other_moment = {0};
            ask_ahead(maps, row, c, channels);
            ask_ahead(others, row, c, channels);
            ask_ahead(gradients, row, c, channels);
            if (!normalized && activation != IDENTITY) ask_ahead(other_gradients, row, c, channels);
            FOR_VALUES(at, row, c, last, channels) {
                floats x = load(maps + at), other = load(others + at);
                floats sum = summed(&own, &of_shortcut, x, other, normalized);
                floats gradient = pulled_back(load(gradients + at), sum, activation);
                plain += gradient;
                moment += gradient * (x - own.mean);
                if (normalized)
                    other_moment += gradient * (other - of_shortcut.mean);
                else if (activation != IDENTITY)
                    store(other_gradients + at, gradient);
            }
            add_to(sums, c, plain, moment);
            if (normalized) add_to(other_sums, c, plain, other_moment);
        }
        const int64_t rows = end_of_rows(row, last) - row;
        count_rows(sums, rows);
        if (normalized) count_rows(other_sums, rows);
    }
}

static void add_sum_gradients(
    const struct layer *layer,
    const struct layer *shortcut,
    const value *maps,
    const value *others,
    const value *gradients,
    value *other_gradients,
    struct sums *sums,
    struct sums *other_sums,
    int64_t first,
    int64_t last
) {
    WITH_SHORTCUT(
        shortcut, layer->activation, add_sum_gradients_as, layer, shortcut, maps, others, gradients, other_gradients,
        sums, other_sums, first, last
    );
}

/* Where the shortcut is not normalised its gradients are there, and those before the activation. */
INLINE void propagate_sum_as(
    const struct layer *layer,
    const struct layer *shortcut,
    const value *maps,
    const value *others,
    const value *gradients,
    value *map_gradients,
    value *other_gradients,
    int64_t first,
    int64_t last,
    int normalized,
    enum activation activation
) {
    const int64_t channels = layer->channels;
    FOR_BLOCKS(row, c, first, last, channels) {
        const struct constants own = constants_at(layer, c), of_shortcut = other_constants_at(shortcut, c, normalized);
        ask_ahead(maps, row, c, channels);
        ask_ahead(other_gradients, row, c, channels);
        ask_ahead(map_gradients, row, c, channels);
        if (normalized) {
            ask_ahead(others, row, c, channels);
            ask_ahead(gradients, row, c, channels);
        }
        FOR_VALUES(at, row, c, last, channels) {
            floats x = load(maps + at), gradient;
            if (normalized) {
                floats other = load(others + at);
                floats sum = summed(&own, &of_shortcut, x, other, normalized);
                gradient = pulled_back(load(gradients + at), sum, activation);
                store(other_gradients + at, through_moments(&of_shortcut, gradient, other));
            } else
                gradient = load(other_gradients + at);
            store(map_gradients + at, through_moments(&own, gradient, x));
        }
    }
}

static void propagate_sum(
    const struct layer *layer,
    const struct layer *shortcut,
    const value *maps,
    const value *others,
    const value *gradients,
    value *map_gradients,
    value *other_gradients,
    int64_t first,
    int64_t last
) {
    WITH_SHORTCUT(
        shortcut, layer->activation, propagate_sum_as, layer, shortcut, maps, others, gradients, map_gradients,
        other_gradients, first, last
    );
}

/* The gradients of `forward_sum`.
 *
 * maps ... other_variance  as in `forward_sum`, which wrote means and variances
 * gradients   of the outputs, in their shape
 * map_gradients     written, in the shape of the maps
 * other_gradients   the same of what is added. Of a shortcut that is added as it is to a sum without activation they are
 *                   the gradients of the outputs: then these are given, and not written
 * weight_gradient, bias_gradient, other_weight_gradient, other_bias_gradient  [channels], written; the last two may be
 *                   NULL if `other_mean` is
 *
 * Returns 0, or 1 without memory.
 */
int backward_sum(
    const value *maps,
    const value *others,
    int64_t images,
    int64_t height,
    int64_t width,
    int64_t channels,
    int activation,
    const float *weight,
    const float *bias,
    float eps,
    const float *mean,
    const float *variance,
    const float *other_weight,
    const float *other_bias,
    float other_eps,
    const float *other_mean,
    const float *other_variance,
    const value *gradients,
    value *map_gradients,
    value *other_gradients,
    float *weight_gradient,
    float *bias_gradient,
    float *other_weight_gradient,
    float *other_bias_gradient,
    int threads
) {
    const int64_t rows = images * height * width;
    struct parts parts, other_parts;
    const int made = begin(&parts, rows, channels), other_made = begin(&other_parts, rows, channels);
    const int result = made == DONE && other_made == DONE ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        const struct layer layer = layer_of(&parts, images, height, width, channels, NO_POOL, activation, mean);
        const struct layer other =
            layer_of(&other_parts, images, height, width, channels, NO_POOL, activation, other_mean);
        const struct layer *shortcut = other_mean ? &other : NULL;
        const int64_t count = parts.count;
        set_scale(&layer, variance, weight, bias, eps);
        if (shortcut) set_scale(shortcut, other_variance, other_weight, other_bias, other_eps);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < count; part++)
            add_sum_gradients(
                &layer, shortcut, maps, others, gradients, other_gradients, &parts.sums[part], &other_parts.sums[part],
                rows * part / count, rows * (part + 1) / count
            );
        const double *sums = finish(&parts), *other_sums = finish(&other_parts);
        take_gradients(&layer, sums, sums + channels, variance, eps, weight_gradient, bias_gradient);
        if (shortcut)
            take_gradients(
                shortcut, other_sums, other_sums + channels, other_variance, other_eps,
                other_weight_gradient, other_bias_gradient
            );
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < count; part++)
            propagate_sum(
                &layer, shortcut, maps, others, gradients, map_gradients, other_gradients,
                rows * part / count, rows * (part + 1) / count
            );
    }
    end(&parts);
    end(&other_parts);
    return result;
}
