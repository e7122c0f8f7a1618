/* What the Winograd kernels of bfloat16 share: the gradient of the filters, summed up in as many parts as there are threads.
 *
 * A file that includes this has included winograd.h, and says before: PAIRS, the pairs of tiles that are multiplied before
 * sums are written; SUMS, the bytes that sums may take, of all threads; and below `add_pairs`.
 */

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
    const struct maps *maps, const struct maps *gradients, int64_t images, int64_t padding, float *results, int threads
) {
    const int64_t channels = maps->channels, outputs = gradients->channels;
    const int64_t room = filled(channels), gradients_room = filled(outputs), of_part = FREQUENCIES * outputs * room;
    const int64_t affordable = SUMS / (of_part * (int64_t)sizeof(float)), parts = smaller(threads, affordable + 1);
    const int64_t apart = CACHE_LINE / (int64_t)sizeof(pair);
    value *nothing = calloc(larger(outputs, channels), sizeof(value));
    const struct gradient own = {
        *maps, *gradients, tiling_of(images, gradients->height, gradients->width), padding, room, gradients_room,
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
