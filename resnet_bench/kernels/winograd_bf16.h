/* What the Winograd kernels of bfloat16 share: numbers, pixels of maps that a 2x2 max pool may have thinned out, and the
 * gradient of the filters, summed up in as many parts as there are threads.
 *
 * A file that includes this has included winograd.h, and says before: PAIRS, the pairs of tiles that are multiplied before
 * sums are written; SUMS, the bytes that sums may take, of all threads; and `taps_of_frequencies`. Below it says
 * `add_pairs`.
 */

/* --- numbers ------------------------------------------------------------------------------------- */

#define ALL_LANES ((__mmask16)-1)

INLINE __m512 load(const value *from, __mmask16 lanes) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE __m256i values(__m512 numbers) { return (__m256i)_mm512_cvtneps_pbh(numbers); }

INLINE void store(value *to, __m512 numbers, __mmask16 lanes) { _mm256_mask_storeu_epi16(to, lanes, values(numbers)); }

/* --- pixels -------------------------------------------------------------------------------------- */

/* Pointers that a vector has. */
#define POINTERS 8

/* A square's pixels; behind them is room for a vector that begins with the last line. */
struct pixels {
    const value *values[FREQUENCIES + POINTERS];
    const uint8_t *places[FREQUENCIES + POINTERS];
    /* The place among four of each. */
    uint8_t own[FREQUENCIES];
};

/* Where they are; `nothing`, which is zeros, is where the map has none, and from `end_row` and `end_column` on. */
INLINE void find_pixels(
    const struct maps *maps, int64_t image, int64_t row, int64_t column, int64_t end_row, int64_t end_column,
    const int size, const int pooled, const value *nothing, struct pixels *pixels
) {
    const int64_t height = maps->height >> pooled, width = maps->width >> pooled;
    const __m512i columns = _mm512_add_epi64(_mm512_set1_epi64(column), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    const __mmask8 columns_inside = _mm512_cmplt_epu64_mask(columns, _mm512_set1_epi64(end_column));
    /* Numbers from the line's first to those columns; a line has fewer than 2^31. */
    const __m512i offsets = _mm512_mul_epi32(_mm512_srai_epi64(columns, pooled), _mm512_set1_epi64(maps->channels));
    const __m512i none = _mm512_set1_epi64((int64_t)nothing);
    for (int y = 0; y < size; y++) {
        const __mmask8 inside = (uint64_t)(row + y) < (uint64_t)end_row ? columns_inside : 0;
        const int64_t line = (image * height + ((row + y) >> pooled)) * width * maps->channels;
        const __m512i numbers = _mm512_add_epi64(offsets, _mm512_set1_epi64(line));
        const __m512i of_values = _mm512_set1_epi64((int64_t)maps->values);
        _mm512_storeu_si512(
            pixels->values + size * y,
            _mm512_mask_add_epi64(none, inside, of_values, _mm512_slli_epi64(numbers, 1))
        );
        if (!pooled) continue;
        const __m512i of_places = _mm512_set1_epi64((int64_t)maps->places);
        _mm512_storeu_si512(pixels->places + size * y, _mm512_mask_add_epi64(none, inside, of_places, numbers));
        for (int x = 0; x < size; x++) pixels->own[size * y + x] = 2 * ((row + y) & 1) + ((column + x) & 1);
    }
}

INLINE __m512 load_pixel(const struct pixels *pixels, int at, int64_t c, __mmask16 lanes, const int pooled) {
    if (!pooled) return load(pixels->values[at] + c, lanes);
    const __m128i places = _mm_maskz_loadu_epi8(lanes, pixels->places[at] + c);
    const __mmask16 largest = _mm_mask_cmpeq_epi8_mask(lanes, places, _mm_set1_epi8(pixels->own[at]));
    return load(pixels->values[at] + c, largest);
}

/* Writes the largest of each channel; NaN counts as larger than any number. */
INLINE void write_largest(
    const struct maps *outputs, const struct tile *tile, const __m512 y[4], int64_t c, __mmask16 lanes
) {
    __m512 largest = y[0];
    __m512i place = _mm512_setzero_si512();
    for (int i = 1; i < 4; i++) {
        __mmask16 larger = _mm512_cmp_ps_mask(y[i], largest, _CMP_GT_OQ) | _mm512_cmp_ps_mask(y[i], y[i], _CMP_UNORD_Q);
        largest = _mm512_mask_mov_ps(largest, larger, y[i]);
        place = _mm512_mask_mov_epi32(place, larger, _mm512_set1_epi32(i));
    }
    const int64_t line = (tile->image * (outputs->height / 2) + tile->row / 2) * (outputs->width / 2);
    const int64_t at = (line + tile->column / 2) * outputs->channels + c;
    store((value *)outputs->values + at, largest, lanes);
    _mm_mask_storeu_epi8((uint8_t *)outputs->places + at, lanes, _mm512_cvtepi32_epi8(place));
}

/* --- the gradient of the filters ----------------------------------------------------------------- */

struct gradient {
    struct maps maps, gradients;
    struct tiling tiling;
    int64_t padding;
    /* Channels of the maps and of the gradients, and those that fill up the last vector of each. */
    int64_t room, gradients_room;
    /* Pairs of a frequency of the maps, and of one of the gradients. */
    int64_t of_frequency, of_gradients_frequency;
    const value *nothing;
    /* What tiles are summed up in, a part of the tiles each: [part][frequency][output][channel]. */
    int64_t parts, of_part;
    float *sums;
};

/* Frequencies of tiles, two by two: [frequency][pair of tiles][channel]. */
struct pairs {
    pair *of_maps, *of_gradients;
};

/* Sums up what some pairs of tiles give, or adds it to sums. */
static void add_pairs(
    const struct gradient *own, int64_t first, int64_t count, const struct pairs *pairs, float *sums, int add
);

static int add_part(const struct gradient *own, int64_t part) {
    const int64_t all = parts_of(tiles_of(&own->tiling), 2);
    const int64_t begin = all * part / own->parts, end = all * (part + 1) / own->parts;
    const struct pairs pairs = {
        memory(FREQUENCIES * own->of_frequency * sizeof(pair)),
        memory(FREQUENCIES * own->of_gradients_frequency * sizeof(pair)),
    };
    const int result = pairs.of_maps && pairs.of_gradients ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
        float *sums = own->sums + part * own->of_part;
        if (begin == end) memset(sums, 0, own->of_part * sizeof(float));
        for (int64_t first = begin; first < end; first += PAIRS)
            add_pairs(own, first, smaller(PAIRS, end - first), &pairs, sums, first > begin);
    }
    free(pairs.of_maps);
    free(pairs.of_gradients);
    return result;
}

