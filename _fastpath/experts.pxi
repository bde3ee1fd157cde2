# Experts and their online mixture per outlet; see experts.h for what is computed and how.
from libc.math cimport NAN, isfinite, isnan
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free

cdef extern from "experts.h" nogil:
    enum: RPI_EXPERTS
    enum: RPI_KINDS
    enum: RPI_HORIZONS
    enum: RPI_QUANTILES
    double RPI_MOST_W
    ctypedef struct rpi_made:
        uint8_t awake[8]
    ctypedef struct rpi_outlet_experts:
        int32_t interval
        int32_t lag
        rpi_made now
    ctypedef struct rpi_priors:
        uint8_t allowed[8]
    ctypedef struct rpi_seen:
        int64_t tick
        int32_t interval
        int32_t valid
        int32_t fresh
        int32_t turn
        double power_w
        double rating_w
        double plan[2][5]
        double own[2][5][3]
    void rpi_experts_tables()
    void rpi_set_priors(rpi_priors *priors)
    void rpi_outlet_forget(rpi_outlet_experts *o, const rpi_priors *priors)
    void rpi_outlet_step(rpi_outlet_experts *o, const rpi_seen *x, const rpi_priors *priors)
    void rpi_mixture(const rpi_outlet_experts *o, double (*said)[5][3])
    void rpi_member(const rpi_outlet_experts *o, int expert, double (*said)[5][3])
    void rpi_finish(const rpi_outlet_experts *o, const rpi_seen *x, double (*said)[5][3])
    double rpi_part(const rpi_outlet_experts *o, int k, int q, int expert)
    bint rpi_answers(const rpi_outlet_experts *o, const rpi_seen *x)

EXPERTS = ("persistence", "ewma", "median_5s", "median_20s", "median_60s", "ridge", "periodic", "lstm")
assert len(EXPERTS) == RPI_EXPERTS
rpi_experts_tables()


cdef inline double _tame(double x, double low) noexcept nogil:
    """`x` within what arithmetic can bear; what is not a number is 0."""
    return 0.0 if isnan(x) else low if x < low else RPI_MOST_W if x > RPI_MOST_W else x


