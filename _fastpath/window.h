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

#define RPI_HANN_SCANS 200u  /* weighted by a periodic Hann; half overlap, so that the weights sum to one */
#define RPI_WINDOW_HOP 100u    /* newest scans, unweighted: peak, min, max, count, missing */
#define RPI_BLOCK 20u          /* half of a 40 ms Hann */
#define RPI_BLOCKS (RPI_HANN_SCANS / RPI_BLOCK)
#define RPI_FIRST_BLOCK 2u     /* the five 40 ms means that end in the newest 100 scans, and those 40 ms before them */
#define RPI_MAX_LAG 64u
#define RPI_ROW (RPI_HANN_SCANS + 2u * RPI_MAX_LAG + 8u)
#define RPI_NO_COUNT INT32_MIN /* the board's "no data" for one channel of a scan, and ours for a missing scan */

enum { RPI_WINDOW_OK = 0, RPI_WINDOW_NOT_READY = 1, RPI_WINDOW_LAPPED = 2 };

/* Values of records.Quality; a test holds them equal. */
enum { RPI_QUALITY_MISSING = 1, RPI_QUALITY_SATURATED = 2, RPI_QUALITY_NO_VOLTAGE = 8 };

enum {
    RPI_F_POWER_W, RPI_F_RMS_A, RPI_F_APPARENT_VA, RPI_F_POWER_FACTOR, RPI_F_PEAK_A, RPI_F_CREST, RPI_F_MIN_A,
    RPI_F_MAX_A, RPI_F_STEP, RPI_F_VOLTAGE_V, RPI_F_COUNT, RPI_F_MISSING, RPI_F_SATURATED, RPI_F_QUALITY, RPI_N_FEATURES
};

typedef double rpi_v4d __attribute__((vector_size(32)));
typedef float rpi_v8f __attribute__((vector_size(32)));
typedef int32_t rpi_v4i __attribute__((vector_size(16)));
typedef int32_t rpi_v8i __attribute__((vector_size(32)));

/* A voltage as an outlet sees it: channel `plus`, less channel `minus` (line to line) unless that is -1. */
typedef struct {
    int32_t plus, minus;
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
    uint8_t *pair_present;               /* [n_voltages][RPI_HANN_SCANS] */
    uint32_t *pair_flags;                /* [n_voltages] quality bits */
    float *basis;                        /* [n_basis][RPI_HANN_SCANS] */
    double *out;                         /* [RPI_N_FEATURES][n_outlets] */
    int64_t t_end_ns;                    /* out: time of the last scan */
    double rise[RPI_HANN_SCANS];       /* the 200-scan Hann */
    double half[RPI_BLOCK];              /* rising half of the 40 ms Hann */
} rpi_window;

static inline void rpi_window_weights(rpi_window *w) {
    const double pi = 3.14159265358979323846;
    for (uint32_t k = 0; k < RPI_WINDOW_HOP; k++) {
        double s = sin(pi * k / RPI_HANN_SCANS);
        w->rise[k] = s * s;
        w->rise[k + RPI_WINDOW_HOP] = 1.0 - s * s; /* so the sum with the next window's rise is one to the bit */
    }
    for (uint32_t j = 0; j < RPI_BLOCK; j++) {
        double s = sin(pi * j / (2.0 * RPI_BLOCK));
        w->half[j] = s * s;
    }
}

#define RPI_INLINE static inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are returned by inlined functions only: no ABI is involved */
#endif

RPI_INLINE rpi_v4d rpi_load4(const double *p) {
    rpi_v4d v;
    memcpy(&v, p, sizeof v);
    return v;
}

RPI_INLINE rpi_v8f rpi_load8f(const float *p) {
    rpi_v8f v;
    memcpy(&v, p, sizeof v);
    return v;
}

RPI_INLINE rpi_v4d rpi_counts4(const int32_t *p) {
    rpi_v4i v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, rpi_v4d);
}

RPI_INLINE double rpi_sum4(rpi_v4d v) { return (v[0] + v[1]) + (v[2] + v[3]); }

