/* What the Winograd kernels with tiles of 4x4 pixels share: transforms, tiles in order, and products of blocks.
 *
 * The polynomials behind the transforms are evaluated at 0, at plus and minus the roots of 1/2 and of 2, and at infinity.
 * Lavin's own 0, 1, 2 and infinity round worse: the roots' powers differ less.
 *
 * A file that includes this says before: what winograd.h asks for, but OUT; MOST_TILES, which are put in order at once; and
 * OF_B, see below.
 */

#define OUT 4

#include "winograd.h"

/* Rows of a block of a matrix product, which fills the registers. */
#define ROWS 6
/* A tile is asked for before so many others are done. */
#define AHEAD 3

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

/* --- tiles --------------------------------------------------------------------------------------- */

/* Only the last output of a line needs its last frequency, and so do gradients: a short tile is spared the products of
 * that, and a side of 7 pixels is one tile of 4 and one of 3. With fewer short ones than a third there are so few products
 * less that their order costs more. Where windows of a pool are written, which begin at even pixels, only the last tile can
 * be short. */
INLINE struct side side_with_short(int64_t pixels, const int pools) {
    const struct side side = side_of(pixels, pools ? 1 : INT64_MAX);
    return 3 * (side.tiles - side.whole) < side.tiles ? side_of(pixels, 0) : side;
}

INLINE struct tiling tiling_with_short(int64_t images, int64_t height, int64_t width, const int pools) {
    return (struct tiling){images, side_with_short(height, pools), side_with_short(width, pools)};
}

/* How many tiles are at hand at once, the same number for each thread. */
INLINE int64_t tiles_at_hand(int64_t tiles, int64_t most, int threads) {
    const int64_t some = larger(tiles, 1), turns = parts_of(some, most * threads);
    return parts_of(parts_of(some, turns * threads), ROWS) * ROWS;
}

/* Whether a tile needs none of the last frequencies. */
INLINE int is_small(const struct tile *tile) { return tile->rows < OUT && tile->columns < OUT; }

/* Calls a function with the frequencies in a row that are needed, which the compiler knows then, behind its arguments. */
#define BY_SIZE(small, function, ...)                                                                              \
    do {                                                                                                        \
        if (small)                                                                                              \
            function(__VA_ARGS__, IN - 1);                                                                      \
        else                                                                                                    \
            function(__VA_ARGS__, IN);                                                                          \
    } while (0)

/* Tiles in an order in which those that need a frequency stand together, and some that come next. */
struct order {
    struct tile tiles[MOST_TILES + AHEAD];
    /* Where each kind begins: tiles with short columns and whole rows, whole ones, those with short rows, and others. */
    int64_t begins[5];
};

INLINE int kind_of(const struct tile *tile) {
    if (tile->rows == OUT) return tile->columns == OUT ? 1 : 0;
    return tile->columns == OUT ? 2 : 3;
}

static void put_in_order(const struct tiling *tiling, int64_t first, int64_t count, struct order *order) {
    const struct side *rows = &tiling->rows, *columns = &tiling->columns;
    struct tile tile = tile_at(tiling, first);
    if (rows->whole == rows->tiles && columns->whole == columns->tiles) {
        for (int64_t i = 0; i < count + AHEAD; i++, advance(tiling, &tile)) order->tiles[i] = tile;
        order->begins[0] = order->begins[1] = 0;
        order->begins[2] = order->begins[3] = order->begins[4] = count;
        return;
    }
    int64_t counts[4] = {0}, places[4];
    for (int64_t i = 0; i < count; i++, advance(tiling, &tile)) counts[kind_of(&tile)]++;
    for (int64_t i = 0; i < AHEAD; i++, advance(tiling, &tile)) order->tiles[count + i] = tile;
    order->begins[0] = 0;
    for (int i = 0; i < 4; i++) places[i] = order->begins[i], order->begins[i + 1] = order->begins[i] + counts[i];
    tile = tile_at(tiling, first);
    for (int64_t i = 0; i < count; i++, advance(tiling, &tile)) order->tiles[places[kind_of(&tile)]++] = tile;
}

/* The tiles that need a frequency. */
struct span {
    int64_t begin, end;
};

INLINE struct span tiles_with(const struct order *order, int f) {
    const int last_row = f / IN == IN - 1, last_column = f % IN == IN - 1;
    return (struct span){order->begins[last_column], order->begins[last_row ? 2 : last_column ? 3 : 4]};
}

/* --- matrix products ----------------------------------------------------------------------------- */

/* Defines a product of all rows and of up to as many columns as a block has. `block(product, row, rows, columns)` is one of
 * some rows and some vectors of columns. Not inline, or the compiler is short of registers. */
#define DEFINE_MULTIPLY(name, block)                                                                               \
    INLINE void name##_rows(const struct product *p, int64_t rows, const int columns) {                         \
        int64_t row = 0;                                                                                        \
        for (; row + ROWS <= rows; row += ROWS) block(p, row, ROWS, columns);                                   \
        if (row + 4 <= rows) block(p, row, 4, columns), row += 4;                                               \
        if (row + 2 <= rows) block(p, row, 2, columns), row += 2;                                               \
        if (row < rows) block(p, row, 1, columns);                                                              \
    }                                                                                                           \
    static __attribute__((noinline)) void name(const struct product *p, int64_t rows, int64_t columns) {        \
        const int64_t vectors = columns / LANES;                                                                \
        if (vectors == 1) name##_rows(p, rows, 1);                                                              \
        if (vectors == 2) name##_rows(p, rows, 2);                                                              \
        if (COLUMNS == 4 && vectors == 3) name##_rows(p, rows, 3);                                              \
        if (COLUMNS == 4 && vectors == 4) name##_rows(p, rows, 4);                                              \
    }
