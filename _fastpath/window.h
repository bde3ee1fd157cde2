/* Window kernels: one pass over the newest scans of a ring gives power, RMS, peak and the rest of every outlet.
 *
 * The scans are read in place, copied channel by channel into a buffer that stays in the cache, and the copy is used
 * only if the ring says afterwards that it was intact. Written with the vector extension that gcc and clang share, so
 * that the sums have a fixed order on every machine.
 */
#ifndef RPI_WINDOW_H
#define RPI_WINDOW_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "spsc.h"

#define RPI_WEIGHTED_SCANS 200u /* half overlap, so that the weights sum to one */
#define RPI_WINDOW_HOP 100u     /* newest scans, unweighted: peak, min, max, count, missing */
#define RPI_BLOCK 20u          /* half of a 40 ms Hann */
#define RPI_BLOCKS (RPI_WEIGHTED_SCANS / RPI_BLOCK)
#define RPI_FIRST_BLOCK 2u     /* the five 40 ms means that end in the newest 100 scans, and those 40 ms before them */
#define RPI_MAX_LAG 64u
#define RPI_ROW (RPI_WEIGHTED_SCANS + 2u * RPI_MAX_LAG + 8u)
#define RPI_NO_COUNT INT32_MIN /* the board's "no data" for one channel of a scan, and ours for a missing scan */

enum { RPI_WINDOW_OK = 0, RPI_WINDOW_NOT_READY = 1, RPI_WINDOW_LAPPED = 2 };

/* Values of records.Quality; a test holds them equal. */
enum { RPI_QUALITY_MISSING = 1, RPI_QUALITY_SATURATED = 2, RPI_QUALITY_NO_VOLTAGE = 8, RPI_QUALITY_UNCALIBRATED = 16 };

/* Board status bits, docs/sensor-board-protocol.md: REFERENCE, TEMPERATURE; and TEST, SETTLING: not a measurement. */
enum { RPI_STATUS_UNCERTAIN = 1 << 3 | 1 << 4, RPI_STATUS_NO_DATA = 1 << 5 | 1 << 6 };

enum {
    RPI_F_POWER_W, RPI_F_RMS_A, RPI_F_APPARENT_VA, RPI_F_POWER_FACTOR, RPI_F_PEAK_A, RPI_F_CREST, RPI_F_MIN_A,
    RPI_F_MAX_A, RPI_F_STEP, RPI_F_VOLTAGE_V, RPI_F_COUNT, RPI_F_MISSING, RPI_F_SATURATED, RPI_F_QUALITY, RPI_N_FEATURES
};

/* A voltage as an outlet sees it: channel `plus`, less channel `minus` (line to line) unless that is -1. */
typedef struct {
    int32_t plus, minus;
    uint32_t first_term, n_terms; /* mix of basis rows that brings `minus` into step with `plus`; none = as sampled */
} rpi_voltage;

typedef struct {
    int32_t current;             /* channel */
    int32_t voltage;             /* index of rpi_voltage, or -1 */
    double sign;                 /* -1 where the transformer sits the other way round */
    uint32_t first_term, n_terms; /* its share of each basis row; none = the voltage needs no delay */
} rpi_outlet;

typedef struct {
    int32_t row;
    float factor;
} rpi_term;

/* What was found in one channel's counts. */
typedef struct {
    int32_t low, high; /* of the newest 100 */
    uint8_t holes, clipped;
} rpi_channel_state;

/* All arrays belong to the caller. */
typedef struct {
    uint32_t n_channels, n_outlets, n_voltages, n_used, n_basis, lag;
    const double *gain, *offset;         /* [n_channels] unit per count; counts */
    const int32_t *full_scale;           /* [n_channels] counts */
    const int32_t *used;                 /* [n_used] channels that carry voltage */
    const rpi_voltage *voltages;         /* [n_voltages] */
    const rpi_outlet *outlets;           /* [n_outlets] */
    const rpi_term *terms;
    const int32_t *basis_channel;        /* [n_basis] */
    const float *basis_taps;             /* [n_basis][2*lag+1] */
    int32_t *counts;                     /* [n_channels][RPI_ROW] */
    rpi_channel_state *state;            /* [n_channels] */
    double *volts;                       /* [n_channels][RPI_ROW], rows of `used` only */
    double *pair;                        /* [n_voltages][RPI_ROW] aligned with the weighted window */
    double *pair_rms;                    /* [n_voltages] */
    uint8_t *pair_present;               /* [n_voltages][RPI_WEIGHTED_SCANS] */
    uint32_t *pair_flags;                /* [n_voltages] quality bits */
    float *basis;                        /* [n_basis][RPI_WEIGHTED_SCANS] */
    double *out;                         /* [RPI_N_FEATURES][n_outlets] */
    int64_t t_end_ns;                    /* out: time of the last scan */
    uint32_t status;                     /* out: board status bits of all its scans */
    double rise[RPI_WEIGHTED_SCANS];       /* weights of the 200 scans: rise, then fall */
    double half[RPI_BLOCK];              /* rising half of the 40 ms Hann */
} rpi_window;