/* Scans `base` .. `base`+n-1 into one row per channel; what is missing becomes RPI_NO_COUNT. */
RPI_INLINE void rpi_window_gather(rpi_window *w, const rpi_ring *ring, uint64_t base, uint32_t n) {
    const uint32_t channels = w->n_channels;
    uint64_t place = base % ring->capacity;
    int64_t t_ns = 0;
    uint32_t t_at = UINT32_MAX;
    for (uint32_t k = 0; k < n; k += 8) {
        const rpi_scan *row[8];
        const uint32_t m = n - k < 8 ? n - k : 8;
        uint32_t present = 0;
        for (uint32_t j = 0; j < m; j++) {
            const rpi_scan *scan = (const rpi_scan *)(ring->slots + place * ring->slot_bytes);
            if (++place == ring->capacity) place = 0;
            row[j] = scan;
            if (rpi_scan_index(scan) == base + k + j) {
                present |= 1u << j;
                t_ns = rpi_scan_time(scan);
                t_at = k + j;
            }
        }
        int32_t *to = w->counts + k;
        if (present == 0xffu) {
            for (uint32_t c = 0; c < channels; c++, to += RPI_ROW) {
                rpi_v8i v = {rpi_scan_count(row[0], c), rpi_scan_count(row[1], c), rpi_scan_count(row[2], c), rpi_scan_count(row[3], c),
                             rpi_scan_count(row[4], c), rpi_scan_count(row[5], c), rpi_scan_count(row[6], c), rpi_scan_count(row[7], c)};
                memcpy(to, &v, sizeof v);
            }
        } else {
            for (uint32_t c = 0; c < channels; c++, to += RPI_ROW)
                for (uint32_t j = 0; j < m; j++) to[j] = present >> j & 1u ? rpi_scan_count(row[j], c) : RPI_NO_COUNT;
        }
    }
    const int64_t period_ns = ring->header->rate_hz ? 1000000000LL / ring->header->rate_hz : 0;
    w->t_end_ns = t_at == UINT32_MAX ? 0 : t_ns + (int64_t)(n - 1 - t_at) * period_ns;
}

RPI_INLINE void rpi_window_extremes(const int32_t *p, uint32_t n, int32_t *low, int32_t *high) {
    rpi_v8i lo, hi, v;
    memcpy(&lo, p, sizeof lo);
    hi = lo;
    for (uint32_t k = 8; k + 8 <= n; k += 8) {
        memcpy(&v, p + k, sizeof v);
        rpi_v8i less = v < lo, more = v > hi;
        lo = (v & less) | (lo & ~less);
        hi = (v & more) | (hi & ~more);
    }
    memcpy(&v, p + n - 8, sizeof v); /* the tail, overlapping what was seen */
    rpi_v8i less = v < lo, more = v > hi;
    lo = (v & less) | (lo & ~less);
    hi = (v & more) | (hi & ~more);
    *low = lo[0];
    *high = hi[0];
    for (int j = 1; j < 8; j++) {
        if (lo[j] < *low) *low = lo[j];
        if (hi[j] > *high) *high = hi[j];
    }
}

/* Holes and clipped samples of one channel; a count beyond full scale is brought to it. */
RPI_INLINE void rpi_window_inspect(rpi_window *w, uint32_t c, uint32_t n) {
    int32_t *p = w->counts + (size_t)c * RPI_ROW;
    rpi_channel_state *s = &w->state[c];
    int32_t low, high;
    const int32_t full = w->full_scale[c];
    rpi_window_extremes(p + n - RPI_WINDOW_HOP, RPI_WINDOW_HOP, &s->low, &s->high);
    rpi_window_extremes(p, n - RPI_WINDOW_HOP, &low, &high);
    if (s->low < low) low = s->low;
    if (s->high > high) high = s->high;
    s->holes = low == RPI_NO_COUNT;
    s->clipped = 0;
    if (high < full && low > -full) return;
    int any = 0;
    for (uint32_t k = 0; k < n; k++) {
        if (p[k] == RPI_NO_COUNT) continue;
        if (p[k] >= full) p[k] = full, any = 1;
        if (p[k] <= -full) p[k] = -full, any = 1;
    }
    s->clipped = (uint8_t)any;
    s->low = INT32_MAX;
    s->high = INT32_MIN;
    for (uint32_t k = n - RPI_WINDOW_HOP; k < n; k++) {
        if (p[k] == RPI_NO_COUNT) continue;
        if (p[k] < s->low) s->low = p[k];
        if (p[k] > s->high) s->high = p[k];
    }
}

