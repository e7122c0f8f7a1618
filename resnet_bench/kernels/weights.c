/* What weights and biases of convolutions need beside matrix products, each in one pass over memory: the matrix that a
 * convolution of a small map is, the gradient of the weights from that of the matrix, and the gradient of biases.
 *
 * Compiled once for each type of the maps, which -DBF16 chooses; weights and their gradients are float. Every number of
 * threads gives the same bits.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum result { DONE, OUT_OF_MEMORY };

#define INLINE static inline __attribute__((always_inline))

#ifdef BF16
typedef uint16_t value;

INLINE float number(value from) {
    const uint32_t bits = (uint32_t)from << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

/* To the nearest, ties to even, as torch rounds. */
INLINE value rounded(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    const uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (value)(number != number ? 0x7fc0 : up);
}
#else
typedef float value;

INLINE float number(value from) { return from; }
INLINE value rounded(float number) { return number; }
#endif

/* The matrix [out_pixels, outputs, pixels, channels] that a convolution of a small map is. The tap between two pixels is
 * `taps[out_pixel * pixels + pixel]`, negative where there is none. */
struct matrix {
    int64_t outputs, pixels, channels;
};

/* Where an output's row has the channels of a pair of pixels. */
INLINE int64_t place_of(const struct matrix *own, int64_t pair, int64_t output) {
    return ((pair / own->pixels * own->outputs + output) * own->pixels + pair % own->pixels) * own->channels;
}

/* The matrix of a convolution.
 *
 * weights  [outputs, channels, kernel], kernel being the number of taps
 * taps     [out_pixels, pixels]
 * matrix   [out_pixels, outputs, pixels, channels], written
 *
 * Returns 0, or 1 without memory.
 */
int spread(
    const float *weights,
    const int64_t *taps,
    int64_t out_pixels,
    int64_t pixels,
    int64_t outputs,
    int64_t channels,
    int64_t kernel,
    value *matrix,
    int threads
) {
    const struct matrix own = {outputs, pixels, channels};
    const int64_t pairs = out_pixels * pixels;
    int result = DONE;
#pragma omp parallel num_threads(threads) reduction(| : result)
    {
        float *picked = malloc(channels * sizeof(float));
        value *line = malloc(channels * sizeof(value));
        if (!picked || !line) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
        for (int64_t output = 0; output < outputs; output++) {
            if (result != DONE) continue;
            const float *from = weights + output * channels * kernel;
            for (int64_t tap = -1; tap < kernel; tap++) {
                int is_made = 0;
                for (int64_t pair = 0; pair < pairs; pair++) {
                    if (taps[pair] != tap) continue;
                    value *to = matrix + place_of(&own, pair, output);
                    if (tap < 0) {
                        memset(to, 0, channels * sizeof(value));
                        continue;
                    }
                    if (!is_made) {
                        for (int64_t c = 0; c < channels; c++) picked[c] = from[c * kernel + tap];
                        for (int64_t c = 0; c < channels; c++) line[c] = rounded(picked[c]);
                        is_made = 1;
                    }
                    memcpy(to, line, channels * sizeof(value));
                }
            }
        }
        free(picked);
        free(line);
    }
    return result;
}

/* The gradient of the weights from that of the matrix; taps that touch nothing get zero.
 *
 * gradients  in the shape of the matrix
 * results    in the shape of the weights, written
 *
 * Returns 0, or 1 without memory.
 */
int collect(
    const value *gradients,
    const int64_t *taps,
    int64_t out_pixels,
    int64_t pixels,
    int64_t outputs,
    int64_t channels,
    int64_t kernel,
    float *results,
    int threads
) {
    const struct matrix own = {outputs, pixels, channels};
    const int64_t pairs = out_pixels * pixels;
    int result = DONE;
#pragma omp parallel num_threads(threads) reduction(| : result)
    {
        float *sums = malloc(channels * sizeof(float));
        if (!sums) result = OUT_OF_MEMORY;
#pragma omp for schedule(static)
        for (int64_t output = 0; output < outputs; output++) {
            if (result != DONE) continue;
            float *to = results + output * channels * kernel;
            memset(to, 0, channels * kernel * sizeof(float));
            for (int64_t tap = 0; tap < kernel; tap++) {
                int is_first = 1;
                for (int64_t pair = 0; pair < pairs; pair++) {
                    if (taps[pair] != tap) continue;
                    const value *from = gradients + place_of(&own, pair, output);
                    if (is_first)
                        for (int64_t c = 0; c < channels; c++) sums[c] = number(from[c]);
                    else
                        for (int64_t c = 0; c < channels; c++) sums[c] += number(from[c]);
                    is_first = 0;
                }
                if (!is_first)
                    for (int64_t c = 0; c < channels; c++) to[c * kernel + tap] = sums[c];
            }
        }
        free(sums);
    }
    return result;
}

/* Pixels that are summed in float before they are added in double. */
#define PIXELS_IN_FLOAT 256

/* The gradient of biases.
 *
 * gradients  of the outputs, [pixels, outputs]
 * results    [outputs], written
 *
 * Returns 0, or 1 without memory.
 */
int sum_pixels(const value *gradients, int64_t pixels, int64_t outputs, float *results, int threads) {
    const int64_t parts = (pixels + PIXELS_IN_FLOAT - 1) / PIXELS_IN_FLOAT;
    float *sums = calloc(parts * outputs, sizeof(float));
    if (!sums) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        const int64_t first = part * PIXELS_IN_FLOAT, left = pixels - first;
        float *own = sums + part * outputs;
        for (int64_t pixel = first; pixel < first + (left < PIXELS_IN_FLOAT ? left : PIXELS_IN_FLOAT); pixel++)
            for (int64_t o = 0; o < outputs; o++) own[o] += number(gradients[pixel * outputs + o]);
    }
    for (int64_t o = 0; o < outputs; o++) {
        double total = 0;
        for (int64_t part = 0; part < parts; part++) total += sums[part * outputs + o];
        results[o] = (float)total;
    }
    free(sums);
    return DONE;
}