/* 1/2 - 9/16 cos x + 1/16 cos 3x over one turn of x: with p = sin^2(x/2), the Hann, that is p^2 (3 - 2p). Even and odd
 * harmonics beat at the line frequency, where a Hann leaks too much (docs/decisions/window-weights.md).
 */
static inline void rpi_window_weights(rpi_window *w) {
    const double pi = 3.14159265358979323846;
    for (uint32_t k = 0; k < RPI_WINDOW_HOP; k++) {
        const double s = sin(pi * k / RPI_WEIGHTED_SCANS), p = s * s;
        w->rise[k] = p * p * (3.0 - 2.0 * p);
        w->rise[k + RPI_WINDOW_HOP] = 1.0 - w->rise[k]; /* so the sum with the next window's rise is one to the bit */
    }
    for (uint32_t j = 0; j < RPI_BLOCK; j++) {
        double s = sin(pi * j / (2.0 * RPI_BLOCK));
        w->half[j] = s * s;
    }
}

/* Sums over one outlet's weighted window, in counts times volts (or counts squared where there is no voltage). */
typedef struct {
    double square, square_weight, product, product_weight;
    double rising[RPI_BLOCKS], whole[RPI_BLOCKS];               /* of the product, per block of 20 */
    double rising_weight[RPI_BLOCKS], whole_weight[RPI_BLOCKS];
} rpi_sums;

/* Weights that the sums hold: all of them, less those of the holes in the current, and for products in the voltage. */
static inline void rpi_window_weigh(const rpi_window *w, const int32_t *counts, const uint8_t *v_there, rpi_sums *s) {
    s->square_weight = s->product_weight = RPI_WINDOW_HOP;
    for (uint32_t b = 0; b < RPI_BLOCKS; b++) {
        s->whole_weight[b] = RPI_BLOCK;
        s->rising_weight[b] = RPI_BLOCK / 2.0 - 0.5; /* sum of sin^2 over the rising half */
    }
    for (uint32_t k = 0; (counts || v_there) && k < RPI_WEIGHTED_SCANS; k++) {
        const int hole = counts && counts[k] == RPI_NO_COUNT;
        if (hole) s->square_weight -= w->rise[k];
        if (!hole && (!v_there || v_there[k])) continue;
        s->product_weight -= w->rise[k];
        s->whole_weight[k / RPI_BLOCK] -= 1.0;
        s->rising_weight[k / RPI_BLOCK] -= w->half[k % RPI_BLOCK];
    }
}

/* Mean over the 40 ms Hann that begins with block b; NAN when less than half of it is there. */
static inline double rpi_window_short_mean(const rpi_sums *s, uint32_t b) {
    const double weight = s->rising_weight[b] + s->whole_weight[b + 1] - s->rising_weight[b + 1];
    const double sum = s->rising[b] + s->whole[b + 1] - s->rising[b + 1];
    return weight * 2.0 >= RPI_BLOCK ? sum / weight : NAN;
}

/* Largest change between 40 ms means 40 ms apart; `root` takes the square root of each mean first. */
static inline double rpi_window_step(const rpi_sums *s, int root) {
    double mean[RPI_BLOCKS], largest = NAN;
    for (uint32_t b = RPI_FIRST_BLOCK; b + 1 < RPI_BLOCKS; b++) {
        mean[b] = rpi_window_short_mean(s, b);
        if (root) mean[b] = sqrt(mean[b]);
    }
    for (uint32_t b = RPI_FIRST_BLOCK; b + 3 < RPI_BLOCKS; b++) {
        const double change = fabs(mean[b + 2] - mean[b]);
        if (!(change <= largest) && !isnan(change)) largest = change;
    }
    return largest;
}

static inline void rpi_window_volts(rpi_window *w, uint32_t c, uint32_t n) {
    const int32_t *p = w->counts + (size_t)c * RPI_ROW;
    double *v = w->volts + (size_t)c * RPI_ROW;
    const double gain = w->gain[c], offset = w->offset[c];
    for (uint32_t k = 0; k < n; k++) v[k] = gain * ((double)p[k] - offset);
    if (!w->state[c].holes) return;
    /* A filter needs a number beside a hole. Bridged by a straight line; the hole itself is never used as a sample. */
    double last = 0.0;
    uint32_t from = 0;
    int seen = 0;
    for (uint32_t k = 0; k < n; k++) {
        if (p[k] == RPI_NO_COUNT) continue;
        for (uint32_t j = from; j < k; j++)
            v[j] = seen ? last + (v[k] - last) * (double)(j + 1 - from) / (double)(k + 1 - from) : v[k];
        last = v[k];
        from = k + 1;
        seen = 1;
    }
    for (uint32_t j = from; j < n; j++) v[j] = last;
}

