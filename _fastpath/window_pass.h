/* One pass of the window kernel with vectors of RPI_VECTOR_BYTES; included by window.h once for each width. */

typedef double PASS(vd) __attribute__((vector_size(RPI_VECTOR_BYTES)));
typedef float PASS(vf) __attribute__((vector_size(RPI_VECTOR_BYTES)));
typedef int32_t PASS(vi) __attribute__((vector_size(RPI_VECTOR_BYTES)));
typedef float PASS(half_vf) __attribute__((vector_size(RPI_VECTOR_BYTES / 2)));
typedef int32_t PASS(half_vi) __attribute__((vector_size(RPI_VECTOR_BYTES / 2)));
#define LANES_D (RPI_VECTOR_BYTES / 8)
#define LANES_F (RPI_VECTOR_BYTES / 4)
#define RUN 40u /* filter outputs that are summed at a time, in registers */

RPI_PASS_INLINE PASS(vd) PASS(load_d)(const double *p) {
    PASS(vd) v;
    memcpy(&v, p, sizeof v);
    return v;
}

RPI_PASS_INLINE PASS(vf) PASS(load_f)(const float *p) {
    PASS(vf) v;
    memcpy(&v, p, sizeof v);
    return v;
}

RPI_PASS_INLINE PASS(vd) PASS(load_counts)(const int32_t *p) {
    PASS(half_vi) v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, PASS(vd));
}

RPI_PASS_INLINE double PASS(total)(PASS(vd) v) {
    double sum = v[0];
    for (int j = 1; j < LANES_D; j++) sum += v[j];
    return sum;
}

RPI_PASS_INLINE void PASS(extremes)(const int32_t *p, uint32_t n, int32_t *low, int32_t *high) {
    PASS(vi) lo, hi, v;
    memcpy(&lo, p, sizeof lo);
    hi = lo;
    for (uint32_t k = LANES_F; k < n; k += LANES_F) {
        memcpy(&v, p + (k + LANES_F <= n ? k : n - LANES_F), sizeof v); /* the last one overlaps */
        PASS(vi) less = v < lo, more = v > hi;
        lo = (v & less) | (lo & ~less);
        hi = (v & more) | (hi & ~more);
    }
    *low = lo[0];
    *high = hi[0];
    for (int j = 1; j < LANES_F; j++) {
        if (lo[j] < *low) *low = lo[j];
        if (hi[j] > *high) *high = hi[j];
    }
}

RPI_PASS_INLINE void PASS(inspect)(rpi_window *w, uint32_t c, uint32_t n) {
    const int32_t *p = w->counts + (size_t)c * RPI_ROW;
    rpi_channel_state *s = &w->state[c];
    int32_t low, high;
    PASS(extremes)(p + n - RPI_WINDOW_HOP, RPI_WINDOW_HOP, &s->low, &s->high);
    PASS(extremes)(p, n - RPI_WINDOW_HOP, &low, &high);
    if (s->low < low) low = s->low;
    if (s->high > high) high = s->high;
    s->holes = low == RPI_NO_COUNT;
    s->clipped = 0;
    if (high >= w->full_scale[c] || low <= -w->full_scale[c]) rpi_window_clip(w, c, n); /* a hole is low, too */
}

RPI_PASS_INLINE void PASS(filter)(rpi_window *w, uint32_t b) {
    const uint32_t taps = 2 * w->lag + 1, n = RPI_WEIGHTED_SCANS + 2 * w->lag;
    const double *v = w->volts + (size_t)w->basis_channel[b] * RPI_ROW;
    const float *h = w->basis_taps + (size_t)b * taps;
    float *y = w->basis + (size_t)b * RPI_WEIGHTED_SCANS;
    float x[RPI_ROW];
    for (uint32_t k = 0; k < n; k++) x[k] = (float)v[k];
    for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k += RUN) {
        PASS(vf) sum[RUN / LANES_F] = {{0}};
        for (uint32_t j = 0; j < taps; j++) {
            const float *p = x + k + j;
#pragma GCC unroll 16
            for (uint32_t i = 0; i < RUN / LANES_F; i++) sum[i] += h[j] * PASS(load_f)(p + i * LANES_F);
        }
        memcpy(y + k, sum, sizeof sum);
    }
}

