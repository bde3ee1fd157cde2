/* Experts for one outlet's draw 5 s ahead, the bands of their errors, and their online mixture.
 *
 * All state is in one flat struct per outlet: nothing is allocated, nothing is shared, no input makes it not finite.
 * Readings are those that were taken (a slow meter's held value is no reading), `interval` ticks of 100 ms apart. What is
 * announced is a fact and no matter of learning: it is taken off everything that comes in and added to what goes out.
 * experts_reference.py says the same in NumPy; a test holds the two equal.
 */
#ifndef RPI_EXPERTS_H
#define RPI_EXPERTS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    RPI_PERSISTENCE, /* it stays as it is */
    RPI_EWMA,        /* it returns to its exponentially weighted mean of 3 s */
    RPI_MEDIAN_5S,   /* moving medians; of the running maximum: the highest of the same span */
    RPI_MEDIAN_20S,
    RPI_MEDIAN_60S,
    RPI_RIDGE,       /* ridge regression, learning live */
    RPI_PERIODIC,    /* what came after the same moment one period ago */
    RPI_LSTM,        /* the network, from outside; asleep where it has no answer */
    RPI_EXPERTS
};
enum {
    RPI_KINDS = 2,      /* value, running maximum */
    RPI_HORIZONS = 5,   /* 1 to 5 s */
    RPI_LAST = RPI_HORIZONS - 1,
    RPI_QUANTILES = 3,  /* 0.5, 0.9, 0.99 */
    RPI_SCALES = 2,     /* bands in units of the usual movement, or of that of the last readings */
    RPI_CANDIDATES = RPI_EXPERTS * RPI_SCALES + 1, /* what is mixed: each expert with either band, and */
    RPI_LSTM_ITSELF = RPI_CANDIDATES - 1,          /* the network with its own quantiles */
    RPI_SITUATIONS = 2, /* weights of their own where the draw is at its level, and where it has left it */
    RPI_SPANS = 3,      /* sorted windows of 5, 20 and 60 s */
    RPI_TARGETS = RPI_KINDS * RPI_HORIZONS
};
enum {
    RPI_HISTORY = 1024,     /* readings; a power of two, more than a minute of a board and than the longest lag */
    RPI_SORTED = 600,       /* readings of 60 s of a board */
    RPI_LAGS = 300,         /* periods that are looked for: 6 to 65 s of a board, 300 readings of a slow meter */
    RPI_MEANS = 16,         /* of a second, or of one reading, that ridge looks back */
    RPI_INPUTS = RPI_MEANS + 9,
    RPI_BINS = 128,
    RPI_PENDING = 16,       /* forecasts whose time has not come: at most 13, of a meter read every 0.4 s */
    RPI_LEARN_EVERY = 5,    /* readings of a board: the errors of two neighbours tell the same */
    RPI_SOLVE_EVERY = 10,   /* ticks */
    RPI_BRIDGED = 5         /* ticks without a reading that the last one stands for */
};

#define RPI_MOST_W 1e9           /* larger numbers are cut: nothing overflows */
#define RPI_SCALE_FLOOR 1e-5     /* of the rating: less is no movement */
#define RPI_OFF_LEVEL 0.004      /* of the rating: an outlet that stayed below it for 20 s is off */
#define RPI_UPPER_BOUND 1.5      /* of the rating, or of the draw where that is larger: no forecast is above */
#define RPI_START_SCALE 0.01     /* of the rating: the usual movement before any was seen */
#define RPI_USUAL_QUANTILE 0.7   /* of the movements over 5 s: the usual one. Below the median a quantised load has 0 W */
#define RPI_USUAL_RATE 0.005
#define RPI_RECENT_RATE (1.0 / 30.0)
#define RPI_START 30             /* forecasts that are learned from before the usual movement is known */
#define RPI_RECENT_PART 0.8      /* the rest of the second scale is the usual movement: a still load may wake up */
#define RPI_RECENT_CLIP 8.0      /* one movement raises the recent one by this factor at most */
#define RPI_DISPLACED 6.0        /* usual movements away from the median of 20 s: the draw has left its level */
#define RPI_EWMA_S 3.0
#define RPI_MEAN_S 60.0
#define RPI_RANGE_S 300.0        /* the range seen shrinks to the mean in this time */
#define RPI_PERIOD_RATE (1.0 / 120.0)
#define RPI_PERIOD_LEAD 0.95     /* another lag is taken where its mismatch is below this part of the present one's */
#define RPI_RIDGE_MEMORY 0.998
#define RPI_RIDGE_PRIOR 5.0      /* examples of one usual movement in each input that say "no change" */
#define RPI_RIDGE_CLIP 20.0      /* usual movements: more is learned as so much */
#define RPI_INPUT_CLIP 8.0
#define RPI_HUBER 3.0            /* usual errors: an example further off weighs less */
#define RPI_BIN_UNIT 0.03        /* scales: where bins of equal width become bins of equal ratio */
#define RPI_BINS_PER_E 9.0       /* far out, a bin is a ninth of a factor e */
#define RPI_BAND_PRIOR 10.0      /* errors that the prior of a band counts as */
#define RPI_BAND_MEMORY 0.999
#define RPI_WEIGHT_MEMORY 0.9995
#define RPI_GROWTH 2.0           /* memories grow with what was seen: the last half counts most, a start-up is forgotten */
#define RPI_SHARE 0.001          /* of the weight that returns to the prior at each step (fixed share) */
#define RPI_LOSS_CLIP 20.0       /* usual movements */