typedef int32_t rpi_quad __attribute__((vector_size(16)));
#if defined(__clang__)
#define RPI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RPI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (rpi_quad){__VA_ARGS__})
#endif

/* Four channels of four scans, turned round: `to` is where channel c of the first scan goes. */
static inline void rpi_window_turn(const rpi_scan *const *row, uint32_t c, int32_t *to) {
    rpi_quad r[4], low[2], high[2];
    for (int j = 0; j < 4; j++) memcpy(&r[j], row[j]->counts + c, sizeof r[j]); /* plain loads: see spsc.h */
    for (int j = 0; j < 2; j++) {
        low[j] = RPI_SHUFFLE(r[2 * j], r[2 * j + 1], 0, 4, 1, 5);
        high[j] = RPI_SHUFFLE(r[2 * j], r[2 * j + 1], 2, 6, 3, 7);
    }
    r[0] = RPI_SHUFFLE(low[0], low[1], 0, 1, 4, 5);
    r[1] = RPI_SHUFFLE(low[0], low[1], 2, 3, 6, 7);
    r[2] = RPI_SHUFFLE(high[0], high[1], 0, 1, 4, 5);
    r[3] = RPI_SHUFFLE(high[0], high[1], 2, 3, 6, 7);
    for (int j = 0; j < 4; j++) memcpy(to + (size_t)j * RPI_ROW, &r[j], sizeof r[j]);
}

/* Scans `base` .. `base`+n-1 into one row per channel; what is missing, or no measurement by its status, becomes
 * RPI_NO_COUNT. n is a multiple of 4.
 * Returns 0 if a start or a reboot lies within: what is on its two sides was not 1 ms apart.
 */
static inline int rpi_window_gather(rpi_window *w, const rpi_ring *ring, uint64_t base, uint32_t n) {
    const uint32_t channels = w->n_channels;
    uint64_t place = base % ring->capacity;
    int64_t t_ns = 0;
    uint32_t t_at = UINT32_MAX;
    int whole = 1;
    w->status = 0;
    for (uint32_t k = 0; k < n; k += 4) {
        const rpi_scan *row[4];
        uint32_t present = 0, c = 0;
        for (uint32_t j = 0; j < 4; j++) {
            row[j] = (const rpi_scan *)(ring->slots + place * ring->slot_bytes);
            if (++place == ring->capacity) place = 0;
            if (rpi_scan_index(row[j]) != base + k + j) continue;
            if (k + j > 0 && rpi_scan_flags(row[j]) & RPI_SCAN_FIRST) whole = 0;
            const uint32_t status = rpi_scan_status(row[j]);
            w->status |= status;
            if (!(status & RPI_STATUS_NO_DATA)) present |= 1u << j;
            t_ns = rpi_scan_time(row[j]);
            t_at = k + j;
        }
        int32_t *to = w->counts + k;
        if (present == 0xfu)
            for (; c + 4 <= channels; c += 4) rpi_window_turn(row, c, to + (size_t)c * RPI_ROW);
        for (; c < channels; c++)
            for (uint32_t j = 0; j < 4; j++)
                to[(size_t)c * RPI_ROW + j] = present >> j & 1u ? rpi_scan_count(row[j], c) : RPI_NO_COUNT;
    }
    const int64_t period_ns = ring->header->rate_hz ? 1000000000LL / ring->header->rate_hz : 0;
    w->t_end_ns = t_at == UINT32_MAX ? 0 : t_ns + (int64_t)(n - 1 - t_at) * period_ns;
    return whole;
}

/* Of a channel with holes or clipped samples: brings counts beyond full scale to it, finds the extremes of what is there. */
static inline void rpi_window_clip(rpi_window *w, uint32_t c, uint32_t n) {
    int32_t *p = w->counts + (size_t)c * RPI_ROW;
    rpi_channel_state *s = &w->state[c];
    const int32_t full = w->full_scale[c];
    s->low = INT32_MAX;
    s->high = INT32_MIN;
    for (uint32_t k = 0; k < n; k++) {
        if (p[k] == RPI_NO_COUNT) continue;
        if (p[k] >= full || p[k] <= -full) {
            p[k] = p[k] > 0 ? full : -full;
            s->clipped = 1;
        }
        if (k < n - RPI_WINDOW_HOP) continue;
        if (p[k] < s->low) s->low = p[k];
        if (p[k] > s->high) s->high = p[k];
    }
}

