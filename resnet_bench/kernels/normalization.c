/* BatchNorm in training, with the activation behind it and a 2x2 max pool before or behind it, in as few passes over
 * memory as there can be: two forward (one where a pool comes first, whose output is small), two backward.
 *
 * Maps are in channels-last order, [images, height, width, channels]. Compiled once for each type of their values, which
 * -DBF16 chooses; whatever is computed is computed in float, and summed up over rows in double. The work is cut into
 * parts that do not depend on the number of threads, and their sums are added in one order: so the bits do not either.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum pool { NO_POOL, POOL_BEFORE, POOL_BEHIND };
enum activation { IDENTITY, RELU, SILU };
enum result { DONE, OUT_OF_MEMORY };

#define INLINE static inline __attribute__((always_inline))

/* Parts of the work; more than any processor here has threads, few enough that their sums are nothing. */
#define PARTS 64
/* Rows whose values are summed in float before they are added in double. */
#define ROWS_IN_FLOAT 512

/* --- values -------------------------------------------------------------------------------------- */

/* Channels are computed this many at a time; their number is a multiple of it. A compiler for a processor with shorter
 * vectors takes several. */
#define LANES 16

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
    words bits = (words)numbers;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    ints nan = numbers != numbers;
    values written = __builtin_convertvector((words)((nan & 0x7fc0) | (~nan & (ints)rounded)), values);
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
        return (floats)((x > 0.0f) & (ints)gradient);
    case SILU: {
        floats passed = sigmoid(x);
        return gradient * passed * (1.0f + x * (1.0f - passed));
    }
    default:
        return gradient;
    }
}

/* Calls a function with an activation behind its arguments, of each activation a loop of its own. */
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

INLINE void count_rows(struct sums *sums, int64_t rows) {
    sums->rows += rows;
    if (sums->rows >= ROWS_IN_FLOAT) settle(sums);
}

/* One set of sums for each part of the work, and vectors of a number for each channel. */
struct parts {
    struct sums sums[PARTS];
    float *recent;
    double *total;
    float *vectors;
};

static int begin(struct parts *parts, int64_t channels, int64_t vectors) {
    parts->vectors = malloc(vectors * channels * sizeof(float));
    parts->recent = calloc(PARTS * 2 * channels, sizeof(float));
    parts->total = calloc(PARTS * 2 * channels, sizeof(double));
    for (int64_t part = 0; part < PARTS; part++)
        parts->sums[part] = (struct sums){
            channels, 0, parts->recent + part * 2 * channels, parts->total + part * 2 * channels
        };
    return parts->vectors && parts->recent && parts->total ? DONE : OUT_OF_MEMORY;
}

