/* The window kernel as plain C: random boards in buffers of their exact size, and windows taken while a producer laps the
 * reader. For sanitizers and for other machines (./run.sh). Argument: a twentieth of the scans that the producer writes.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../_fastpath/window.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

#define BOARDS 200
#define MAX_CHANNELS 12

static uint64_t seed = 0x9E3779B97F4A7C15ull;

static uint32_t below(uint32_t n) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)((seed * 2685821657736338717ull) >> 33) % n;
}

static void *array(size_t n, size_t size) { /* of exactly that size, so that a sanitizer sees one element too many */
    void *p = calloc(n ? n : 1, size);
    CHECK(p);
    return p;
}

static rpi_ring new_ring(uint32_t channels, uint64_t capacity) {
    rpi_ring ring;
    void *memory = aligned_alloc(RPI_CACHE_LINE, (rpi_ring_bytes(channels, capacity) + 63) / 64 * 64);
    CHECK(memory);
    rpi_ring_create(&ring, memory, channels, capacity, 1000);
    return ring;
}

/* A board of `currents` outlets and `voltages` phases; with a lag, every second outlet mixes from two plain shifts. */
static rpi_window new_window(uint32_t currents, uint32_t voltages, uint32_t lag) {
    const uint32_t channels = currents + voltages, taps = 2 * lag + 1, rows = lag ? 2 * voltages : 0;
    double *gain = array(channels, sizeof *gain), *offset = array(channels, sizeof *offset);
    int32_t *full = array(channels, sizeof *full), *used = array(voltages, sizeof *used), *of = array(rows, sizeof *of);
    rpi_voltage *pairs = array(voltages, sizeof *pairs);
    rpi_outlet *outlets = array(currents, sizeof *outlets);
    rpi_term *terms = array(rows, sizeof *terms);
    float *filter = array((size_t)rows * taps, sizeof *filter);
    for (uint32_t c = 0; c < channels; c++) gain[c] = 1.0, full[c] = 1 << 24;
    for (uint32_t i = 0; i < voltages; i++) used[i] = (int32_t)(currents + i), pairs[i] = (rpi_voltage){used[i], -1, 0, 0};
    for (uint32_t b = 0; b < rows; b++) {
        of[b] = used[b / 2];
        terms[b] = (rpi_term){(int32_t)b, 0.5f};
        filter[b * taps + lag] = 1.0f;
    }
    for (uint32_t i = 0; i < currents; i++) {
        const int32_t v = voltages ? (int32_t)(i % voltages) : -1;
        outlets[i] = (rpi_outlet){(int32_t)i, v, 1.0, 2 * (uint32_t)(v < 0 ? 0 : v), i % 2 && v >= 0 && lag ? 2 : 0};
    }
    rpi_window w = {
        .n_channels = channels, .n_outlets = currents, .n_voltages = voltages, .n_used = voltages, .n_basis = rows, .lag = lag,
        .gain = gain, .offset = offset, .full_scale = full, .used = used, .voltages = pairs, .outlets = outlets,
        .terms = terms, .basis_channel = of, .basis_taps = filter,
        .counts = array((size_t)channels * RPI_ROW, sizeof(int32_t)), .state = array(channels, sizeof(rpi_channel_state)),
        .volts = array((size_t)channels * RPI_ROW, sizeof(double)), .pair = array((size_t)voltages * RPI_ROW, sizeof(double)),
        .pair_rms = array(voltages, sizeof(double)), .pair_present = array((size_t)voltages * RPI_WEIGHTED_SCANS, 1),
        .pair_flags = array(voltages, sizeof(uint32_t)), .basis = array((size_t)rows * RPI_WEIGHTED_SCANS, sizeof(float)),
        .out = array((size_t)currents * RPI_N_FEATURES, sizeof(double)),
    };
    rpi_window_weights(&w);
    return w;
}