RPI_INLINE void rpi_window_volts(rpi_window *w, uint32_t c, uint32_t n) {
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

/* Voltage `i` over the weighted window, its RMS, and where it is there. */
RPI_INLINE void rpi_window_pair(rpi_window *w, uint32_t i) {
    const rpi_voltage *s = &w->voltages[i];
    const uint32_t lag = w->lag;
    double *v = w->pair + (size_t)i * RPI_ROW;
    const double *a = w->volts + (size_t)s->plus * RPI_ROW + lag;
    uint8_t holes = w->state[s->plus].holes, clipped = w->state[s->plus].clipped;
    memcpy(v, a, RPI_HANN_SCANS * sizeof *v);
    if (s->minus >= 0) {
        const double *b = w->volts + (size_t)s->minus * RPI_ROW + lag;
        for (uint32_t k = 0; k < RPI_HANN_SCANS; k++) v[k] -= b[k];
        holes |= w->state[s->minus].holes;
        clipped |= w->state[s->minus].clipped;
    }
    w->pair_flags[i] = (holes ? RPI_QUALITY_MISSING : 0u) | (clipped ? RPI_QUALITY_SATURATED : 0u);
    double sum = 0.0, weight = RPI_WINDOW_HOP;
    if (!holes) {
        rpi_v4d acc = {0};
        for (uint32_t k = 0; k < RPI_HANN_SCANS; k += 4) {
            rpi_v4d x = rpi_load4(v + k);
            acc += rpi_load4(w->rise + k) * x * x;
        }
        sum = rpi_sum4(acc);
    } else {
        uint8_t *there = w->pair_present + (size_t)i * RPI_HANN_SCANS;
        const int32_t *pa = w->counts + (size_t)s->plus * RPI_ROW + lag;
        const int32_t *pb = w->counts + (size_t)(s->minus >= 0 ? s->minus : s->plus) * RPI_ROW + lag;
        weight = 0.0;
        for (uint32_t k = 0; k < RPI_HANN_SCANS; k++) {
            there[k] = pa[k] != RPI_NO_COUNT && pb[k] != RPI_NO_COUNT;
            if (!there[k]) continue;
            sum += w->rise[k] * v[k] * v[k];
            weight += w->rise[k];
        }
    }
    w->pair_rms[i] = weight * 2.0 >= RPI_WINDOW_HOP ? sqrt(sum / weight) : NAN;
}

RPI_INLINE void rpi_window_filter(rpi_window *w, uint32_t b) {
    const uint32_t taps = 2 * w->lag + 1, n = RPI_HANN_SCANS + 2 * w->lag;
    const double *v = w->volts + (size_t)w->basis_channel[b] * RPI_ROW;
    const float *h = w->basis_taps + (size_t)b * taps;
    float *y = w->basis + (size_t)b * RPI_HANN_SCANS;
    float x[RPI_ROW];
    for (uint32_t k = 0; k < n; k++) x[k] = (float)v[k];
    for (uint32_t k = 0; k < RPI_HANN_SCANS; k += 40) {
        rpi_v8f s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0};
        for (uint32_t j = 0; j < taps; j++) {
            const float *p = x + k + j;
            s0 += h[j] * rpi_load8f(p);
            s1 += h[j] * rpi_load8f(p + 8);
            s2 += h[j] * rpi_load8f(p + 16);
            s3 += h[j] * rpi_load8f(p + 24);
            s4 += h[j] * rpi_load8f(p + 32);
        }
        memcpy(y + k, &s0, sizeof s0);
        memcpy(y + k + 8, &s1, sizeof s1);
        memcpy(y + k + 16, &s2, sizeof s2);
        memcpy(y + k + 24, &s3, sizeof s3);
        memcpy(y + k + 32, &s4, sizeof s4);
    }
}

