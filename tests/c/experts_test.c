/* The experts and their mixture as plain C, driven at random: every interval from a board's to far beyond a configured one,
 * gaps, clocks that stand, leap and go back, draws and plans of any size, ratings that are none, networks that say anything.
 * For sanitizers and for other machines (./run.sh). Argument: a thousand times the outlets that are driven.
 */
#include <stdio.h>
#include <stdlib.h>

#include "../../_fastpath/experts.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

#define TICKS 3000

static uint64_t seed = 0x9E3779B97F4A7C15ull;

static uint32_t below(uint32_t n) { /* xorshift64* */
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (uint32_t)((seed * 2685821657736338717ull) >> 33) % n;
}

static double part(void) { return below(1u << 30) / (double)(1u << 30); }

/* As experts.pxi tames it: within +-1e9, and nothing else. */
static double any_w(void) {
    static const double special[] = {0.0, -0.0, 1e-300, 5e-324, 1e-9, -1.0, RPI_MOST_W, -RPI_MOST_W, 0.1};
    const uint32_t kind = below(20);
    if (kind < sizeof special / sizeof *special) return special[kind];
    return kind < 12 ? (2.0 * part() - 1.0) * RPI_MOST_W : 400.0 * part();
}

static double any_number(void) {
    static const double special[] = {NAN, INFINITY, -INFINITY, 1e308, -1e308, 0.0};
    const uint32_t kind = below(40);
    return kind < sizeof special / sizeof *special ? special[kind] : 400.0 * part();
}

static void check_said(const rpi_seen *x, double now_w, double said[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES]) {
    for (int h = 0; h < RPI_HORIZONS; h++)
        for (int q = 0; q < RPI_QUANTILES; q++) {
            for (int k = 0; k < RPI_KINDS; k++) {
                CHECK(isfinite(said[k][h][q]));
                CHECK(said[k][h][q] >= 0.0);
                CHECK(said[k][h][q] <= RPI_UPPER_BOUND * 1.001 * (fmax(x->rating_w, now_w) + fmax(x->plan[1][RPI_LAST], 0.0)));
                CHECK(q == 0 || said[k][h][q] >= said[k][h][q - 1]);
            }
            CHECK(said[0][h][q] <= said[1][h][q]);
            CHECK(h == 0 || said[1][h][q] >= said[1][h - 1][q]);
            /* no upper quantile of a maximum is below the draw and what is announced */
            CHECK(q == 0 || said[1][h][q] >= now_w + x->plan[1][h]);
        }
}

static void drive(rpi_outlet_experts *o, const rpi_priors *priors) {
    static const int32_t intervals[] = {1, 2, 3, 4, 5, 7, 10, 11, 20, 49, 50, 51, 600, 3000, 36000};
    static const double ratings_w[] = {0.0, 1.0, 300.0, 3680.0, RPI_MOST_W};
    double said[RPI_KINDS][RPI_HORIZONS][RPI_QUANTILES], level_w = any_w();
    rpi_seen x = {.tick = (int64_t)below(1u << 30) * below(1000), .interval = intervals[below(15)], .turn = (int32_t)below(48)};
    const int wild = below(4) == 0, faithful = below(2) == 0;
    x.rating_w = ratings_w[below(5)];
    rpi_outlet_forget(o, priors);
    for (int t = 0; t < TICKS; t++) {
        x.tick++;
        if (below(500) == 0) x.tick += below(4) == 0 ? 100000000000 : (int64_t)below(100);
        if (wild && below(200) == 0) x.tick -= below(2) ? 1 : (int64_t)below(2000); /* a monotonic clock does not */
        if (below(1000) == 0) x.interval = intervals[below(15)];
        if (below(1500) == 0) x.rating_w = ratings_w[below(5)];
        if (below(60) == 0) level_w = any_w();
        x.valid = below(300) != 0;
        x.fresh = x.valid && (faithful ? x.tick % x.interval == 0 : below(3) != 0);
        x.power_w = x.fresh || wild ? rpi_within(wild ? any_w() : level_w * (1.0 + 0.1 * part()), -RPI_MOST_W, RPI_MOST_W) : x.power_w;
        const int announced = below(10) == 0, heard = below(3) != 0;
        double highest_w = -RPI_MOST_W;
        for (int h = 0; h < RPI_HORIZONS; h++) {
            x.plan[0][h] = announced ? any_w() : 0.0;
            highest_w = fmax(highest_w, x.plan[0][h]);
            x.plan[1][h] = highest_w;
            for (int k = 0; k < RPI_KINDS; k++)
                for (int q = 0; q < RPI_QUANTILES; q++)
                    x.own[k][h][q] = heard ? fmax(0.0, level_w) + q : any_number();
        }
        rpi_outlet_step(o, &x, priors);
        if (!rpi_answers(o, &x)) continue;
        rpi_mixture(o, said);
        rpi_finish(o, &x, said);
        check_said(&x, o->now.last_w, said);
        for (int j = 0; j < RPI_EXPERTS; j++) {
            const double share = rpi_part(o, (int)below(2), (int)below(3), j);
            CHECK(share >= 0.0 && share <= 1.0 + 1e-9);
            if (!o->now.awake[j]) continue;
            rpi_member(o, j, said);
            rpi_finish(o, &x, said);
            check_said(&x, o->now.last_w, said);
        }
    }
}

int main(int argc, char **argv) {
    const int outlets = (argc > 1 ? atoi(argv[1]) : 100000) / 1000;
    rpi_outlet_experts *o = malloc(sizeof *o); /* of exactly that size, so that a sanitizer sees one element too many */
    CHECK(o);
    rpi_experts_tables();
    for (int i = 0; i < outlets; i++) {
        rpi_priors priors;
        const int alone = i % 3 ? -1 : i / 3 % RPI_EXPERTS; /* the only one that may answer */
        for (int j = 0; j < RPI_EXPERTS; j++) priors.allowed[j] = alone < 0 || alone == j;
        rpi_set_priors(&priors);
        drive(o, &priors);
    }
    free(o);
    printf("experts: %d outlets of %d ticks\n", outlets, TICKS);
    return 0;
}
