/* What the Winograd kernels share: memory, tiles of maps, filters, and the strips that columns are multiplied in.
 *
 * A file that includes this says before: LANES of a vector; COLUMNS, the vectors of columns that a block of a matrix
 * product has; OUT, the pixels of a tile's output in a row; `value`, the type of a map's numbers; and `factor`, that of
 * what is multiplied.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum result { DONE, OUT_OF_MEMORY };

#define INLINE static inline __attribute__((always_inline))
#define CACHE_LINE 64
/* Pixels of a tile's input in a row, and frequencies of a tile. */
#define IN (OUT + 2)
#define FREQUENCIES (IN * IN)

typedef float vector __attribute__((vector_size(LANES * sizeof(float)), may_alias));

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Channels, and those that fill up the last vector of them. */
INLINE int64_t filled(int64_t channels) { return parts_of(channels, LANES) * LANES; }

static void *memory(int64_t bytes) { return aligned_alloc(CACHE_LINE, parts_of(bytes, CACHE_LINE) * CACHE_LINE); }

/* --- matrix products ----------------------------------------------------------------------------- */

/* What is multiplied: `sums[r][c]`, or what is added to it, is the sum over k of `rows[r][k] * columns[k][c]`. */
struct product {
    const factor *rows;
    int64_t of_row, of_step;
    const factor *columns;
    int64_t of_line;
    int64_t steps;
    float *sums;
    int64_t of_sum;
    int add;
};

/* Columns are multiplied in strips of up to as many as a block has, as equal as can be. */
INLINE int64_t strips_of(int64_t columns) { return parts_of(columns, COLUMNS * LANES); }
INLINE int64_t strip_begin(int64_t columns, int64_t strip) {
    return parts_of(columns, LANES) * strip / strips_of(columns) * LANES;
}

/* --- tiles --------------------------------------------------------------------------------------- */

/* Where there are `places`, `values` are the largest of each 2x2 pixels of the maps, in [images, height / 2, width / 2,
 * channels], and a map is zero but there. The places of pixels among four are 0, 1 above and 2, 3 below. */
struct maps {
    const value *values;
    int64_t height, width, channels;
    const uint8_t *places;
};

/* Tiles of a map's output, counted row by row, image by image. */
struct tiling {
    int64_t images, rows, columns;
};

INLINE struct tiling tiling_of(int64_t images, int64_t height, int64_t width) {
    return (struct tiling){images, parts_of(height, OUT), parts_of(width, OUT)};
}

INLINE int64_t tiles_of(const struct tiling *tiling) { return tiling->images * tiling->rows * tiling->columns; }

/* Where a tile's output begins. */
struct tile {
    int64_t image, row, column;
};

INLINE struct tile tile_at(const struct tiling *tiling, int64_t index) {
    const int64_t columns = tiling->columns, rows = tiling->rows;
    return (struct tile){index / (rows * columns), index / columns % rows * OUT, index % columns * OUT};
}

/* --- filters ------------------------------------------------------------------------------------- */

struct filters {
    const float *weights;
    int64_t outputs, channels;
    /* Whether channels and outputs change places, and rows and columns run backwards: for the gradient of the maps. */
    int turned;
};