static const double rpi_levels[RPI_QUANTILES] = {0.5, 0.9, 0.99};
static double rpi_edges[RPI_BINS + 1];            /* of the bins, in scales */
static double rpi_band_prior[RPI_BINS];           /* sums to RPI_BAND_PRIOR */

/* One forecast, kept until its time comes. W, without what was announced. */
typedef struct {
    int64_t made, due;   /* tick */
    uint64_t reading;    /* number of the reading that it was made at */
    double last_w, scale[RPI_SCALES];
    double plan[RPI_KINDS][RPI_HORIZONS];
    double input[RPI_INPUTS], ridge[RPI_TARGETS]; /* scales */
    double point[RPI_KINDS][RPI_EXPERTS][RPI_HORIZONS];
    double own[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES]; /* the network's quantiles */
    double candidate[RPI_KINDS][RPI_QUANTILES][RPI_CANDIDATES]; /* 5 s ahead */
    double mixed[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES];
    int32_t situation;
    uint8_t awake[RPI_EXPERTS];
} rpi_made;

typedef struct {
    double share, spread, reach; /* weight; sum of squared regrets; largest regret */
} rpi_weight;

typedef struct {
    /* readings */
    uint64_t n;
    int64_t tick[RPI_HISTORY], valid_tick;
    double power[2 * RPI_HISTORY]; /* each twice: any span is whole */
    double sorted[RPI_SPANS][RPI_SORTED];
    uint32_t sorted_n[RPI_SPANS];
    double ewma, mean, low, high;
    /* period, in readings; 0 = none */
    double mismatch[RPI_LAGS];
    uint64_t compared;
    int32_t lag;
    /* what was learned: it outlives a gap */
    int32_t interval, seen;
    uint64_t learned, situations[RPI_SITUATIONS];
    double usual, recent;
    double gram[RPI_INPUTS][RPI_INPUTS], moment[RPI_INPUTS][RPI_TARGETS], weight[RPI_INPUTS][RPI_TARGETS];
    double ridge_error;
    int32_t solve_due;
    double count[RPI_KINDS][RPI_EXPERTS][RPI_SCALES][RPI_BINS], counted[RPI_KINDS][RPI_EXPERTS][RPI_SCALES], increment;
    double band[RPI_KINDS][RPI_EXPERTS][RPI_SCALES][RPI_QUANTILES];
    double error[RPI_KINDS][RPI_HORIZONS]; /* mean |error| of the mixture's median */
    rpi_weight mixture[RPI_SITUATIONS][RPI_KINDS][RPI_QUANTILES][RPI_CANDIDATES];
    rpi_made now, pending[RPI_PENDING];
    uint32_t first_pending, last_pending;
} rpi_outlet_experts;

/* fmin and fmax without their care for NaN, which the compiler cannot do in line; nothing here is NaN. */
static inline double rpi_least(double a, double b) { return a < b ? a : b; }
static inline double rpi_most(double a, double b) { return a > b ? a : b; }

