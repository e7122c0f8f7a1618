/* What all kernels share: the processor's vectors, and what a call returns. */

#pragma once

#ifdef __AVX__
#include <immintrin.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Floats of a vector. Longer ones GCC would compare and choose number by number. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

enum result { DONE, OUT_OF_MEMORY };

#define INLINE static inline __attribute__((always_inline))
#define CACHE_LINE 64