/* A sum of basis rows, over the weighted window. */
RPI_PASS_INLINE void PASS(mix)(const rpi_window *w, uint32_t first_term, uint32_t n_terms, double *to) {
    const rpi_term *t = w->terms + first_term;
    for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k += LANES_F) {
        PASS(vf) s = {0};
        for (uint32_t j = 0; j < n_terms; j++) s += t[j].factor * PASS(load_f)(w->basis + (size_t)t[j].row * RPI_WEIGHTED_SCANS + k);
        PASS(half_vf) half[2];
        memcpy(half, &s, sizeof s);
        for (int j = 0; j < 2; j++) {
            PASS(vd) wide = __builtin_convertvector(half[j], PASS(vd));
            memcpy(to + k + j * LANES_D, &wide, sizeof wide);
        }
    }
}

/* Voltage `i` over the weighted window, its RMS, and where it is there. */
RPI_PASS_INLINE void PASS(pair)(rpi_window *w, uint32_t i) {
    const rpi_voltage *s = &w->voltages[i];
    const uint32_t lag = w->lag;
    double *v = w->pair + (size_t)i * RPI_ROW;
    const double *a = w->volts + (size_t)s->plus * RPI_ROW + lag;
    uint8_t holes = w->state[s->plus].holes, clipped = w->state[s->plus].clipped;
    memcpy(v, a, RPI_WEIGHTED_SCANS * sizeof *v);
    if (s->minus >= 0) {
        double in_step[RPI_WEIGHTED_SCANS];
        const double *b = w->volts + (size_t)s->minus * RPI_ROW + lag;
        if (s->n_terms) {
            PASS(mix)(w, s->first_term, s->n_terms, in_step);
            b = in_step;
        }
        for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k++) v[k] -= b[k];
        holes |= w->state[s->minus].holes;
        clipped |= w->state[s->minus].clipped;
    }
    w->pair_flags[i] = (holes ? RPI_QUALITY_MISSING : 0u) | (clipped ? RPI_QUALITY_SATURATED : 0u);
    double weight = RPI_WINDOW_HOP;
    if (holes) {
        uint8_t *there = w->pair_present + (size_t)i * RPI_WEIGHTED_SCANS;
        const int32_t *pa = w->counts + (size_t)s->plus * RPI_ROW + lag;
        const int32_t *pb = w->counts + (size_t)(s->minus >= 0 ? s->minus : s->plus) * RPI_ROW + lag;
        for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k++) {
            there[k] = pa[k] != RPI_NO_COUNT && pb[k] != RPI_NO_COUNT;
            if (there[k]) continue;
            v[k] = 0.0;
            weight -= w->rise[k];
        }
    }
    PASS(vd) squares = {0};
    for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k += LANES_D) {
        PASS(vd) x = PASS(load_d)(v + k);
        squares += PASS(load_d)(w->rise + k) * x * x;
    }
    const double sum = PASS(total)(squares);
    w->pair_rms[i] = weight * 2.0 >= RPI_WINDOW_HOP ? sqrt(sum / weight) : NAN;
}

/* Sums over the current, given in counts or (if that is not NULL) as `amps` less offset, and the voltage, if any. */
RPI_PASS_INLINE void PASS(sum)(const rpi_window *w, const int32_t *counts, double offset, const double *amps, const double *v, rpi_sums *s) {
    PASS(vd) square = {0}, product = {0};
    for (uint32_t b = 0; b < RPI_BLOCKS; b++) {
        PASS(vd) rising = {0}, whole = {0};
        for (uint32_t j = 0; j < RPI_BLOCK; j += LANES_D) {
            const uint32_t k = b * RPI_BLOCK + j;
            PASS(vd) x = amps ? PASS(load_d)(amps + k) : PASS(load_counts)(counts + k) - offset;
            PASS(vd) weight = PASS(load_d)(w->rise + k);
            PASS(vd) p = v ? x * PASS(load_d)(v + k) : x * x;
            square += weight * (x * x);
            product += weight * p;
            whole += p;
            rising += PASS(load_d)(w->half + j) * p;
        }
        s->whole[b] = PASS(total)(whole);
        s->rising[b] = PASS(total)(rising);
    }
    s->square = PASS(total)(square);
    s->product = PASS(total)(product);
}