cdef class Experts:
    """Every expert and their mixture for n outlets. One caller at a time.

    alone: the only expert that may answer; persistence speaks where it has no answer.
    """
    cdef readonly int n
    cdef rpi_outlet_experts *outlets
    cdef rpi_seen *seen
    cdef rpi_priors priors

    def __cinit__(self, int n, alone=None):
        _check(n >= 0, f"n = {n}: a number of outlets")
        _check(alone is None or alone in EXPERTS, f"alone = {alone!r}: choose one of {', '.join(EXPERTS)}")
        self.n = n
        for j, name in enumerate(EXPERTS):
            self.priors.allowed[j] = alone is None or alone == name
        rpi_set_priors(&self.priors)
        self.outlets = <rpi_outlet_experts *>calloc(max(n, 1), sizeof(rpi_outlet_experts))
        self.seen = <rpi_seen *>calloc(max(n, 1), sizeof(rpi_seen))
        if self.outlets == NULL or self.seen == NULL:
            raise MemoryError(f"experts of {n} outlets")
        for i in range(n):
            rpi_outlet_forget(&self.outlets[i], &self.priors)

    def __dealloc__(self):
        free(self.outlets)
        free(self.seen)

    def reset(self, outlets=None):
        """Forget everything about these outlets, [n] bool (all by default)."""
        cdef uint8_t[:] rows = _np.ascontiguousarray(_np.ones(self.n, _np.bool_) if outlets is None else outlets, _np.bool_).view(_np.uint8)
        _check(rows.shape[0] == self.n, f"{rows.shape[0]} rows for {self.n} outlets")
        for i in range(self.n):
            if rows[i]:
                rpi_outlet_forget(&self.outlets[i], &self.priors)

    def step(self, int64_t tick, const double[:] power_w, const uint8_t[:] valid, const uint8_t[:] fresh, const int64_t[:] interval_ticks,
             const double[:] rating_w, const double[:, :] planned_w, const double[:, :, :] value_w, const double[:, :, :] running_max_w,
             double[:, :, :, ::1] out):
        """One tick of 100 ms: readings [n] W (fresh: taken for this tick), announced changes [n, 5] W, the network's quantiles
        [n, 5, 3] W (NaN: none). Fills out [2, n, 5, 3] W with the mixture's value and running maximum; NaN: no reading."""
        cdef Py_ssize_t n = self.n
        cdef int i
        _check(power_w.shape[0] == n and valid.shape[0] == n and fresh.shape[0] == n and interval_ticks.shape[0] == n
               and rating_w.shape[0] == n and planned_w.shape[0] == n and planned_w.shape[1] == RPI_HORIZONS,
               f"readings must be [{n}], planned_w [{n}, 5]")
        _check(value_w.shape[0] == n and value_w.shape[1] == RPI_HORIZONS and value_w.shape[2] == RPI_QUANTILES
               and running_max_w.shape[0] == n and running_max_w.shape[1] == RPI_HORIZONS and running_max_w.shape[2] == RPI_QUANTILES,
               f"the network's quantiles must be [{n}, 5, 3]")
        self._check_out(out)
        with nogil:
            for i in range(n):
                self._look(i, tick, power_w[i], valid[i], fresh[i], interval_ticks[i], rating_w[i], planned_w[i], value_w[i], running_max_w[i])
                rpi_outlet_step(&self.outlets[i], &self.seen[i], &self.priors)
                self._say(i, -1, out)

    def member(self, int expert, double[:, :, :, ::1] out):
        """What one expert, by its place in EXPERTS, said in the newest tick; NaN where it had no answer."""
        _check(0 <= expert < RPI_EXPERTS, f"expert {expert} of {RPI_EXPERTS}")
        self._check_out(out)
        with nogil:
            for i in range(self.n):
                self._say(i, expert, out)

    def weights(self, int kind, int quantile, double[:, ::1] out):
        """Fill out [experts, n] with each expert's part of one quantile 5 s ahead; kind 0 is the value, 1 the running maximum."""
        _check(0 <= kind < RPI_KINDS and 0 <= quantile < RPI_QUANTILES, f"kind {kind}, quantile {quantile}")
        _check(out.shape[0] == RPI_EXPERTS and out.shape[1] == self.n, f"out must be [{RPI_EXPERTS}, {self.n}]")
        for j in range(RPI_EXPERTS):
            for i in range(self.n):
                out[j, i] = rpi_part(&self.outlets[i], kind, quantile, j)

    @property
    def awake(self):
        """Which experts had an answer at each outlet's newest reading, [experts, n] bool."""
        found = _np.zeros((RPI_EXPERTS, self.n), _np.bool_)
        cdef uint8_t[:, :] rows = found.view(_np.uint8)
        for j in range(RPI_EXPERTS):
            for i in range(self.n):
                rows[j, i] = self.outlets[i].now.awake[j]
        return found

    @property
    def period_ticks(self):
        """The strongest period of each outlet, [n] ticks; 0: none yet."""
        return _np.array([self.outlets[i].lag * self.outlets[i].interval for i in range(self.n)], _np.int64)

    cdef _check_out(self, double[:, :, :, ::1] out):
        _check(out.shape[0] == RPI_KINDS and out.shape[1] == self.n and out.shape[2] == RPI_HORIZONS and out.shape[3] == RPI_QUANTILES,
               f"out must be [2, {self.n}, 5, 3]")

    cdef void _look(self, int i, int64_t tick, double power_w, bint valid, bint fresh, int64_t interval_ticks, double rating_w,
                    const double[:] planned_w, const double[:, :] value_w, const double[:, :] running_max_w) noexcept nogil:
        cdef rpi_seen *x = &self.seen[i]
        cdef int h, q
        cdef double change_w, highest_w = -RPI_MOST_W
        x.tick = tick
        x.interval = <int32_t>(1 if interval_ticks < 1 else 36000 if interval_ticks > 36000 else interval_ticks)
        x.valid = valid and isfinite(power_w)
        x.fresh = x.valid and fresh
        x.turn = i
        x.power_w = _tame(power_w, -RPI_MOST_W)
        x.rating_w = _tame(rating_w, 1.0)
        for h in range(RPI_HORIZONS):
            change_w = _tame(planned_w[h], -RPI_MOST_W) if isfinite(planned_w[h]) else 0.0
            highest_w = change_w if change_w > highest_w else highest_w
            x.plan[0][h] = change_w
            x.plan[1][h] = highest_w
            for q in range(RPI_QUANTILES):
                x.own[0][h][q] = value_w[h, q]
                x.own[1][h][q] = running_max_w[h, q]

    cdef void _say(self, int i, int expert, double[:, :, :, ::1] out) noexcept nogil:
        """The mixture's answer for one outlet, or one expert's."""
        cdef double said[2][5][3]
        cdef int k, h, q
        cdef const rpi_outlet_experts *o = &self.outlets[i]
        cdef bint there = rpi_answers(o, &self.seen[i]) and (expert < 0 or o.now.awake[expert])
        if there:
            if expert < 0:
                rpi_mixture(o, said)
            else:
                rpi_member(o, expert, said)
            rpi_finish(o, &self.seen[i], said)
        for k in range(RPI_KINDS):
            for h in range(RPI_HORIZONS):
                for q in range(RPI_QUANTILES):
                    out[k, i, h, q] = said[k][h][q] if there else NAN


