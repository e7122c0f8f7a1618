/* What the Winograd kernels with tiles of 4x4 pixels share: transforms and products of blocks.
 *
 * The polynomials behind the transforms are evaluated at 0, at plus and minus the roots of 1/2 and of 2, and at infinity.
 * Lavin's own 0, 1, 2 and infinity round worse: the roots' powers differ less.
 *
 * A file that includes this says before: what winograd.h asks for, but OUT; and OF_B, see below.
 */

#define OUT 4

#include "winograd.h"

/* Rows of a block of a matrix product, which fills the registers. */
#define ROWS 6

/* --- transforms ---------------------------------------------------------------------------------- */

/* The points' absolute values, their squares and cubes. */
#define A 0.70710678118654752f
#define B 1.41421356237309505f
#define A2 0.5f
#define B2 2.0f
#define A3 (A2 * A)
#define B3 (B2 * B)
/* What the filters' frequencies at A are scaled by; those at B are by OF_B, and their outputs by BACK_B for it. */
#define OF_A (-2.0f / 3)
#define BACK_B (1.0f / 6 / OF_B)

/* Each transforms a line; `from` and `to` are the distances between its numbers. */

INLINE void pixels_of_line(const vector *x, vector *y, const int from, const int to) {
    const vector x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const vector even_a = x4 - B2 * x2, odd_a = x3 - B2 * x1, even_b = x4 - A2 * x2, odd_b = x3 - A2 * x1;
    y[0] = x0 + x4 - (A2 + B2) * x2;
    y[to] = even_a + A * odd_a, y[2 * to] = even_a - A * odd_a;
    y[3 * to] = even_b + B * odd_b, y[4 * to] = even_b - B * odd_b;
    y[5 * to] = x1 + x5 - (A2 + B2) * x3;
}

INLINE void gradients_of_line(const vector *x, vector *y, const int from, const int to) {
    const vector x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from];
    const vector even_a = x0 + A2 * x2, odd_a = x1 + A2 * x3, even_b = x0 + B2 * x2, odd_b = x1 + B2 * x3;
    y[0] = x0;
    y[to] = even_a + A * odd_a, y[2 * to] = even_a - A * odd_a;
    y[3 * to] = even_b + B * odd_b, y[4 * to] = even_b - B * odd_b;
    y[5 * to] = x3;
}

INLINE void taps_of_line(const vector *x, vector *y, const int from, const int to) {
    const vector x0 = x[0], x1 = x[from], x2 = x[2 * from];
    const vector even_a = OF_A * (x0 + A2 * x2), odd_a = (OF_A * A) * x1;
    const vector even_b = OF_B * (x0 + B2 * x2), odd_b = (OF_B * B) * x1;
    y[0] = x0;
    y[to] = even_a + odd_a, y[2 * to] = even_a - odd_a;
    y[3 * to] = even_b + odd_b, y[4 * to] = even_b - odd_b;
    y[5 * to] = x2;
}

INLINE void gradient_frequencies_of_line(const vector *x, vector *y, const int from, const int to) {
    const vector x0 = x[0], x1 = x[from], x2 = x[2 * from], x3 = x[3 * from], x4 = x[4 * from], x5 = x[5 * from];
    const vector even_a = OF_A * (x1 + x2), even_b = (OF_B * BACK_B) * (x3 + x4);
    y[0] = x0 + even_a + even_b;
    y[to] = (OF_A * A) * (x1 - x2) + (OF_B * BACK_B * B) * (x3 - x4);
    y[2 * to] = x5 + A2 * even_a + B2 * even_b;
}

/* A transform of a square of numbers by that of its lines, columns first. */
#define DEFINE_TRANSFORM(name, of_line, in, out)                                                                   \
    INLINE void name(const vector *x, vector *y) {                                                              \
        vector half[(out) * (in)];                                                                              \
        for (int i = 0; i < (in); i++) of_line(x + i, half + i, in, in);                                        \
        for (int i = 0; i < (out); i++) of_line(half + (in) * i, y + (out) * i, 1, 1);                          \
    }

DEFINE_TRANSFORM(frequencies_of_taps, taps_of_line, 3, IN)
DEFINE_TRANSFORM(taps_of_frequencies, gradient_frequencies_of_line, IN, 3)

/* --- matrix products ----------------------------------------------------------------------------- */

/* Defines a product of all rows and of up to as many columns as a block has. `block(product, row, rows, columns)` is one of
 * some rows and some vectors of columns. Not inline, or the compiler is short of registers. */
#define DEFINE_MULTIPLY(name, block)                                                                               \
    INLINE void name##_rows(const struct product *p, int64_t rows, const int columns) {                         \
        int64_t row = 0;                                                                                        \
        for (; row + ROWS <= rows; row += ROWS) block(p, row, ROWS, columns);                                   \
        for (; row + 2 <= rows; row += 2) block(p, row, 2, columns);                                            \
        if (row < rows) block(p, row, 1, columns);                                                              \
    }                                                                                                           \
    static __attribute__((noinline)) void name(const struct product *p, int64_t rows, int64_t columns) {        \
        const int64_t vectors = columns / LANES;                                                                \
        if (vectors == 1) name##_rows(p, rows, 1);                                                              \
        if (vectors == 2) name##_rows(p, rows, 2);                                                              \
        if (COLUMNS == 4 && vectors == 3) name##_rows(p, rows, 3);                                              \
        if (COLUMNS == 4 && vectors == 4) name##_rows(p, rows, 4);                                              \
    }