/* What is missing is zero here, and its weight is taken out: a sum over what is there. */
RPI_PASS_INLINE void PASS(sum_present)(const rpi_window *w, const int32_t *counts, double offset, const double *v,
                                       const uint8_t *v_there, rpi_sums *s) {
    double amps[RPI_WEIGHTED_SCANS], volts[RPI_WEIGHTED_SCANS];
    for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k++) amps[k] = counts[k] == RPI_NO_COUNT ? 0.0 : (double)counts[k] - offset;
    if (v_there) {
        for (uint32_t k = 0; k < RPI_WEIGHTED_SCANS; k++) volts[k] = v_there[k] ? v[k] : 0.0;
        v = volts;
    }
    if (v) PASS(sum)(w, NULL, 0.0, amps, v, s);
    else PASS(sum)(w, NULL, 0.0, amps, NULL, s);
    rpi_window_weigh(w, counts, v_there, s);
}

RPI_PASS_INLINE void PASS(outlet)(rpi_window *w, uint32_t i, uint32_t n) {
    const rpi_outlet *o = &w->outlets[i];
    const int32_t *counts = w->counts + (size_t)o->current * RPI_ROW + w->lag;
    const double offset = w->offset[o->current];
    double in_step[RPI_WEIGHTED_SCANS];
    const double *v = NULL;
    const uint8_t *v_there = NULL;
    rpi_sums s;
    if (o->voltage >= 0) {
        v = w->pair + (size_t)o->voltage * RPI_ROW;
        if (o->n_terms) {
            PASS(mix)(w, o->first_term, o->n_terms, in_step);
            v = in_step;
        }
        if (w->pair_flags[o->voltage] & RPI_QUALITY_MISSING) v_there = w->pair_present + (size_t)o->voltage * RPI_WEIGHTED_SCANS;
    }
    if (w->state[o->current].holes || v_there) {
        PASS(sum_present)(w, counts, offset, v, v_there, &s);
    } else {
        if (v) PASS(sum)(w, counts, offset, NULL, v, &s);
        else PASS(sum)(w, counts, offset, NULL, NULL, &s);
        rpi_window_weigh(w, NULL, NULL, &s);
    }
    rpi_window_finish(w, i, n, &s);
}

RPI_PASS_INLINE int PASS(pass)(rpi_window *w, const rpi_ring *ring, uint64_t end) {
    const uint32_t n = RPI_WEIGHTED_SCANS + 2 * w->lag;
    const uint64_t head = rpi_ring_head(ring);
    if (end > head || end < n) return RPI_WINDOW_NOT_READY;
    const uint64_t base = end - n;
    if (!rpi_ring_intact(ring, base)) return RPI_WINDOW_LAPPED;
    const int whole = rpi_window_gather(w, ring, base, n);
    if (!rpi_ring_intact(ring, base)) return RPI_WINDOW_LAPPED;
    if (!whole) return RPI_WINDOW_NOT_READY;
    for (uint32_t c = 0; c < w->n_channels; c++) PASS(inspect)(w, c, n);
    for (uint32_t i = 0; i < w->n_used; i++) rpi_window_volts(w, (uint32_t)w->used[i], n);
    for (uint32_t b = 0; b < w->n_basis; b++) PASS(filter)(w, b);
    for (uint32_t i = 0; i < w->n_voltages; i++) PASS(pair)(w, i);
    for (uint32_t i = 0; i < w->n_outlets; i++) PASS(outlet)(w, i, n);
    return RPI_WINDOW_OK;
}


#undef LANES_D
#undef LANES_F
#undef RUN
