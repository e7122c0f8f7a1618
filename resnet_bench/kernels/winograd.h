/* What the Winograd kernels share: tiles of maps, and filters.
 *
 * A file that includes this says before: OUT, the pixels of a tile's output in a row; `value`,
 * the type of a map's numbers; and `factor`, that of what is multiplied.
 */

#include "products.h"

/* Pixels of a tile's input in a row, and frequencies of a tile. */
#define IN (OUT + 2)
#define FREQUENCIES (IN * IN)

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

/* Asks the memory for a cache line. Clang wants to know at once whether to write. */
INLINE void ask(const void *line, const int to_write) {
    if (to_write)
        __builtin_prefetch(line, 1);
    else
        __builtin_prefetch(line, 0);
}

/* Where to ask for the filters that are multiplied next while a block of rows is, some numbers further at each step: of a wide
 * layer they come from far away. They stand behind the columns, but for those of a narrow strip. */
INLINE const factor *filters_behind(const struct product *p, int64_t block, int64_t of_step) {
    return p->columns + p->steps * (p->of_line + block * of_step);
}

/* Channels from which on filters and their gradients leave no room in a core's second cache. */
#define WIDE 256

/* Asks for the place of sums that a block is added to. */
INLINE void ask_for_sums(const struct product *p, int64_t row, const int rows, const int columns) {
    for (int r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns * LANES; c += CACHE_LINE / (int64_t)sizeof(float))
            ask(p->sums + (row + r) * p->of_sum + c, 1);
}

/* --- tiles --------------------------------------------------------------------------------------- */

/* Where there are `places`, `values` are the largest of each 2x2 pixels of the maps, in [images, height / 2, width / 2,
 * channels], and a map is zero but there. The places of pixels among four are 0, 1 above and 2, 3 below. */
struct maps {
    const value *values;
    int64_t height, width, channels;
    const uint8_t *places;
};

/* Tiles along a side of a map's output: first some that are whole, of OUT pixels, then short ones, of a pixel less. */
struct side {
    int64_t whole, tiles;
};

/* As few tiles as it takes, of which as many are short as can be, up to `most`. */
INLINE struct side side_of(int64_t pixels, int64_t most) {
    const int64_t tiles = parts_of(pixels, OUT), missing = OUT * tiles - pixels;
    return (struct side){tiles - smaller(smaller(missing, tiles), most), tiles};
}

INLINE int64_t begin_of(const struct side *side, int64_t tile) { return OUT * tile - larger(tile - side->whole, 0); }
INLINE int outputs_at(const struct side *side, int64_t pixel) { return pixel < OUT * side->whole ? OUT : OUT - 1; }

/* Tiles of a map's output, counted row by row, image by image. */
struct tiling {
    int64_t images;
    struct side rows, columns;
};

/* Whole ones. */
INLINE struct tiling tiling_of(int64_t images, int64_t height, int64_t width) {
    return (struct tiling){images, side_of(height, 0), side_of(width, 0)};
}

INLINE int64_t tiles_of(const struct tiling *tiling) {
    return tiling->images * tiling->rows.tiles * tiling->columns.tiles;
}

/* Where a tile's output begins, and how many rows and columns it has. */
struct tile {
    int64_t image, row, column;
    int rows, columns;
};

INLINE struct tile tile_at(const struct tiling *tiling, int64_t index) {
    const struct side *rows = &tiling->rows, *columns = &tiling->columns;
    const int64_t row = begin_of(rows, index / columns->tiles % rows->tiles);
    const int64_t column = begin_of(columns, index % columns->tiles), image = index / (rows->tiles * columns->tiles);
    return (struct tile){image, row, column, outputs_at(rows, row), outputs_at(columns, column)};
}

INLINE void advance(const struct tiling *tiling, struct tile *tile) {
    const struct side *rows = &tiling->rows, *columns = &tiling->columns;
    tile->column += tile->columns;
    if (tile->column >= begin_of(columns, columns->tiles)) {
        tile->column = 0;
        tile->row += tile->rows;
        if (tile->row >= begin_of(rows, rows->tiles)) {
            tile->row = 0;
            tile->image++;
        }
        tile->rows = outputs_at(rows, tile->row);
    }
    tile->columns = outputs_at(columns, tile->column);
}