static inline double rpi_within(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

static inline int rpi_expert_of(int candidate) { return candidate == RPI_LSTM_ITSELF ? RPI_LSTM : candidate / RPI_SCALES; }

/* Ticks to the first reading at or after 1 to 5 s: records.reach_ticks. */
static inline int64_t rpi_reach(int32_t interval, int horizon) {
    int64_t ticks = 10 * (horizon + 1);
    return (ticks + interval - 1) / interval * interval;
}

/* The newest reading; those before it lie below. */
static inline const double *rpi_newest(const rpi_outlet_experts *o) { return o->power + (o->n - 1) % RPI_HISTORY + RPI_HISTORY; }

/* The k-th newest reading; 0 is the newest. */
static inline double rpi_back(const rpi_outlet_experts *o, uint64_t k) { return *(rpi_newest(o) - k); }

static inline uint64_t rpi_known(const rpi_outlet_experts *o) { return o->n < RPI_HISTORY ? o->n : RPI_HISTORY; }

/* Rate of a memory that grows with what was seen, up to `memory`. */
static inline double rpi_keep(double memory, uint64_t steps) {
    return rpi_least(memory, 1.0 - RPI_GROWTH / ((double)steps + 3.0 * RPI_GROWTH));
}

/* ---- bands: counts of errors in bins of asinh width, forgetting; before any, a tail like (1 + |z| / 2)^-3 */

static inline double rpi_prior_below(double z) {
    double tail = 0.5 * pow(1.0 + fabs(z) / 2.0, -3.0);
    return z < 0.0 ? tail : 1.0 - tail;
}

static void rpi_experts_tables(void) {
    double below = 0.0;
    for (int b = 0; b <= RPI_BINS; b++) rpi_edges[b] = RPI_BIN_UNIT * sinh((b - RPI_BINS / 2) / RPI_BINS_PER_E);
    for (int b = 0; b < RPI_BINS; b++) {
        double upto = b == RPI_BINS - 1 ? 1.0 : rpi_prior_below(rpi_edges[b + 1]);
        rpi_band_prior[b] = RPI_BAND_PRIOR * (upto - below);
        below = upto;
    }
}

static inline int rpi_bin(double z) {
    return (int)rpi_within(RPI_BINS / 2 + RPI_BINS_PER_E * asinh(z / RPI_BIN_UNIT), 0.0, RPI_BINS - 1.0);
}

static void rpi_band(const double count[RPI_BINS], double total, double band[RPI_QUANTILES]) {
    double sum = 0.0;
    int b = 0;
    for (int q = 0; q < RPI_QUANTILES; q++) {
        double want = rpi_levels[q] * total;
        while (b < RPI_BINS - 1 && sum + count[b] < want) sum += count[b++];
        double part = count[b] > 0.0 ? rpi_least((want - sum) / count[b], 1.0) : 0.5;
        band[q] = rpi_edges[b] + part * (rpi_edges[b + 1] - rpi_edges[b]);
    }
}

/* ---- prior weights: what is good on loads in general begins with more (docs/decisions/mixture.md) */

static double rpi_prior_of(int displaced, int kind, int quantile, int candidate, const uint8_t *allowed) {
    int expert = rpi_expert_of(candidate);
    if (!allowed[expert]) return 0.0;
    if (candidate == RPI_LSTM_ITSELF) return kind == 0 ? 1.0 : 32.0; /* it has seen many loads start */
    int plain = quantile == 0 && candidate % RPI_SCALES;
    if (expert == RPI_PERSISTENCE && (quantile ? kind == 0 : plain)) return displaced ? 64.0 : quantile ? 8.0 : 16.0;
    if (kind == 0) return 1.0;
    if (expert == RPI_EWMA) return 0.1; /* the mean says little of a maximum */
    if (quantile == RPI_QUANTILES - 1 && expert == RPI_MEDIAN_60S) return 64.0; /* the tail needs the longest look back */
    return expert == RPI_MEDIAN_20S || expert == RPI_MEDIAN_60S ? 16.0 : 1.0;
}

/* The same as parts of 1, and log(1 / part), which sets the learning rate. */
typedef struct {
    uint8_t allowed[RPI_EXPERTS];
    double part[RPI_SITUATIONS][RPI_KINDS][RPI_QUANTILES][RPI_CANDIDATES], surprise[RPI_SITUATIONS][RPI_KINDS][RPI_QUANTILES][RPI_CANDIDATES];
} rpi_priors;

static void rpi_set_priors(rpi_priors *p) {
    for (int x = 0; x < RPI_SITUATIONS; x++)
        for (int k = 0; k < RPI_KINDS; k++)
            for (int q = 0; q < RPI_QUANTILES; q++) {
                double total = 0.0;
                for (int c = 0; c < RPI_CANDIDATES; c++) total += rpi_prior_of(x, k, q, c, p->allowed);
                for (int c = 0; c < RPI_CANDIDATES; c++) {
                    double part = rpi_prior_of(x, k, q, c, p->allowed) / total;
                    p->part[x][k][q][c] = part;
                    p->surprise[x][k][q][c] = part > 0.0 ? -log(part) : 0.0;
                }
            }
}

/* ---- beginning */

/* Everything, what was learned included. */
static void rpi_outlet_forget(rpi_outlet_experts *o, const rpi_priors *priors) {
    memset(o, 0, sizeof *o);
    o->increment = 1.0;
    o->ridge_error = 1.0;
    for (int k = 0; k < RPI_KINDS; k++) {
        for (int j = 0; j < RPI_EXPERTS; j++)
            for (int s = 0; s < RPI_SCALES; s++) {
                memcpy(o->count[k][j][s], rpi_band_prior, sizeof rpi_band_prior);
                o->counted[k][j][s] = RPI_BAND_PRIOR;
                rpi_band(rpi_band_prior, RPI_BAND_PRIOR, o->band[k][j][s]);
            }
        for (int q = 0; q < RPI_QUANTILES; q++)
            for (int x = 0; x < RPI_SITUATIONS; x++)
                for (int c = 0; c < RPI_CANDIDATES; c++) o->mixture[x][k][q][c].share = priors->part[x][k][q][c];
    }
}

/* The readings only: after a gap the load is likely the same. */
static void rpi_outlet_begin(rpi_outlet_experts *o) {
    o->n = 0;
    memset(o->sorted_n, 0, sizeof o->sorted_n);
    memset(o->mismatch, 0, sizeof o->mismatch);
    o->compared = 0;
    o->lag = 0;
    o->first_pending = o->last_pending = 0;
}

/* ---- readings */

static inline uint32_t rpi_place(const double *sorted, uint32_t n, double x) {
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (sorted[middle] < x) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Keep the newest `size` readings in order; call before the reading is stored. */
static void rpi_sort_in(rpi_outlet_experts *o, int span, uint32_t size, double x) {
    double *sorted = o->sorted[span];
    uint32_t *n = &o->sorted_n[span], place;
    if (*n >= size) {
        place = rpi_place(sorted, *n - 1, rpi_back(o, size - 1));
        memmove(sorted + place, sorted + place + 1, (*n - 1 - place) * sizeof *sorted);
        --*n;
    }
    place = rpi_place(sorted, *n, x);
    memmove(sorted + place + 1, sorted + place, (*n - place) * sizeof *sorted);
    sorted[place] = x;
    ++*n;
}

static inline double rpi_highest(const rpi_outlet_experts *o, int span) { return o->sorted[span][o->sorted_n[span] - 1]; }

static inline double rpi_median(const rpi_outlet_experts *o, int span) {
    const double *sorted = o->sorted[span];
    uint32_t n = o->sorted_n[span];
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

static inline uint32_t rpi_span(int span, int32_t interval) {
    static const uint32_t ticks[RPI_SPANS] = {50, 200, 600};
    return (ticks[span] + (uint32_t)interval - 1) / (uint32_t)interval;
}

/* Median of a span that was seen whole, else of the next shorter one: three of the same few readings would be heard thrice. */
static double rpi_whole_median(const rpi_outlet_experts *o, int span, int32_t interval) {
    while (span >= 0 && o->sorted_n[span] < rpi_span(span, interval)) span--;
    return span < 0 ? rpi_back(o, 0) : rpi_median(o, span);
}

static void rpi_take_in(rpi_outlet_experts *o, int64_t tick, double power, int32_t interval) {
    double dt_s = 0.1 * interval;
    if (o->n == 0) {
        o->ewma = o->mean = power;
        if (!o->seen) o->low = o->high = power;
    }
    for (int span = 0; span < RPI_SPANS; span++) rpi_sort_in(o, span, rpi_span(span, interval), power);
    o->tick[o->n % RPI_HISTORY] = tick;
    o->power[o->n % RPI_HISTORY] = o->power[o->n % RPI_HISTORY + RPI_HISTORY] = power;
    o->n++;
    o->seen = 1;
    o->ewma += rpi_least(dt_s / RPI_EWMA_S, 1.0) * (power - o->ewma);
    o->mean += rpi_least(rpi_most(dt_s / RPI_MEAN_S, 1.0 / (double)o->n), 1.0) * (power - o->mean);
    o->low = rpi_least(o->low + dt_s / RPI_RANGE_S * (o->mean - o->low), power);
    o->high = rpi_most(o->high + dt_s / RPI_RANGE_S * (o->mean - o->high), power);
}

/* ---- the period: the lag with the smallest mean absolute difference (AMDF: Ross et al., "Average magnitude difference
 * function pitch extractor", IEEE Trans. ASSP 22, 1974), with an exponential memory. Longer than the forecast reaches. */

static void rpi_find_period(rpi_outlet_experts *o, int32_t interval, double clip) {
    int32_t unit = interval == 1 ? 2 : 1, first = (int32_t)(rpi_reach(interval, RPI_LAST) / interval) + (interval == 1 ? 10 : 1);
    const double *newest = rpi_newest(o);
    double now = *newest, rate = rpi_most(RPI_PERIOD_RATE, 1.0 / (double)++o->compared), lowest = INFINITY;
    int lags = ((int)rpi_known(o) - 1 - first) / unit, best = 0;
    lags = lags < 0 ? 0 : lags > RPI_LAGS ? RPI_LAGS : lags;
    for (int i = 0; i < lags; i++) o->mismatch[i] += rate * (rpi_least(fabs(now - newest[-(first + i * unit)]), clip) - o->mismatch[i]);
    for (int i = lags; i < RPI_LAGS; i++) o->mismatch[i] += rate * (clip - o->mismatch[i]);
    for (int i = 0; i < lags; i++)
        if (o->mismatch[i] < lowest) lowest = o->mismatch[best = i];
    if (lags && (o->lag == 0 || lowest < RPI_PERIOD_LEAD * o->mismatch[(o->lag - first) / unit])) o->lag = first + best * unit;
}

/* ---- points of every expert, for every horizon */

static void rpi_see_inputs(const rpi_outlet_experts *o, int32_t interval, rpi_made *m) {
    uint64_t per = interval >= 10 ? 1 : (uint64_t)(10 / interval), known = rpi_known(o);
    double x0 = m->last_w, mean = x0, *f = m->input;
    const double *newest = rpi_newest(o);
    int i = 0;
    for (uint64_t b = 0; b < RPI_MEANS; b++) {
        if ((b + 1) * per <= known) {
            double sum = 0.0;
            for (uint64_t k = b * per; k < (b + 1) * per; k++) sum += *(newest - k);
            mean = sum / (double)per;
        }
        f[i++] = mean - x0;
    }
    f[i++] = o->mean - x0;
    f[i++] = rpi_highest(o, 0) - x0;
    f[i++] = rpi_highest(o, 1) - x0;
    f[i++] = o->sorted[1][0] - x0;
    if (m->awake[RPI_PERIODIC]) {
        f[i++] = rpi_back(o, (uint64_t)o->lag) - x0;
        f[i++] = m->point[0][RPI_PERIODIC][RPI_LAST] - x0;
        f[i++] = m->point[0][RPI_PERIODIC][1] - x0;
        f[i++] = m->point[1][RPI_PERIODIC][RPI_LAST] - x0;
    } else
        for (int p = 0; p < 4; p++) f[i++] = 0.0;
    for (int j = 0; j < i; j++) f[j] = rpi_within(f[j] / m->scale[0], -RPI_INPUT_CLIP, RPI_INPUT_CLIP);
    f[i] = 1.0;
}

static void rpi_ask_periodic(const rpi_outlet_experts *o, int32_t interval, rpi_made *m) {
    double highest = -INFINITY;
    const double *origin = rpi_newest(o) - o->lag;
    int64_t step = 1;
    m->awake[RPI_PERIODIC] = o->lag > 0 && (uint64_t)o->lag < rpi_known(o);
    if (!m->awake[RPI_PERIODIC]) return;
    for (int h = 0; h < RPI_HORIZONS; h++) {
        int64_t reach = rpi_reach(interval, h) / interval;
        for (; step <= reach; step++) highest = rpi_most(highest, origin[step]);
        m->point[0][RPI_PERIODIC][h] = origin[reach];
        m->point[1][RPI_PERIODIC][h] = highest;
    }
}

static void rpi_ask_ridge(const rpi_outlet_experts *o, rpi_made *m) {
    double sum[RPI_TARGETS] = {0.0};
    for (int i = 0; i < RPI_INPUTS; i++)
        for (int t = 0; t < RPI_TARGETS; t++) sum[t] += o->weight[i][t] * m->input[i];
    memcpy(m->ridge, sum, sizeof sum);
    for (int t = 0; t < RPI_TARGETS; t++)
        m->point[t / RPI_HORIZONS][RPI_RIDGE][t % RPI_HORIZONS] = rpi_within(m->last_w + m->scale[0] * sum[t], o->low, o->high);
}

static void rpi_ask_all(const rpi_outlet_experts *o, int32_t interval, rpi_made *m) {
    for (int k = 0; k < RPI_KINDS; k++)
        for (int h = 0; h < RPI_HORIZONS; h++) {
            m->point[k][RPI_PERSISTENCE][h] = m->last_w;
            m->point[k][RPI_EWMA][h] = o->ewma;
            for (int span = 0; span < RPI_SPANS; span++)
                m->point[k][RPI_MEDIAN_5S + span][h] = k ? rpi_highest(o, span) : rpi_whole_median(o, span, interval);
            m->point[k][RPI_LSTM][h] = m->own[k][h][0];
        }
    rpi_ask_periodic(o, interval, m);
    rpi_see_inputs(o, interval, m);
    rpi_ask_ridge(o, m);
}

/* ---- mixing */

/* Bands are learned 5 s ahead, and are nearer in proportion to the mixture's error there. */
static inline double rpi_near(const rpi_outlet_experts *o, int k, int h) {
    return h == RPI_LAST ? 1.0 : rpi_within(o->error[k][h] / rpi_most(o->error[k][RPI_LAST], 1e-9), 0.05, 1.0);
}

/* What a candidate adds to its expert's point 5 s ahead: a quantile of the errors in one of the scales. The medians of both
 * are alike, so the second one is none: a few errors of one sign are no reason to expect the next. */
static inline double rpi_offset(const rpi_outlet_experts *o, const rpi_made *m, int k, int q, int candidate) {
    int s = candidate % RPI_SCALES;
    return q == 0 && s ? 0.0 : o->band[k][candidate / RPI_SCALES][s][q] * m->scale[s];
}

/* Mean of one quantile over the candidates that are awake, by `share`, for every horizon. NaN where none is. */
static void rpi_average(const rpi_outlet_experts *o, const rpi_made *m, int k, int q, const double share[RPI_CANDIDATES],
                        double said[RPI_HORIZONS][RPI_QUANTILES]) {
    double total = 0.0, band = 0.0, by_expert[RPI_EXPERTS] = {0.0};
    for (int c = 0; c < RPI_LSTM_ITSELF; c++) {
        int j = rpi_expert_of(c);
        if (!m->awake[j]) continue;
        total += share[c];
        by_expert[j] += share[c];
        band += share[c] * rpi_offset(o, m, k, q, c);
    }
    double own = m->awake[RPI_LSTM] ? share[RPI_LSTM_ITSELF] : 0.0;
    total += own;
    double sum[RPI_HORIZONS];
    for (int h = 0; h < RPI_HORIZONS; h++) sum[h] = rpi_near(o, k, h) * band + own * m->own[k][h][q];
    for (int j = 0; j < RPI_EXPERTS; j++)
        for (int h = 0; m->awake[j] && h < RPI_HORIZONS; h++) sum[h] += by_expert[j] * m->point[k][j][h];
    for (int h = 0; h < RPI_HORIZONS; h++) said[h][q] = total > 0.0 ? sum[h] / total : NAN;
}

static void rpi_mix(const rpi_outlet_experts *o, rpi_made *m) {
    double share[RPI_CANDIDATES];
    int nobody = 1;
    for (int j = 0; j < RPI_EXPERTS; j++) nobody = nobody && !m->awake[j];
    if (nobody) m->awake[RPI_PERSISTENCE] = 1; /* the one expert that was asked for sleeps */
    for (int k = 0; k < RPI_KINDS; k++)
        for (int q = 0; q < RPI_QUANTILES; q++) {
            for (int c = 0; c < RPI_CANDIDATES; c++) {
                int j = rpi_expert_of(c);
                share[c] = nobody ? (c == RPI_PERSISTENCE) : o->mixture[m->situation][k][q][c].share;
                m->candidate[k][q][c] = c == RPI_LSTM_ITSELF ? m->own[k][RPI_LAST][q]
                                                             : m->point[k][j][RPI_LAST] + rpi_offset(o, m, k, q, c);
            }
            rpi_average(o, m, k, q, share, m->mixed[k]);
        }
}

static inline void rpi_mixture(const rpi_outlet_experts *o, double said[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES]) {
    memcpy(said, o->now.mixed, sizeof o->now.mixed);
}

/* What one expert says by itself, its bands mixed as in the mixture. NaN where it sleeps. */
static void rpi_member(const rpi_outlet_experts *o, int expert, double said[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES]) {
    double share[RPI_CANDIDATES];
    for (int k = 0; k < RPI_KINDS; k++)
        for (int q = 0; q < RPI_QUANTILES; q++) {
            for (int c = 0; c < RPI_CANDIDATES; c++) {
                share[c] = rpi_expert_of(c) == expert ? o->mixture[o->now.situation][k][q][c].share + 1e-12 : 0.0; /* vanished weights too */
            }
            rpi_average(o, &o->now, k, q, share, said[k]);
        }
}

/* An expert's part of one quantile 5 s ahead, of those that are awake. */
static double rpi_part(const rpi_outlet_experts *o, int k, int q, int expert) {
    double total = 0.0, part = 0.0;
    for (int c = 0; c < RPI_CANDIDATES; c++) {
        double share = o->now.awake[rpi_expert_of(c)] ? o->mixture[o->now.situation][k][q][c].share : 0.0;
        total += share;
        part += rpi_expert_of(c) == expert ? share : 0.0;
    }
    return total > 0.0 ? part / total : 0.0;
}

static inline void rpi_scales(const rpi_outlet_experts *o, double floor_w, double scale[RPI_SCALES]) {
    scale[0] = rpi_most(o->usual, floor_w);
    scale[1] = rpi_most(RPI_RECENT_PART * o->recent + (1.0 - RPI_RECENT_PART) * o->usual, floor_w);
}

/* ---- learning: `came` [kinds][horizons] W is what the forecast `m` was about */

static void rpi_learn_ridge(rpi_outlet_experts *o, const rpi_made *m, const double came[RPI_KINDS][RPI_HORIZONS]) {
    double target[RPI_TARGETS];
    for (int t = 0; t < RPI_TARGETS; t++)
        target[t] = rpi_within((came[t / RPI_HORIZONS][t % RPI_HORIZONS] - m->last_w) / m->scale[0], -RPI_RIDGE_CLIP, RPI_RIDGE_CLIP);
    double error = fabs(target[RPI_LAST] - m->ridge[RPI_LAST]), usual = o->ridge_error;
    double weight = error > RPI_HUBER * usual ? RPI_HUBER * usual / error : 1.0;
    o->ridge_error = rpi_most(usual + 0.02 * (rpi_least(error, 5.0 * usual) - usual), 1e-6);
    for (int i = 0; i < RPI_INPUTS; i++)
        for (int j = 0; j <= i; j++) o->gram[i][j] = RPI_RIDGE_MEMORY * o->gram[i][j] + weight * m->input[i] * m->input[j];
    for (int i = 0; i < RPI_INPUTS; i++)
        for (int t = 0; t < RPI_TARGETS; t++)
            o->moment[i][t] = RPI_RIDGE_MEMORY * o->moment[i][t] + weight * target[t] * m->input[i];
    o->solve_due = 1;
}

/* Weights of all targets from one Cholesky factor; the prior keeps the pivots above zero. Innermost loops run along rows. */
static void rpi_solve_ridge(rpi_outlet_experts *o) {
    double left[RPI_INPUTS][RPI_INPUTS], z[RPI_INPUTS][RPI_TARGETS]; /* left: the factor, transposed */
    o->solve_due = 0;
    for (int i = 0; i < RPI_INPUTS; i++) {
        for (int j = i; j < RPI_INPUTS; j++) left[i][j] = o->gram[j][i];
        left[i][i] += RPI_RIDGE_PRIOR;
    }
    for (int k = 0; k < RPI_INPUTS; k++) {
        double pivot = left[k][k] = sqrt(rpi_most(left[k][k], 1e-9));
        for (int j = k + 1; j < RPI_INPUTS; j++) left[k][j] /= pivot;
        for (int i = k + 1; i < RPI_INPUTS; i++)
            for (int j = i; j < RPI_INPUTS; j++) left[i][j] -= left[k][j] * left[k][i];
    }
    memcpy(z, o->moment, sizeof z);
    for (int i = 0; i < RPI_INPUTS; i++) {
        for (int k = 0; k < i; k++)
            for (int t = 0; t < RPI_TARGETS; t++) z[i][t] -= left[k][i] * z[k][t];
        for (int t = 0; t < RPI_TARGETS; t++) z[i][t] /= left[i][i];
    }
    for (int i = RPI_INPUTS - 1; i >= 0; i--) {
        for (int k = i + 1; k < RPI_INPUTS; k++)
            for (int t = 0; t < RPI_TARGETS; t++) z[i][t] -= left[i][k] * z[k][t];
        for (int t = 0; t < RPI_TARGETS; t++) z[i][t] /= left[i][i];
    }
    memcpy(o->weight, z, sizeof z);
}

static void rpi_learn_bands(rpi_outlet_experts *o, const rpi_made *m, const double came[RPI_KINDS][RPI_HORIZONS]) {
    o->increment /= rpi_keep(RPI_BAND_MEMORY, o->learned); /* newer errors count more, instead of older ones less */
    if (o->increment > 1e12) {
        double *count = &o->count[0][0][0][0], *counted = &o->counted[0][0][0];
        for (size_t i = 0; i < sizeof o->count / sizeof *count; i++) count[i] /= o->increment;
        for (size_t i = 0; i < sizeof o->counted / sizeof *counted; i++) counted[i] /= o->increment;
        o->increment = 1.0;
    }
    for (int k = 0; k < RPI_KINDS; k++)
        for (int j = 0; j < RPI_EXPERTS; j++) {
            if (!m->awake[j]) { /* what it knew is to be there when it wakes, but for a start's part of forgetting */
                for (int s = 0; s < RPI_SCALES; s++) {
                    for (int b = 0; b < RPI_BINS; b++) o->count[k][j][s][b] /= RPI_BAND_MEMORY;
                    o->counted[k][j][s] /= RPI_BAND_MEMORY;
                }
                continue;
            }
            for (int s = 0; s < RPI_SCALES; s++) {
                double *count = o->count[k][j][s];
                count[rpi_bin((came[k][RPI_LAST] - m->point[k][j][RPI_LAST]) / m->scale[s])] += o->increment;
                o->counted[k][j][s] += o->increment;
                rpi_band(count, o->counted[k][j][s], o->band[k][j][s]);
            }
        }
    for (int k = 0; k < RPI_KINDS; k++)
        for (int h = 0; h < RPI_HORIZONS; h++)
            o->error[k][h] += rpi_most(0.01, 1.0 / ((double)o->learned + 1.0)) * (fabs(came[k][h] - m->mixed[k][h][0]) - o->error[k][h]);
}

/* Bernstein online aggregation (Wintenberger, "Optimal learning with Bernstein online aggregation", Machine Learning 106,
 * 2017) of one quantile, on the gradient of its pinball loss, with a learning rate for each candidate; candidates that
 * slept keep their weight (Freund et al. 1997); a little always returns to the prior (Herbster and Warmuth 1998). */
static void rpi_learn_weights(rpi_outlet_experts *o, const rpi_made *m, int k, int q, double came_w, const rpi_priors *priors) {
    rpi_weight *w = o->mixture[m->situation][k][q];
    const double *prior = priors->part[m->situation][k][q], *surprise = priors->surprise[m->situation][k][q];
    double slope = (came_w < m->mixed[k][RPI_LAST][q] ? 1.0 : 0.0) - rpi_levels[q];
    double keep = rpi_keep(RPI_WEIGHT_MEMORY, o->situations[m->situation]);
    double awake = 0.0, grown = 0.0, total = 0.0;
    for (int c = 0; c < RPI_CANDIDATES; c++) {
        if (!m->awake[rpi_expert_of(c)] || prior[c] == 0.0) continue;
        double regret = slope * (m->mixed[k][RPI_LAST][q] - m->candidate[k][q][c]) / m->scale[0];
        regret = rpi_within(regret, -RPI_LOSS_CLIP, RPI_LOSS_CLIP);
        w[c].reach = rpi_most(w[c].reach * keep, fabs(regret));
        w[c].spread = w[c].spread * keep + regret * regret;
        double rate = rpi_least(0.5 / (w[c].reach + 1e-6), sqrt(surprise[c] / (w[c].spread + 1e-6)));
        awake += w[c].share;
        w[c].share *= exp(rate * regret * (1.0 - rate * regret));
        grown += w[c].share;
    }
    if (!(grown > 0.0)) return;
    for (int c = 0; c < RPI_CANDIDATES; c++) {
        if (m->awake[rpi_expert_of(c)]) w[c].share *= awake / grown;
        total += w[c].share;
    }
    for (int c = 0; c < RPI_CANDIDATES; c++) w[c].share = (1.0 - RPI_SHARE) * w[c].share / total + RPI_SHARE * prior[c];
}

static void rpi_learn_scales(rpi_outlet_experts *o, double moved_w, double floor_w) {
    double rate = rpi_most(RPI_USUAL_RATE, 1.0 / (0.2 * (double)(o->learned + 1) + 1.0));
    int first = rate > 0.3; /* the first guess may be far off */
    if (first) rate *= 2.0;
    double usual = o->usual * exp(rate * (rpi_most(moved_w, floor_w) > o->usual ? RPI_USUAL_QUANTILE : RPI_USUAL_QUANTILE - 1.0));
    if (first && moved_w > o->usual) usual = moved_w;
    o->usual = rpi_within(usual, floor_w, RPI_MOST_W);
    if (first) o->recent = o->usual;
    o->recent += RPI_RECENT_RATE * (rpi_least(moved_w, RPI_RECENT_CLIP * o->recent) - o->recent);
    o->recent = rpi_within(o->recent, 0.05 * o->usual, RPI_MOST_W);
}

/* Of a start the scales were guesses: what came is told in those known by now, where they are larger. Else errors of a start at rest, in units of
 * next to nothing, are taken for as many times the movement of the work that follows. */
static void rpi_restate(const rpi_outlet_experts *o, rpi_made *m, double floor_w) {
    double told = m->scale[0], known[RPI_SCALES];
    rpi_scales(o, floor_w, known);
    for (int s = 0; s < RPI_SCALES; s++) m->scale[s] = rpi_most(m->scale[s], known[s]);
    for (int i = 0; i < RPI_INPUTS - 1; i++) m->input[i] *= told / m->scale[0];
    for (int t = 0; t < RPI_TARGETS; t++) m->ridge[t] *= told / m->scale[0];
}

/* The forecast's time has come with the newest reading: what came at each horizon, and everything that is learned from it. */
static void rpi_resolve(rpi_outlet_experts *o, rpi_made *m, int32_t interval, double floor_w, const rpi_priors *priors) {
    double came[RPI_KINDS][RPI_HORIZONS], highest = -INFINITY;
    int h = 0;
    for (uint64_t r = m->reading + 1; r < o->n && h < RPI_HORIZONS; r++) {
        highest = rpi_most(highest, o->power[r % RPI_HISTORY]);
        for (; h < RPI_HORIZONS && o->tick[r % RPI_HISTORY] >= m->made + rpi_reach(interval, h) - interval / 4; h++) {
            came[0][h] = o->power[r % RPI_HISTORY] - m->plan[0][h];
            came[1][h] = highest - m->plan[1][h];
        }
    }
    if (h < RPI_HORIZONS) return;
    rpi_learn_scales(o, fabs(came[0][RPI_LAST] - m->last_w), floor_w);
    if (o->learned < RPI_START) rpi_restate(o, m, floor_w);
    rpi_learn_ridge(o, m, (const double(*)[RPI_HORIZONS])came);
    rpi_learn_bands(o, m, (const double(*)[RPI_HORIZONS])came);
    for (int k = 0; k < RPI_KINDS; k++)
        for (int q = 0; q < RPI_QUANTILES; q++) rpi_learn_weights(o, m, k, q, came[k][RPI_LAST], priors);
    o->learned++;
    o->situations[m->situation]++;
}

/* ---- one tick of one outlet */

typedef struct {
    int64_t tick;
    int32_t interval, valid, fresh, turn; /* turn: spreads the work of many outlets over ticks */
    double power_w, rating_w;
    double plan[RPI_KINDS][RPI_HORIZONS];                  /* announced change, and the highest of it so far */
    double own[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES];    /* the network's quantiles; NaN: none */
} rpi_seen;

/* Whether the network's answer is finite and within physical bounds. */
static int rpi_usable(const rpi_seen *x) {
    double high_w = RPI_UPPER_BOUND * rpi_most(x->rating_w, x->power_w) + rpi_most(x->plan[1][RPI_LAST], 0.0);
    for (int k = 0; k < RPI_KINDS; k++)
        for (int h = 0; h < RPI_HORIZONS; h++)
            for (int q = 0; q < RPI_QUANTILES; q++)
                if (!(x->own[k][h][q] >= 0.0 && x->own[k][h][q] <= high_w)) return 0;
    return 1;
}

static void rpi_forecast(rpi_outlet_experts *o, const rpi_seen *x, double floor_w, const rpi_priors *priors) {
    rpi_made *m = &o->now;
    m->made = x->tick;
    m->due = x->tick + rpi_reach(x->interval, RPI_LAST);
    m->reading = o->n - 1;
    m->last_w = x->power_w;
    rpi_scales(o, floor_w, m->scale);
    memcpy(m->plan, x->plan, sizeof m->plan);
    m->situation = fabs(x->power_w - rpi_median(o, 1)) > RPI_DISPLACED * o->usual;
    for (int j = 0; j < RPI_EXPERTS; j++) m->awake[j] = 1;
    m->awake[RPI_LSTM] = (uint8_t)rpi_usable(x);
    for (int k = 0; k < RPI_KINDS; k++)
        for (int h = 0; h < RPI_HORIZONS; h++)
            for (int q = 0; q < RPI_QUANTILES; q++) m->own[k][h][q] = m->awake[RPI_LSTM] ? x->own[k][h][q] - x->plan[k][h] : 0.0;
    rpi_ask_all(o, x->interval, m);
    for (int j = 0; j < RPI_EXPERTS; j++) m->awake[j] = m->awake[j] && priors->allowed[j];
    rpi_mix(o, m);
}

static void rpi_outlet_step(rpi_outlet_experts *o, const rpi_seen *x, const rpi_priors *priors) {
    double floor_w = RPI_SCALE_FLOOR * x->rating_w + 1e-3;
    if (o->n && x->tick - o->valid_tick > RPI_BRIDGED) rpi_outlet_begin(o);
    if (x->valid) o->valid_tick = x->tick;
    if (o->solve_due && (x->tick + x->turn) % RPI_SOLVE_EVERY == 0) rpi_solve_ridge(o);
    if (!x->fresh) return;
    if (o->interval != x->interval) { /* another meter: what was learned is about other readings */
        rpi_outlet_forget(o, priors);
        o->interval = x->interval;
        o->valid_tick = x->tick;
        o->usual = o->recent = RPI_START_SCALE * x->rating_w;
    }
    rpi_take_in(o, x->tick, x->power_w, x->interval);
    for (; o->first_pending != o->last_pending; o->first_pending++) {
        rpi_made *m = &o->pending[o->first_pending % RPI_PENDING];
        if (x->tick < m->due - x->interval / 4) break;
        if (x->tick <= m->due + x->interval / 4) rpi_resolve(o, m, x->interval, floor_w, priors);
    }
    int every = (RPI_LEARN_EVERY + x->interval - 1) / x->interval;
    int learn = (o->n + (uint64_t)x->turn) % (uint64_t)every == 0;
    if (learn) rpi_find_period(o, x->interval, 8.0 * o->usual);
    rpi_forecast(o, x, floor_w, priors);
    if (learn && o->last_pending - o->first_pending < RPI_PENDING) o->pending[o->last_pending++ % RPI_PENDING] = o->now;
}

/* Announced work added, within physical bounds and in order. `said` without it, [kinds][horizons][quantiles], in place. */
static void rpi_finish(const rpi_outlet_experts *o, const rpi_seen *x, double said[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES]) {
    double now_w = o->now.last_w, announced_w = now_w + x->plan[1][RPI_LAST];
    double bound_w = RPI_UPPER_BOUND * rpi_most(x->rating_w, now_w) + rpi_most(x->plan[1][RPI_LAST], 0.0);
    /* nobody sees a server being switched on; and above its rating an outlet draws only what it already does */
    double most_w = rpi_most(rpi_highest(o, 1) <= RPI_OFF_LEVEL * x->rating_w ? now_w : x->rating_w, announced_w);
    for (int h = 0; h < RPI_HORIZONS; h++) {
        double *value = said[0][h], *highest = said[1][h];
        for (int q = 0; q < RPI_QUANTILES; q++) {
            value[q] += x->plan[0][h];
            highest[q] = rpi_most(highest[q] + x->plan[1][h], q ? now_w + x->plan[1][h] : 0.0);
        }
        value[0] = rpi_within(value[0], 0.0, bound_w);
        highest[0] = rpi_within(rpi_most(highest[0], value[0]), 0.0, bound_w);
        for (int q = 1; q < RPI_QUANTILES; q++) {
            highest[q] = rpi_within(highest[q], highest[q - 1], rpi_most(rpi_least(most_w, bound_w), highest[q - 1]));
            /* the maximum is what limits are made of, and is learned as such: the value's tail gives way */
            value[q] = rpi_most(rpi_least(value[q], highest[q]), value[q - 1]);
        }
        for (int q = 0; h && q < RPI_QUANTILES; q++) highest[q] = rpi_most(highest[q], said[1][h - 1][q]);
    }
}

/* Whether the outlet has a reading that is not too old. */
static inline int rpi_answers(const rpi_outlet_experts *o, const rpi_seen *x) { return o->n > 0 && x->tick - o->valid_tick <= RPI_BRIDGED; }

#endif
