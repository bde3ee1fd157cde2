/* Host time of board ticks: a decaying linear regression on the fastest arrivals, so that jitter does not move it.
 *
 * An arrival is the sample's time plus a delay that is never negative. So of each 200 ms only the arrival with the
 * least delay is taken; those points go into a decaying regression (as in Klipper's clocksync.py) of what is left after
 * the nominal rate. An early point is proof that the line lies too late, and moves it at once. A late point is only a
 * suspicion: it is passed over, until 5 s of nothing else show that the delay itself has grown.
 * The least delay of the path (line rate, driver) cannot be told from time and stays in the predicted times.
 */
#ifndef RPI_BOARD_CLOCK_H
#define RPI_BOARD_CLOCK_H

#include <math.h>
#include <stdint.h>

#define RPI_CLOCK_BLOCK_S 0.2
#define RPI_CLOCK_DECAY (1.0 / 30)     /* per block: the line follows 6 s of arrivals */
#define RPI_CLOCK_SPAN_S2 0.04         /* variance of time below which the slope stays near nominal: 20 us noise, 100 ppm */
#define RPI_CLOCK_TRUST_BLOCKS 10      /* from then on late points are passed over */
#define RPI_CLOCK_PATIENCE_BLOCKS 25
#define RPI_CLOCK_TOLERANCE_NS 100e3

typedef struct {
    uint64_t ref_ticks; /* the line is kept near "now", so that doubles stay exact over years */
    int64_t ref_ns;
    double ns_per_tick; /* nominal; 0 = not started */
    double x_s, y_ns, var_s2, cov; /* decaying means around ref; y = time beyond the nominal line */
    double slope;                  /* ns/s, that is 1e-9: what the board's clock is off */
    uint32_t points, passed_over;
    double block_start_s, best_x_s, best_y_ns;
    int block_open;
} rpi_board_clock;

static inline void rpi_board_clock_start(rpi_board_clock *clock, uint64_t ticks, int64_t arrival_ns, double ns_per_tick) {
    *clock = (rpi_board_clock){.ref_ticks = ticks, .ref_ns = arrival_ns, .ns_per_tick = ns_per_tick};
}

static inline double rpi_board_clock_x(const rpi_board_clock *clock, uint64_t ticks) {
    return (double)(int64_t)(ticks - clock->ref_ticks) * clock->ns_per_tick * 1e-9;
}

static inline double rpi_board_clock_y(const rpi_board_clock *clock, double x_s) {
    if (clock->points == 0) return clock->block_open ? clock->best_y_ns : 0.0;
    return clock->y_ns + clock->slope * (x_s - clock->x_s);
}

/* CLOCK_MONOTONIC ns of a board time. */
static inline int64_t rpi_board_clock_predict(const rpi_board_clock *clock, uint64_t ticks) {
    double x_s = rpi_board_clock_x(clock, ticks);
    return clock->ref_ns + (int64_t)llround(x_s * 1e9 + rpi_board_clock_y(clock, x_s));
}

static inline void rpi_board_clock_point(rpi_board_clock *clock, double x_s, double y_ns) {
    double error = y_ns - rpi_board_clock_y(clock, x_s);
    int late = clock->points >= RPI_CLOCK_TRUST_BLOCKS && error > RPI_CLOCK_TOLERANCE_NS;
    if (late && ++clock->passed_over < RPI_CLOCK_PATIENCE_BLOCKS) return;
    if (late || (clock->points > 0 && error < -RPI_CLOCK_TOLERANCE_NS))
        clock->y_ns += error; /* the level was wrong, the slope need not be */
    clock->passed_over = 0;
    clock->points++;
    double decay = fmax(RPI_CLOCK_DECAY, 1.0 / clock->points);
    double dx = x_s - clock->x_s, dy = y_ns - clock->y_ns;
    clock->x_s += decay * dx;
    clock->y_ns += decay * dy;
    clock->var_s2 = (1 - decay) * (clock->var_s2 + decay * dx * dx);
    clock->cov = (1 - decay) * (clock->cov + decay * dx * dy);
    clock->slope = clock->cov / (clock->var_s2 + RPI_CLOCK_SPAN_S2);
}

static inline void rpi_board_clock_rebase(rpi_board_clock *clock, uint64_t ticks) {
    double x_s = rpi_board_clock_x(clock, ticks);
    int64_t step_ns = (int64_t)llround(x_s * 1e9);
    clock->ref_ticks = ticks;
    clock->ref_ns += step_ns;
    clock->x_s -= x_s;
    clock->y_ns -= (double)step_ns - x_s * 1e9; /* what rounding moved the line by */
}

/* One arrival: the board latched at `ticks`, we had it at `arrival_ns`. Ticks never go back. */
static inline void rpi_board_clock_add(rpi_board_clock *clock, uint64_t ticks, int64_t arrival_ns) {
    double x_s = rpi_board_clock_x(clock, ticks);
    double y_ns = (double)(arrival_ns - clock->ref_ns) - x_s * 1e9;
    if (clock->block_open && x_s - clock->block_start_s >= RPI_CLOCK_BLOCK_S) {
        rpi_board_clock_point(clock, clock->best_x_s, clock->best_y_ns);
        rpi_board_clock_rebase(clock, ticks);
        clock->block_open = 0;
        x_s = 0;
        y_ns = (double)(arrival_ns - clock->ref_ns);
    }
    if (!clock->block_open) clock->block_start_s = x_s;
    if (!clock->block_open || y_ns - clock->slope * x_s < clock->best_y_ns - clock->slope * clock->best_x_s) {
        clock->best_x_s = x_s;
        clock->best_y_ns = y_ns;
    }
    clock->block_open = 1;
}

#endif