/* Asks the memory for some channels of OUT pixels in each of some lines; of pooled maps for what is there of them. */
INLINE void ask_for(
    const struct maps *maps, int64_t image, int64_t row, int64_t column, const int lines, int64_t begin, int64_t channels,
    const int to_write
) {
    const int pooled = maps->places != 0;
    const int64_t of_pixel = maps->channels, of_line = (maps->width >> pooled) * of_pixel;
    const int64_t line = image * (maps->height >> pooled) + (row >> pooled);
    const int64_t corner = line * of_line + (column >> pooled) * of_pixel + begin;
    for (int y = 0; y < lines >> pooled; y++)
        for (int x = 0; x < OUT >> pooled; x++) {
            const int64_t pixel = corner + y * of_line + x * of_pixel;
            for (int64_t c = 0; c < channels; c += CACHE_LINE / (int64_t)sizeof(value))
                ask(maps->values + pixel + c, to_write);
            if (pooled)
                for (int64_t c = 0; c < channels; c += CACHE_LINE) ask(maps->places + pixel + c, to_write);
        }
}

/* Asks for a tile's pixels in `size` lines, but for the columns that the tile beside it has too. The processor does not see
 * them coming among so many lines. */
INLINE void ask_for_pixels(const struct maps *maps, const struct tile *tile, int64_t padding, const int size) {
    const int64_t row = tile->row - padding, column = tile->column - padding + size - OUT;
    ask_for(maps, tile->image, row, column, size, 0, maps->channels, 0);
}

/* Asks for the place of some of a tile's outputs, such that writing them waits for no memory. */
INLINE void ask_for_outputs(const struct maps *maps, const struct tile *tile, int64_t begin, int64_t channels) {
    ask_for(maps, tile->image, tile->row, tile->column, OUT, begin, channels, 1);
}

/* --- filters ------------------------------------------------------------------------------------- */

struct filters {
    const float *weights;
    int64_t outputs, channels;
    /* Whether channels and outputs change places, and rows and columns run backwards: for the gradient of the maps. */
    int turned;
};

#ifdef __AVX512F__
/* A row's 128 bits of the same place in each of four vectors. */
INLINE __m512 quarters(__m512 a, __m512 b, __m512 c, __m512 d, const int place) {
    const __m512 first = place < 2 ? _mm512_shuffle_f32x4(a, b, 0x44) : _mm512_shuffle_f32x4(a, b, 0xee);
    const __m512 second = place < 2 ? _mm512_shuffle_f32x4(c, d, 0x44) : _mm512_shuffle_f32x4(c, d, 0xee);
    return place % 2 ? _mm512_shuffle_f32x4(first, second, 0xdd) : _mm512_shuffle_f32x4(first, second, 0x88);
}

