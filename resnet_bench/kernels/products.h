/* What kernels of matrix products share: memory, and the strips that columns are multiplied in. */

#include "vectors.h"

/* Vectors of columns of a block of a matrix product, as the registers hold them. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define COLUMNS 4
#else
#define COLUMNS 2
#endif

typedef float vector __attribute__((vector_size(LANES * sizeof(float)), may_alias));
/* The same at any address of a float. */
typedef float unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Channels, and those that fill up the last vector of them. */
INLINE int64_t filled(int64_t channels) { return parts_of(channels, LANES) * LANES; }

static void *memory(int64_t bytes) { return aligned_alloc(CACHE_LINE, parts_of(bytes, CACHE_LINE) * CACHE_LINE); }

/* Columns are multiplied in strips of up to as many as a block has, as equal as can be. */
INLINE int64_t strips_of(int64_t columns) { return parts_of(columns, COLUMNS * LANES); }
INLINE int64_t strip_begin(int64_t columns, int64_t strip) {
    return parts_of(columns, LANES) * strip / strips_of(columns) * LANES;
}

/* The strip that a column is in. */
INLINE int64_t strip_with(int64_t columns, int64_t column) {
    int64_t strip = 0;
    while (strip_begin(columns, strip + 1) <= column) strip++;
    return strip;
}