/* The taps' gradients of one output's filters. */
INLINE void write_taps(const struct gradient *own, int64_t output, float *to) {
    const int64_t channels = own->maps.channels, outputs = own->gradients.channels;
    for (int64_t c = 0; c < channels; c += LANES) {
        __m512 x[FREQUENCIES], taps[9];
        for (int f = 0; f < FREQUENCIES; f++) {
            const float *sums = own->sums + (f * outputs + output) * own->room + c;
            x[f] = _mm512_loadu_ps(sums);
            for (int64_t part = 1; part < own->parts; part++) x[f] += _mm512_loadu_ps(sums + part * own->of_part);
        }
        taps_of_frequencies(x, taps);
        store_taps((const vector *)taps, to + 9 * c, 9, smaller(LANES, channels - c));
    }
}

/* Computes the gradient, of filters from the maps' channels to those of the gradients: [outputs, channels, 3, 3]. */
static int sum_up(
    const struct maps *maps, const struct maps *gradients, struct tiling tiling, int64_t padding, float *results, int threads
) {
    const int64_t channels = maps->channels, outputs = gradients->channels;
    const int64_t room = filled(channels), gradients_room = filled(outputs), of_part = FREQUENCIES * outputs * room;
    const int64_t affordable = SUMS / (of_part * (int64_t)sizeof(float)), parts = smaller(threads, affordable + 1);
    const int64_t apart = CACHE_LINE / (int64_t)sizeof(pair);
    value *nothing = calloc(larger(outputs, channels), sizeof(value));
    const struct gradient own = {
        *maps, *gradients, tiling, padding, room, gradients_room,
        PAIRS * room + apart, PAIRS * gradients_room + apart,
        nothing, parts, of_part, memory(parts * of_part * sizeof(float)),
    };
    int result = own.sums && nothing ? DONE : OUT_OF_MEMORY;
    if (result == DONE) {
#pragma omp parallel for num_threads(parts) schedule(static) reduction(| : result)
        for (int64_t part = 0; part < parts; part++) result |= add_part(&own, part);
    }
    if (result == DONE) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t output = 0; output < outputs; output++) write_taps(&own, output, results + output * channels * 9);
    }
    free(own.sums);
    free(nothing);
    return result;
}