/* Makes columns of the first `rows` rows, of which `columns` are used. */
INLINE void transpose(const __m512 *row, const int rows, __m512 *column, const int columns) {
    __m512 twos[LANES], fours[LANES];
    for (int i = 0; i < LANES; i += 2) {
        const __m512 zero = _mm512_setzero_ps(), a = i < rows ? row[i] : zero, b = i + 1 < rows ? row[i + 1] : zero;
        twos[i] = _mm512_unpacklo_ps(a, b), twos[i + 1] = _mm512_unpackhi_ps(a, b);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int half = 0; half < 2; half++) {
            const __m512d a = _mm512_castps_pd(twos[i + half]), b = _mm512_castps_pd(twos[i + half + 2]);
            fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < columns; i++)
        column[i] = quarters(fours[i % 4], fours[4 + i % 4], fours[8 + i % 4], fours[12 + i % 4], i / 4);
}
#elif defined(__AVX__)
/* Makes columns of eight rows. */
INLINE void transpose(const __m256 row[8], __m256 column[8]) {
    __m256 twos[8], fours[8];
    for (int i = 0; i < 8; i += 2)
        twos[i] = _mm256_unpacklo_ps(row[i], row[i + 1]), twos[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int half = 0; half < 2; half++) {
            const __m256d a = _mm256_castps_pd(twos[i + half]), b = _mm256_castps_pd(twos[i + half + 2]);
            fours[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            fours[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 4; i++) {
        column[i] = _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x20);
        column[4 + i] = _mm256_permute2f128_ps(fours[i], fours[4 + i], 0x31);
    }
}
#endif

/* Nine taps of each of some lanes: the lanes' are `of_lane` numbers apart, a lane's own stand in a row. */

INLINE void load_taps(const float *from, int64_t of_lane, int64_t lanes, vector taps[9]) {
#ifdef __AVX512F__
    __m512 rows[LANES], columns[9];
    for (int lane = 0; lane < LANES; lane++)
        rows[lane] = _mm512_maskz_loadu_ps(lane < lanes ? 0x1ff : 0, from + lane * of_lane);
    transpose(rows, LANES, columns, 9);
    memcpy(taps, columns, sizeof columns);
#elif defined(__AVX__)
    __m256 rows[LANES], columns[9];
    float last[LANES] = {0};
    for (int lane = 0; lane < LANES; lane++) {
        rows[lane] = lane < lanes ? _mm256_loadu_ps(from + lane * of_lane) : _mm256_setzero_ps();
        if (lane < lanes) last[lane] = from[lane * of_lane + 8];
    }
    transpose(rows, columns);
    columns[8] = _mm256_loadu_ps(last);
    memcpy(taps, columns, sizeof columns);
#else
    float numbers[9][LANES] = {0};
    for (int lane = 0; lane < lanes; lane++)
        for (int tap = 0; tap < 9; tap++) numbers[tap][lane] = from[lane * of_lane + tap];
    memcpy(taps, numbers, sizeof numbers);
#endif
}

INLINE void store_taps(const vector taps[9], float *to, int64_t of_lane, int64_t lanes) {
#ifdef __AVX512F__
    __m512 columns[9], rows[LANES];
    memcpy(columns, taps, sizeof columns);
    transpose(columns, 9, rows, LANES);
    for (int lane = 0; lane < LANES; lane++)
        if (lane < lanes) _mm512_mask_storeu_ps(to + lane * of_lane, 0x1ff, rows[lane]);
#elif defined(__AVX__)
    __m256 columns[8], rows[LANES];
    memcpy(columns, taps, sizeof columns);
    transpose(columns, rows);
    for (int lane = 0; lane < LANES; lane++)
        if (lane < lanes) {
            _mm256_storeu_ps(to + lane * of_lane, rows[lane]);
            to[lane * of_lane + 8] = taps[8][lane];
        }
#else
    for (int lane = 0; lane < lanes; lane++)
        for (int tap = 0; tap < 9; tap++) to[lane * of_lane + tap] = taps[tap][lane];
#endif
}

#define CHANNELS_AHEAD 4

/* Filters from one channel to a vector of outputs. */
INLINE void taps_at(const struct filters *filters, int64_t output, int64_t channel, vector taps[9]) {
    const int64_t of_output = filters->turned ? 9 : 9 * filters->channels;
    const int64_t of_channel = filters->turned ? 9 * filters->outputs : 9;
    const float *from = filters->weights + output * of_output + channel * of_channel;
    /* The processor does not see the channels of turned filters coming, which are far apart. */
    if (filters->turned)
        for (int64_t i = 0; i < 9 * LANES; i += CACHE_LINE / (int64_t)sizeof(float))
            __builtin_prefetch(from + CHANNELS_AHEAD * of_channel + i);
    vector found[9];
    load_taps(from, of_output, smaller(LANES, filters->outputs - output), found);
    for (int tap = 0; tap < 9; tap++) taps[tap] = found[filters->turned ? 8 - tap : tap];
}