/* From sums to features. */
static inline void rpi_window_finish(rpi_window *w, uint32_t i, uint32_t n, const rpi_sums *s) {
    const rpi_outlet *o = &w->outlets[i];
    const rpi_channel_state *state = &w->state[o->current];
    const int32_t *newest = w->counts + (size_t)o->current * RPI_ROW + n - RPI_WINDOW_HOP;
    const double gain = w->gain[o->current] * o->sign, offset = w->offset[o->current];
    uint32_t quality = (state->holes ? RPI_QUALITY_MISSING : 0u) | (state->clipped ? RPI_QUALITY_SATURATED : 0u);
    quality |= o->voltage >= 0 ? w->pair_flags[o->voltage] : (uint32_t)RPI_QUALITY_NO_VOLTAGE;
    if (w->status & RPI_STATUS_UNCERTAIN) quality |= RPI_QUALITY_UNCALIBRATED;

    uint32_t missing = 0, clipped = 0;
    if (state->holes || state->clipped) {
        const int32_t full = w->full_scale[o->current];
        for (uint32_t k = 0; k < RPI_WINDOW_HOP; k++) {
            missing += newest[k] == RPI_NO_COUNT;
            clipped += newest[k] != RPI_NO_COUNT && (newest[k] >= full || newest[k] <= -full);
        }
    }
    double low = NAN, high = NAN;
    if (missing < RPI_WINDOW_HOP) {
        low = gain * ((double)state->low - offset);
        high = gain * ((double)state->high - offset);
        if (low > high) {
            const double swap = low;
            low = high;
            high = swap;
        }
    }
    const double rms = s->square_weight * 2.0 >= RPI_WINDOW_HOP ? fabs(gain) * sqrt(s->square / s->square_weight) : NAN;
    const double peak = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
    double power = NAN, apparent = NAN, factor = NAN, volts = NAN, step;
    if (o->voltage >= 0) {
        power = s->product_weight * 2.0 >= RPI_WINDOW_HOP ? gain * (s->product / s->product_weight) : NAN;
        volts = w->pair_rms[o->voltage];
        apparent = volts * rms;
        factor = power / apparent;
        if (factor > 1.0) factor = 1.0; /* the filter's ripple may carry it past by 1e-4 */
        if (factor < -1.0) factor = -1.0;
        step = fabs(gain) * rpi_window_step(s, 0);
    } else {
        step = fabs(gain) * rpi_window_step(s, 1);
    }
    double *out = w->out + i;
    const size_t stride = w->n_outlets;
    out[RPI_F_POWER_W * stride] = power;
    out[RPI_F_RMS_A * stride] = rms;
    out[RPI_F_APPARENT_VA * stride] = apparent;
    out[RPI_F_POWER_FACTOR * stride] = factor;
    out[RPI_F_PEAK_A * stride] = peak;
    out[RPI_F_CREST * stride] = peak / rms;
    out[RPI_F_MIN_A * stride] = low;
    out[RPI_F_MAX_A * stride] = high;
    out[RPI_F_STEP * stride] = step;
    out[RPI_F_VOLTAGE_V * stride] = volts;
    out[RPI_F_COUNT * stride] = RPI_WINDOW_HOP - missing;
    out[RPI_F_MISSING * stride] = missing;
    out[RPI_F_SATURATED * stride] = clipped;
    out[RPI_F_QUALITY * stride] = quality;
}

#define RPI_JOIN2(a, b) a##b
#define RPI_JOIN(a, b) RPI_JOIN2(a, b)
#define PASS(name) RPI_JOIN(rpi_window_##name, RPI_VECTOR_BYTES)

#define RPI_VECTOR_BYTES 16 /* SSE2, the x86-64 baseline, and NEON: a wider vector would live in memory there */
#define RPI_PASS_INLINE static inline __attribute__((always_inline))
#include "window_pass.h"
#undef RPI_VECTOR_BYTES
#undef RPI_PASS_INLINE

static int rpi_window_portable(rpi_window *w, const rpi_ring *ring, uint64_t end) { return rpi_window_pass16(w, ring, end); }

#if defined(__x86_64__)
#define RPI_VECTOR_BYTES 32 /* any x86 server of the last ten years */
#define RPI_PASS_INLINE static inline __attribute__((always_inline, target("avx2,fma")))
#include "window_pass.h"
#undef RPI_VECTOR_BYTES
#undef RPI_PASS_INLINE

__attribute__((target("avx2,fma"))) static int rpi_window_avx2(rpi_window *w, const rpi_ring *ring, uint64_t end) {
    return rpi_window_pass32(w, ring, end);
}
#endif

/* Features of the window that ends before scan `end`. Touches nothing but `w`; any thread, one at a time per `w`. */
static inline int rpi_window_compute(rpi_window *w, const rpi_ring *ring, uint64_t end, int portable) {
#if defined(__x86_64__)
    if (!portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return rpi_window_avx2(w, ring, end);
#endif
    (void)portable;
    return rpi_window_portable(w, ring, end);
}

#endif