/* The voltage of an outlet, in step with its current. */
RPI_INLINE const double *rpi_window_aligned(const rpi_window *w, const rpi_outlet *o, double *scratch) {
    if (o->n_terms == 0) return w->pair + (size_t)o->voltage * RPI_ROW;
    const rpi_term *t = w->terms + o->first_term;
    for (uint32_t k = 0; k < RPI_HANN_SCANS; k += 8) {
        rpi_v8f s = {0};
        for (uint32_t j = 0; j < o->n_terms; j++)
            s += t[j].factor * rpi_load8f(w->basis + (size_t)t[j].row * RPI_HANN_SCANS + k);
        for (int j = 0; j < 8; j++) scratch[k + j] = s[j];
    }
    return scratch;
}

/* Sums over one outlet's weighted window, in counts times volts (or counts squared where there is no voltage). */
typedef struct {
    double square, square_weight, product, product_weight;
    double rising[RPI_BLOCKS], whole[RPI_BLOCKS];               /* of the product, per block of 20 */
    double rising_weight[RPI_BLOCKS], whole_weight[RPI_BLOCKS];
} rpi_sums;

RPI_INLINE void rpi_window_sum(const rpi_window *w, const int32_t *counts, double offset, const double *v, rpi_sums *s) {
    rpi_v4d square = {0}, product = {0};
    for (uint32_t b = 0; b < RPI_BLOCKS; b++) {
        rpi_v4d rising = {0}, whole = {0};
        for (uint32_t j = 0; j < RPI_BLOCK; j += 4) {
            const uint32_t k = b * RPI_BLOCK + j;
            rpi_v4d x = rpi_counts4(counts + k) - offset;
            rpi_v4d weight = rpi_load4(w->rise + k);
            rpi_v4d p = v ? x * rpi_load4(v + k) : x * x;
            square += weight * (x * x);
            product += weight * p;
            whole += p;
            rising += rpi_load4(w->half + j) * p;
        }
        s->whole[b] = rpi_sum4(whole);
        s->rising[b] = rpi_sum4(rising);
        s->whole_weight[b] = RPI_BLOCK;
        s->rising_weight[b] = RPI_BLOCK / 2.0 - 0.5; /* sum of sin^2 over the rising half */
    }
    s->square = rpi_sum4(square);
    s->product = rpi_sum4(product);
    s->square_weight = s->product_weight = RPI_WINDOW_HOP;
}

static void rpi_window_sum_present(const rpi_window *w, const int32_t *counts, double offset, const double *v,
                                   const uint8_t *v_there, rpi_sums *s) {
    memset(s, 0, sizeof *s);
    for (uint32_t k = 0; k < RPI_HANN_SCANS; k++) {
        if (counts[k] == RPI_NO_COUNT) continue;
        const double x = (double)counts[k] - offset, weight = w->rise[k], half = w->half[k % RPI_BLOCK];
        s->square += weight * (x * x);
        s->square_weight += weight;
        if (v_there && !v_there[k]) continue;
        const double p = v ? x * v[k] : x * x;
        s->product += weight * p;
        s->product_weight += weight;
        s->whole[k / RPI_BLOCK] += p;
        s->whole_weight[k / RPI_BLOCK] += 1.0;
        s->rising[k / RPI_BLOCK] += half * p;
        s->rising_weight[k / RPI_BLOCK] += half;
    }
}

/* Mean over the 40 ms Hann that begins with block b; NAN when less than half of it is there. */
RPI_INLINE double rpi_window_short_mean(const rpi_sums *s, uint32_t b) {
    const double weight = s->rising_weight[b] + s->whole_weight[b + 1] - s->rising_weight[b + 1];
    const double sum = s->rising[b] + s->whole[b + 1] - s->rising[b + 1];
    return weight * 2.0 >= RPI_BLOCK ? sum / weight : NAN;
}