/* Adds all parts up in the first one's. */
static double *finish(struct parts *parts) {
    for (int64_t part = 0; part < PARTS; part++) {
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

/* Adds the distances of values from `reference`, and their squares. */
INLINE void add_moments(struct sums *sums, const value *rows, int64_t count, const float *reference) {
    const int64_t channels = sums->channels;
    for (int64_t row = 0; row < count; row += 4) {
        const int64_t together = count - row < 4 ? count - row : 4;
        for (int64_t c = 0; c < channels; c += LANES) {
            floats first = numbers(sums->recent + c), second = numbers(sums->recent + channels + c);
            for (int64_t i = 0; i < together; i++) {
                floats distance = load(rows + (row + i) * channels + c) - numbers(reference + c);
                first += distance;
                second += distance * distance;
            }
            put(sums->recent + c, first);
            put(sums->recent + channels + c, second);
        }
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

/* The work is handed out in bands: a row of a map, or two where they are pooled. */
INLINE int64_t bands_of(const struct layer *layer) {
    return layer->images * (layer->pool == NO_POOL ? layer->height : layer->height / 2);
}

struct band {
    int64_t whole;  /* where it begins in the whole map */
    int64_t pooled; /* and in the pooled one */
    int last_of_odd; /* whether the row that the pool leaves out follows */
};

INLINE struct band band_at(const struct layer *layer, int64_t index) {
    const int64_t row = layer->width * layer->channels;
    if (layer->pool == NO_POOL) return (struct band){index * row, index * row, 0};
    const int64_t bands = layer->height / 2, image = index / bands, band = index % bands;
    return (struct band){
        (image * layer->height + 2 * band) * row,
        index * (layer->width / 2) * layer->channels,
        layer->height % 2 && band == bands - 1,
    };
}

/* Values of the output in a band. */
INLINE int64_t columns_of(const struct layer *layer) {
    return layer->pool == NO_POOL ? layer->width : layer->width / 2;
}

/* How many values of each channel the moments are of. */
static double values_of(const struct layer *layer) {
    if (layer->pool == POOL_BEFORE) return (double)layer->images * (layer->height / 2) * (layer->width / 2);
    return (double)layer->images * layer->height * layer->width;
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

INLINE void take_larger(floats *best, ints *place, floats other, int32_t at) {
    /* As torch does: NaN is passed on, and of equal values the first is taken. */
    ints larger = (other > *best) | (other != other);
    *best = choose(larger, other, *best);
    *place = (larger & at) | (~larger & *place);
}

/* What comes before the activation. */
INLINE floats scaled(const struct layer *layer, floats x, int64_t c) {
    return x * numbers(layer->scale + c) + numbers(layer->shift + c);
}

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
    for (int64_t column = 0; column < layer->width / 2; column++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const value *corner = band + 2 * column * channels + c;
            floats window[] = {
                load(corner), load(corner + channels), load(corner + below), load(corner + below + channels)
            };
            if (activate)
                for (int i = 0; i < 4; i++) window[i] = activated(scaled(layer, window[i], c), each);
            floats best = window[0];
            ints place = {0};
            for (int i = 1; i < 4; i++) take_larger(&best, &place, window[i], i);
            store(pooled + column * channels + c, activated(best, last));
            store_places(places + column * channels + c, place);
        }
}

INLINE void activate_band(const struct layer *layer, const value *band, value *outputs, enum activation activation) {
    const int64_t channels = layer->channels;
    for (int64_t column = 0; column < columns_of(layer); column++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = column * channels + c;
            store(outputs + at, activated(scaled(layer, load(band + at), c), activation));
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
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        switch (layer->pool) {
        case NO_POOL:
            add_moments(sums, maps + band.whole, layer->width, reference);
            break;
        case POOL_BEFORE:
            pool_band(layer, maps + band.whole, pooled + band.pooled, places + band.pooled, 0, IDENTITY);
            add_moments(sums, pooled + band.pooled, layer->width / 2, reference);
            break;
        case POOL_BEHIND:
            add_moments(sums, maps + band.whole, (2 + band.last_of_odd) * layer->width, reference);
            break;
        }
    }
}

INLINE void normalize_as(
    const struct layer *layer,
    const value *maps,
    value *outputs,
    uint8_t *places,
    int64_t first,
    int64_t last,
    enum activation activation
) {
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        if (layer->pool == POOL_BEHIND)
            pool_band(layer, maps + band.whole, outputs + band.pooled, places + band.pooled, 1, activation);
        else
            activate_band(layer, maps + band.pooled, outputs + band.pooled, activation);
    }
}

/* `maps` is what is normalised: of a pool that comes first, its output. */
static void normalize(
    const struct layer *layer, const value *maps, value *outputs, uint8_t *places, int64_t first, int64_t last
) {
    WITH_ACTIVATION(layer->activation, normalize_as, layer, maps, outputs, places, first, last);
}

/* Normalise maps by their own mean and variance.
 *
 * maps        [images, height, width, channels]
 * pool        before: the maps are pooled first; behind: what is normalised and activated is pooled
 * weight, bias  [channels], or both NULL
 * mean, variance  [channels], written: of what is normalised, the variance over all values
 * pooled      written where the pool comes before: its output [images, height / 2, width / 2, channels]
 * places      written where there is a pool: which of the four values was the largest, shaped as its output
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
    if (begin(&parts, channels, 3) != DONE) {
        end(&parts);
        return OUT_OF_MEMORY;
    }
    float *vectors = parts.vectors;
    float *reference = vectors + 2 * channels;
    const struct layer layer = {
        images, height, width, channels, pool, activation, mean, vectors, vectors + channels, NULL, NULL
    };
    const int64_t bands = bands_of(&layer);
    const double count = values_of(&layer);
    for (int64_t c = 0; c < channels; c += LANES) put(reference + c, load(maps + c));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++)
        measure(
            &layer, maps, reference, pooled, places, &parts.sums[part], bands * part / PARTS, bands * (part + 1) / PARTS
        );
    const double *sums = finish(&parts);
    for (int64_t c = 0; c < channels; c++) {
        const double distance = sums[c] / count, square = sums[c + channels] / count - distance * distance;
        mean[c] = (float)(reference[c] + distance);
        variance[c] = (float)(square < 0 ? 0 : square);
    }
    set_scale(&layer, variance, weight, bias, eps);
    const value *normalized = pool == POOL_BEFORE ? pooled : maps;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++)
        normalize(&layer, normalized, outputs, places, bands * part / PARTS, bands * (part + 1) / PARTS);
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

/* Sums, over a band, of gradients before the activation and of their products with distances from the mean. */
INLINE void add_gradients(
    const struct layer *layer,
    const value *band,
    const value *gradients,
    const uint8_t *places,
    struct sums *sums,
    int of_largest,
    enum activation activation
) {
    const int64_t channels = layer->channels, below = layer->width * channels;
    float *plain = sums->recent, *moment = sums->recent + channels;
    for (int64_t column = 0; column < columns_of(layer); column++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = column * channels + c;
            const value *corner = band + (of_largest ? 2 : 1) * column * channels + c;
            floats x = load(corner);
            if (of_largest) {
                floats window[] = {x, load(corner + channels), load(corner + below), load(corner + below + channels)};
                x = at_place(load_places(places + at), window);
            }
            floats gradient = pulled_back(load(gradients + at), scaled(layer, x, c), activation);
            put(plain + c, numbers(plain + c) + gradient);
            put(moment + c, numbers(moment + c) + gradient * (x - numbers(layer->mean + c)));
        }
    count_rows(sums, columns_of(layer));
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
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        if (layer->pool == POOL_BEHIND)
            add_gradients(
                layer, maps + band.whole, gradients + band.pooled, places + band.pooled, sums, 1, activation
            );
        else
            add_gradients(layer, maps + band.pooled, gradients + band.pooled, NULL, sums, 0, activation);
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
INLINE floats through_moments(const struct layer *layer, floats gradient, floats x, int64_t c) {
    return numbers(layer->scale + c) * gradient - (numbers(layer->offset + c) + numbers(layer->pull + c) * x);
}

/* Gradients of values that no window holds: of a pool that comes first nothing, otherwise what they do to the moments. */
INLINE void left_out(const struct layer *layer, const value *in, value *out, int64_t pixels) {
    const int64_t channels = layer->channels;
    if (layer->pool == POOL_BEFORE) {
        memset(out, 0, pixels * channels * sizeof *out);
        return;
    }
    for (int64_t pixel = 0; pixel < pixels; pixel++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = pixel * channels + c;
            store(out + at, through_moments(layer, (floats){0}, load(in + at), c));
        }
}

INLINE void gradient_of_band(
    const struct layer *layer, const value *maps, const value *gradients, value *outputs, enum activation activation
) {
    const int64_t channels = layer->channels;
    for (int64_t column = 0; column < layer->width; column++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = column * channels + c;
            floats x = load(maps + at);
            floats gradient = pulled_back(load(gradients + at), scaled(layer, x, c), activation);
            store(outputs + at, through_moments(layer, gradient, x, c));
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
    for (int64_t column = 0; column < layer->width / 2; column++)
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t at = column * channels + c;
            const ints place = load_places(places + at);
            value *corner = out + 2 * column * channels + c;
            if (layer->pool == POOL_BEFORE) {
                floats x = load(in + at);
                floats gradient = pulled_back(load(gradients + at), scaled(layer, x, c), activation);
                floats whole = through_moments(layer, gradient, x, c);
                for (int i = 0; i < 4; i++) store(corner + corners[i], (floats)((place == i) & (ints)whole));
            } else {
                floats window[4];
                for (int i = 0; i < 4; i++) window[i] = load(in + 2 * column * channels + c + corners[i]);
                floats x = at_place(place, window);
                floats gradient = pulled_back(load(gradients + at), scaled(layer, x, c), activation);
                for (int i = 0; i < 4; i++) {
                    floats own = (floats)((place == i) & (ints)gradient);
                    store(corner + corners[i], through_moments(layer, own, window[i], c));
                }
            }
        }
}

INLINE void propagate_as(
    const struct layer *layer,
    const value *maps,
    const value *gradients,
    const uint8_t *places,
    value *outputs,
    int64_t first,
    int64_t last,
    enum activation activation
) {
    const int64_t row = layer->width * layer->channels;
    for (int64_t index = first; index < last; index++) {
        const struct band band = band_at(layer, index);
        const value *gradient = gradients + band.pooled;
        value *out = outputs + band.whole;
        if (layer->pool == NO_POOL) {
            gradient_of_band(layer, maps + band.whole, gradient, out, activation);
            continue;
        }
        /* Of a pool that comes first, `maps` are its maxima. */
        const value *in = maps + (layer->pool == POOL_BEFORE ? band.pooled : band.whole);
        gradient_of_windows(layer, in, gradient, places + band.pooled, out, activation);
        if (layer->width % 2)
            for (int64_t line = 1; line <= 2; line++) {
                const int64_t last_pixel = line * row - layer->channels;
                left_out(layer, in + last_pixel, out + last_pixel, 1);
            }
        if (band.last_of_odd) left_out(layer, in + 2 * row, out + 2 * row, layer->width);
    }
}

static void propagate(
    const struct layer *layer,
    const value *maps,
    const value *gradients,
    const uint8_t *places,
    value *outputs,
    int64_t first,
    int64_t last
) {
    WITH_ACTIVATION(layer->activation, propagate_as, layer, maps, gradients, places, outputs, first, last);
}

/* The gradients of `forward`.
 *
 * maps        what was normalised: where the pool comes before, its output
 * images ... eps, places  as in `forward`; height and width are those of the maps that `forward` was given
 * mean, variance  as `forward` wrote them
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
    const uint8_t *places,
    const value *gradients,
    value *map_gradients,
    float *weight_gradient,
    float *bias_gradient,
    int threads
) {
    struct parts parts;
    if (begin(&parts, channels, 4) != DONE) {
        end(&parts);
        return OUT_OF_MEMORY;
    }
    float *vectors = parts.vectors;
    const struct layer layer = {
        images, height, width, channels, pool, activation,
        mean, vectors, vectors + channels, vectors + 2 * channels, vectors + 3 * channels,
    };
    const int64_t bands = bands_of(&layer);
    const double count = values_of(&layer);
    set_scale(&layer, variance, weight, bias, eps);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++)
        add_all_gradients(
            &layer, maps, gradients, places, &parts.sums[part], bands * part / PARTS, bands * (part + 1) / PARTS
        );
    const double *sums = finish(&parts);
    for (int64_t c = 0; c < channels; c++) {
        const double precision = 1.0 / (variance[c] + (double)eps);
        const double pull = layer.scale[c] * precision * sums[c + channels] / count;
        bias_gradient[c] = (float)sums[c];
        weight_gradient[c] = (float)(sums[c + channels] * sqrt(precision));
        layer.pull[c] = (float)pull;
        layer.offset[c] = (float)(layer.scale[c] * sums[c] / count - pull * mean[c]);
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < PARTS; part++)
        propagate(&layer, maps, gradients, places, map_gradients, bands * part / PARTS, bands * (part + 1) / PARTS);
    end(&parts);
    return DONE;
}