cdef inline double _higher(double a, double b) noexcept nogil:
    """The larger one; NaN where either is."""
    return a if a > b or isnan(a) else b


cdef inline double _lower(double a, double b) noexcept nogil:
    return a if a < b or isnan(a) else b


def network_quantiles(const double[:, ::1] change_w, const double[:] base_w, const uint8_t[:] ready, const uint8_t[:] off,
                      const double[:] rating_w, const double[:, :] planned_w, double slightly_negative, double[:, :, :, ::1] out):
    """The network's changes [n, 30] W (value, then running maximum; each horizons x quantiles) from base_w [n] as quantiles
    out [2, n, 5, 3] W that do not fall, of running maxima that do not fall either nor lie below the value; NaN: not ready.
    Down to `slightly_negative` of the rating below 0 W an answer is taken as 0 W."""
    cdef Py_ssize_t n = change_w.shape[0], i, h, q
    _check(change_w.shape[1] == RPI_KINDS * RPI_HORIZONS * RPI_QUANTILES, f"{change_w.shape[1]} outputs of a network")
    _check(base_w.shape[0] == n and ready.shape[0] == n and off.shape[0] == n and rating_w.shape[0] == n
           and planned_w.shape[0] == n and planned_w.shape[1] == RPI_HORIZONS, f"readings must be [{n}], planned_w [{n}, 5]")
    _check(out.shape[0] == RPI_KINDS and out.shape[1] == n and out.shape[2] == RPI_HORIZONS and out.shape[3] == RPI_QUANTILES,
           f"out must be [2, {n}, 5, 3]")
    with nogil:
        for i in range(n):
            if ready[i]:
                _network_outlet(&change_w[i, 0], base_w[i], off[i], rating_w[i], -slightly_negative * rating_w[i], planned_w[i], &out[0, i, 0, 0], &out[1, i, 0, 0])
                continue
            for h in range(RPI_HORIZONS):
                for q in range(RPI_QUANTILES):
                    out[0, i, h, q] = out[1, i, h, q] = NAN


cdef void _network_outlet(const double *change_w, double base_w, bint off, double rating_w, double slightly_negative_w,
                          const double[:] planned_w, double *value_w, double *running_max_w) noexcept nogil:
    cdef int h, q, at
    cdef double announced_w[5]
    cdef double change, highest = 0.0, most_w
    for h in range(RPI_HORIZONS):
        change = planned_w[h] if isfinite(planned_w[h]) else 0.0
        highest = change if h == 0 or change > highest else highest
        announced_w[h] = base_w + highest
    # A quiet outlet's rare jumps count many scales; when an announcement widens the scale, they would count as watts that the
    # outlet cannot draw. The median is left alone: weights judge it. An outlet that is off stays off.
    most_w = _higher(0.0 if off else rating_w, announced_w[RPI_HORIZONS - 1])
    for h in range(RPI_HORIZONS):
        at = h * RPI_QUANTILES
        for q in range(RPI_QUANTILES):
            value_w[at + q] = change_w[at + q] + base_w
            running_max_w[at + q] = change_w[RPI_HORIZONS * RPI_QUANTILES + at + q] + base_w
            if q:
                running_max_w[at + q] = _higher(running_max_w[at + q], announced_w[h])
        _bound(&value_w[at], off, most_w, slightly_negative_w)
        _bound(&running_max_w[at], off, most_w, slightly_negative_w)
        for q in range(RPI_QUANTILES):
            running_max_w[at + q] = _higher(running_max_w[at + q], value_w[at + q])
            if h:
                running_max_w[at + q] = _higher(running_max_w[at + q], running_max_w[at + q - RPI_QUANTILES])


cdef void _bound(double *quantile_w, bint off, double most_w, double slightly_negative_w) noexcept nogil:
    """Within what the outlet can draw and what is said of its median, not negative (worse stays, and is refused), in order."""
    cdef double ceiling_w = most_w if off else _higher(most_w, quantile_w[0])
    cdef int q
    for q in range(RPI_QUANTILES):
        quantile_w[q] = _lower(quantile_w[q], ceiling_w)
        if quantile_w[q] > slightly_negative_w:
            quantile_w[q] = _higher(quantile_w[q], 0.0)
        if q:
            quantile_w[q] = _higher(quantile_w[q], quantile_w[q - 1])