static void free_window(rpi_window *w) {
    const void *all[] = {w->gain, w->offset, w->full_scale, w->used, w->voltages, w->outlets, w->terms, w->basis_channel,
                         w->basis_taps, w->counts, w->state, w->volts, w->pair, w->pair_rms, w->pair_present,
                         w->pair_flags, w->basis, w->out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free((void *)(uintptr_t)all[i]);
}

/* Every channel holds its own constant, so every feature is known whatever is lost. */
static void test_boards(void) {
    for (int round = 0; round < BOARDS; round++) {
        const uint32_t currents = 1 + below(8), voltages = below(4), lag = 2 * below(RPI_MAX_LAG / 2 + 1), channels = currents + voltages;
        rpi_ring ring = new_ring(channels, 330 + below(50));
        rpi_window w = new_window(currents, voltages, lag);
        int32_t row[MAX_CHANNELS];
        uint64_t index = below(1000);
        for (int k = 0; k < 700; k++) {
            index += 1 + (below(60) == 0) * below(9);
            for (uint32_t c = 0; c < channels; c++) row[c] = below(97) ? 100 * ((int32_t)c + 1) : RPI_NO_COUNT;
            rpi_ring_push(&ring, index, (int64_t)index * 1000000, index, 0, 0, row);
        }
        for (int portable = 0; portable < 2; portable++) {
            CHECK(rpi_window_compute(&w, &ring, rpi_ring_head(&ring), portable) == RPI_WINDOW_OK);
            CHECK(w.t_end_ns == (int64_t)index * 1000000);
            for (uint32_t i = 0; i < currents; i++) {
                const double *out = w.out + i, amps = 100.0 * (i + 1);
                CHECK(fabs(out[RPI_F_RMS_A * currents] - amps) < 1e-9 * amps);
                CHECK(out[RPI_F_MIN_A * currents] == amps && out[RPI_F_MAX_A * currents] == amps);
                CHECK(out[RPI_F_COUNT * currents] + out[RPI_F_MISSING * currents] == RPI_WINDOW_HOP);
                if (!voltages) continue;
                const double watts = amps * 100.0 * (currents + i % voltages + 1);
                CHECK(fabs(out[RPI_F_POWER_W * currents] - watts) < 1e-6 * watts);
            }
        }
        free_window(&w);
        free(ring.header);
    }
}

static void *produce(void *argument) {
    rpi_ring *ring = ((void **)argument)[0];
    const uint64_t scans = *(uint64_t *)((void **)argument)[1];
    int32_t row[8];
    for (uint64_t index = 0; index < scans; index++) {
        for (int c = 0; c < 8; c++) row[c] = (int32_t)index;
        rpi_ring_push(ring, index, (int64_t)index, index, 0, 0, row);
    }
    return NULL;
}

/* Counts are the scan's index: a window that is called OK must hold exactly its own hundred. */
static void test_lapping(uint64_t scans) {
    rpi_ring ring = new_ring(8, 256);
    rpi_window w = new_window(8, 0, 0);
    uint64_t taken = 0, lapped = 0;
    void *argument[] = {&ring, &scans};
    pthread_t producer;
    CHECK(pthread_create(&producer, NULL, produce, argument) == 0);
    for (uint64_t head = 0; head < scans;) {
        head = rpi_ring_head(&ring);
        const int result = rpi_window_compute(&w, &ring, head, (int)(head & 1));
        taken += result == RPI_WINDOW_OK;
        lapped += result == RPI_WINDOW_LAPPED;
        for (uint32_t i = 0; result == RPI_WINDOW_OK && i < 8; i++) {
            CHECK(w.out[RPI_F_COUNT * 8 + i] == RPI_WINDOW_HOP);
            CHECK(w.out[RPI_F_MAX_A * 8 + i] == (double)(head - 1));
            CHECK(w.out[RPI_F_MIN_A * 8 + i] == (double)(head - RPI_WINDOW_HOP));
        }
    }
    CHECK(pthread_join(producer, NULL) == 0);
    CHECK(taken > 0);
    printf("window: %d boards, %llu windows taken, %llu lapped\n", BOARDS, (unsigned long long)taken, (unsigned long long)lapped);
    free_window(&w);
    free(ring.header);
}

int main(int argc, char **argv) {
    test_boards();
    test_lapping(20 * (argc > 1 ? strtoull(argv[1], NULL, 10) : 100000));
    return 0;
}