/* Largest change between 40 ms means 40 ms apart; `root` takes the square root of each mean first. */
RPI_INLINE double rpi_window_step(const rpi_sums *s, int root) {
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

RPI_INLINE void rpi_window_outlet(rpi_window *w, uint32_t i, uint32_t n, double *scratch) {
    const rpi_outlet *o = &w->outlets[i];
    const rpi_channel_state *state = &w->state[o->current];
    const int32_t *all = w->counts + (size_t)o->current * RPI_ROW, *counts = all + w->lag, *newest = all + n - RPI_WINDOW_HOP;
    const double gain = w->gain[o->current] * o->sign, offset = w->offset[o->current];
    uint32_t quality = (state->holes ? RPI_QUALITY_MISSING : 0u) | (state->clipped ? RPI_QUALITY_SATURATED : 0u);
    rpi_sums s;
    const double *v = NULL;
    const uint8_t *v_there = NULL;
    if (o->voltage >= 0) {
        v = rpi_window_aligned(w, o, scratch);
        if (w->pair_flags[o->voltage] & RPI_QUALITY_MISSING) v_there = w->pair_present + (size_t)o->voltage * RPI_HANN_SCANS;
        quality |= w->pair_flags[o->voltage];
    } else {
        quality |= RPI_QUALITY_NO_VOLTAGE;
    }
    if (state->holes || v_there) rpi_window_sum_present(w, counts, offset, v, v_there, &s);
    else if (v) rpi_window_sum(w, counts, offset, v, &s);
    else rpi_window_sum(w, counts, offset, NULL, &s);

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
    const double rms = s.square_weight * 2.0 >= RPI_WINDOW_HOP ? fabs(gain) * sqrt(s.square / s.square_weight) : NAN;
    const double peak = fabs(low) > fabs(high) ? fabs(low) : fabs(high);
    double power = NAN, apparent = NAN, factor = NAN, volts = NAN, step;
    if (v) {
        power = s.product_weight * 2.0 >= RPI_WINDOW_HOP ? gain * (s.product / s.product_weight) : NAN;
        volts = w->pair_rms[o->voltage];
        apparent = volts * rms;
        factor = power / apparent;
        if (factor > 1.0) factor = 1.0; /* the filter's ripple may carry it past by 1e-4 */
        if (factor < -1.0) factor = -1.0;
        step = fabs(gain) * rpi_window_step(&s, 0);
    } else {
        step = fabs(gain) * rpi_window_step(&s, 1);
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

RPI_INLINE int rpi_window_body(rpi_window *w, const rpi_ring *ring, uint64_t end) {
    const uint32_t n = RPI_HANN_SCANS + 2 * w->lag;
    double scratch[RPI_HANN_SCANS];
    const uint64_t head = rpi_ring_head(ring);
    if (end > head || end < n) return RPI_WINDOW_NOT_READY;
    const uint64_t base = end - n;
    if (!rpi_ring_intact(ring, base)) return RPI_WINDOW_LAPPED;
    rpi_window_gather(w, ring, base, n);
    if (!rpi_ring_intact(ring, base)) return RPI_WINDOW_LAPPED;
    for (uint32_t c = 0; c < w->n_channels; c++) rpi_window_inspect(w, c, n);
    for (uint32_t i = 0; i < w->n_used; i++) rpi_window_volts(w, (uint32_t)w->used[i], n);
    for (uint32_t i = 0; i < w->n_voltages; i++) rpi_window_pair(w, i);
    for (uint32_t b = 0; b < w->n_basis; b++) rpi_window_filter(w, b);
    for (uint32_t i = 0; i < w->n_outlets; i++) rpi_window_outlet(w, i, n, scratch);
    return RPI_WINDOW_OK;
}

static int rpi_window_portable(rpi_window *w, const rpi_ring *ring, uint64_t end) { return rpi_window_body(w, ring, end); }

#if defined(__x86_64__)
/* Debian's x86-64 baseline is SSE2; every server of the last ten years has these. */
__attribute__((target("avx2,fma"))) static int rpi_window_avx2(rpi_window *w, const rpi_ring *ring, uint64_t end) {
    return rpi_window_body(w, ring, end);
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
