# Window kernels; see window.h for what is computed and how.
from rpi_daemon._fastpath.delay import delay_taps as _delay_taps, lag_for as _lag_for, shared_basis as _shared_basis

cdef extern from "window.h" nogil:
    ctypedef struct rpi_voltage:
        int32_t plus
        int32_t minus
        uint32_t first_term
        uint32_t n_terms
    ctypedef struct rpi_outlet:
        int32_t current
        int32_t voltage
        double sign
        uint32_t first_term
        uint32_t n_terms
    ctypedef struct rpi_term:
        int32_t row
        float factor
    ctypedef struct rpi_channel_state:
        int32_t low
    ctypedef struct rpi_window:
        uint32_t n_channels
        uint32_t n_outlets
        uint32_t n_voltages
        uint32_t n_used
        uint32_t n_basis
        uint32_t lag
        const double *gain
        const double *offset
        const int32_t *full_scale
        const int32_t *used
        const rpi_voltage *voltages
        const rpi_outlet *outlets
        const rpi_term *terms
        const int32_t *basis_channel
        const float *basis_taps
        int32_t *counts
        rpi_channel_state *state
        double *volts
        double *pair
        double *pair_rms
        uint8_t *pair_present
        uint32_t *pair_flags
        float *basis
        double *out
        int64_t t_end_ns
    int RPI_WINDOW_OK
    int RPI_WINDOW_NOT_READY
    int RPI_WINDOW_LAPPED
    int RPI_N_FEATURES
    uint32_t RPI_WEIGHTED_SCANS
    uint32_t RPI_WINDOW_HOP
    uint32_t RPI_MAX_LAG
    uint32_t RPI_SCAN_FIRST
    uint32_t RPI_ROW
    void rpi_window_weights(rpi_window *w)
    int rpi_window_compute(rpi_window *w, const rpi_ring *ring, uint64_t end, int portable)

WINDOW_OK = RPI_WINDOW_OK
WINDOW_NOT_READY = RPI_WINDOW_NOT_READY
WINDOW_LAPPED = RPI_WINDOW_LAPPED
WINDOW_SCANS = RPI_WEIGHTED_SCANS
WINDOW_HOP = RPI_WINDOW_HOP
SCAN_FIRST = RPI_SCAN_FIRST
(F_POWER_W, F_RMS_A, F_APPARENT_VA, F_POWER_FACTOR, F_PEAK_A, F_CREST, F_MIN_A, F_MAX_A, F_STEP, F_VOLTAGE_V, F_COUNT,
 F_MISSING, F_SATURATED, F_QUALITY, N_FEATURES) = range(RPI_N_FEATURES + 1)


def _check(bint right, str sentence):
    if not right:
        raise ValueError(sentence)


cdef class WindowKernel:
    """Power, RMS, peak and the rest of each outlet over the newest window of a ring (DESIGN section 3).

    outlets: one (current channel, voltage, sign) each; voltage is a channel, (plus, minus) for line to line, or -1 for
    none; sign -1 turns a transformer round. gain [n_channels]: A or V per count. delay_ns [n_channels]: the sample
    stamped t shows the signal at t - delay_ns; so a sensor's phase delay counts plus, a scan skew (taken later) minus.
    full_scale_counts [n_channels]: from there on a sample means "at least". dc: delays are not corrected.

    `compute` fills `out` [n_outlets, N_FEATURES], columns F_*: NaN is no data. Power is in W, F_STEP in W, or in A of
    RMS where there is no voltage; F_COUNT, F_MISSING, F_SATURATED are samples of the newest 100; F_QUALITY has the bits
    of records.Quality. Weighted quantities end `group_delay` scans before the window does. One caller at a time.
    """
    cdef rpi_window w
    cdef readonly object out
    cdef readonly int n_outlets
    cdef readonly int n_channels
    cdef bint portable
    cdef list _keep

    def __init__(self, n_channels, *, outlets, gain, offset_counts=None, delay_ns=None, full_scale_counts=None, rate_hz=1000, dc=False, portable=False):
        outlets = [(int(c), tuple(v) if isinstance(v, (tuple, list)) else (int(v), -1), float(sign)) for c, v, sign in outlets]
        delay = self._vector(delay_ns, n_channels, 0.0, "delay_ns", _np.float64) * (0.0 if dc else rate_hz * 1e-9)
        full = self._vector(full_scale_counts, n_channels, 2**31 - 1, "full_scale_counts", _np.int32)
        _check(rate_hz == 1000, f"rate_hz = {rate_hz}: windows are 200 scans at 1000 Hz; set the board to 1000 scans a second")
        _check(len(outlets) > 0, "a window kernel needs at least one outlet")
        _check(bool((full > 0).all()), "full_scale_counts must be positive")
        for current, (plus, minus), sign in outlets:
            _check(0 <= current < n_channels and -1 <= plus < n_channels and -1 <= minus < n_channels,
                   f"outlet on channels {current}, {plus}, {minus}: the board has {n_channels}")
            _check(minus < 0 or plus >= 0, "a line-to-line voltage needs both of its channels")
            _check(sign in (1.0, -1.0), f"sign = {sign}: must be 1 or -1")
        self.n_channels = n_channels
        self.n_outlets = len(outlets)
        self.portable = portable
        self._keep = []
        self.w.n_channels = n_channels
        self.w.n_outlets = len(outlets)
        self.w.gain = <const double *>self._own(self._vector(gain, n_channels, 1.0, "gain", _np.float64))
        self.w.offset = <const double *>self._own(self._vector(offset_counts, n_channels, 0.0, "offset_counts", _np.float64))
        self.w.full_scale = <const int32_t *>self._own(full)
        self._lay_out(outlets, delay)
        out = _np.full((RPI_N_FEATURES, len(outlets)), _np.nan)
        self.w.out = <double *>self._own(out)
        self.out = out.T
        rpi_window_weights(&self.w)

    cdef object _vector(self, values, n, fill, name, dtype):
        vector = _np.full(n, fill, dtype) if values is None else _np.array(values, dtype)
        _check(vector.shape == (n,), f"{name} has {vector.shape} values for {n} channels")
        _check(bool(_np.isfinite(vector).all()), f"{name} has a value that is not finite")
        return vector

    cdef void *_own(self, array) except? NULL:
        """Address of an array's data, kept alive as long as the kernel."""
        self._keep.append(array)
        cdef size_t address = array.ctypes.data
        return <void *>address

    cdef int _lay_out(self, list outlets, delay) except -1:
        """Voltages, filters and scratch. Each voltage channel gets a few filters that all its outlets mix from."""
        pairs = sorted({v for _, v, _ in outlets if v[0] >= 0})
        used = sorted({c for pair in pairs for c in pair if c >= 0})
        # what each outlet, and each line-to-line voltage for its RMS, needs: (voltage channel, delay in samples, side)
        outlet_needs = [[(c, delay[current] - delay[c], side) for c, side in zip(pair, (1.0, -1.0)) if c >= 0] for current, pair, _ in outlets]
        pair_needs = [[(minus, delay[plus] - delay[minus], 1.0)] if minus >= 0 else [] for plus, minus in pairs]
        needs = [need if any(d != 0.0 for _, d, _ in need) else [] for need in outlet_needs + pair_needs]
        cdef uint32_t lag = _lag_for(_np.array([d for need in needs for _, d, _ in need]))
        _check(lag <= RPI_MAX_LAG, f"delays differ by more than {RPI_MAX_LAG - 28} samples: check delay_ns")
        rows, row_channel, mixes = [], [], {}
        for c in used:
            delays = _np.unique([d for need in needs for channel, d, _ in need if channel == c])
            if len(delays):
                mix, basis = _shared_basis(_delay_taps(delays, lag))
                for d, factors in zip(delays, mix):
                    mixes[c, d] = [(len(rows) + j, factor) for j, factor in enumerate(factors)]
                rows.extend(basis)
                row_channel.extend([c] * len(basis))
        terms, spans = [], []
        for need in needs:
            first = len(terms)
            terms.extend((row, side * factor) for c, d, side in need for row, factor in mixes[c, d])
            spans.append((first, len(terms) - first))
        outlet_rows = [
            (current, pairs.index(pair) if pair[0] >= 0 else -1, sign, *span)
            for (current, pair, sign), span in zip(outlets, spans)
        ]
        pair_rows = [(*pair, *span) for pair, span in zip(pairs, spans[len(outlets):])]
        self.w.lag = lag
        self.w.n_voltages = len(pairs)
        self.w.n_used = len(used)
        self.w.n_basis = len(rows)
        self.w.used = <const int32_t *>self._own(_np.array(used, _np.int32))
        self.w.voltages = <const rpi_voltage *>self._own(_np.array(pair_rows, _np.dtype("i4,i4,u4,u4")))
        self.w.outlets = <const rpi_outlet *>self._own(_np.array(outlet_rows, _np.dtype("i4,i4,f8,u4,u4")))
        self.w.terms = <const rpi_term *>self._own(_np.array(terms, _np.dtype("i4,f4")))
        self.w.basis_channel = <const int32_t *>self._own(_np.array(row_channel, _np.int32))
        self.w.basis_taps = <const float *>self._own(_np.array(rows, _np.float32))
        n = self.n_channels
        self.w.counts = <int32_t *>self._own(_np.zeros((n, RPI_ROW), _np.int32))
        self.w.state = <rpi_channel_state *>self._own(_np.zeros(n * sizeof(rpi_channel_state), _np.uint8))
        self.w.volts = <double *>self._own(_np.zeros((n, RPI_ROW)))
        self.w.pair = <double *>self._own(_np.zeros((len(pairs), RPI_ROW)))
        self.w.pair_rms = <double *>self._own(_np.zeros(len(pairs)))
        self.w.pair_present = <uint8_t *>self._own(_np.zeros((len(pairs), RPI_WEIGHTED_SCANS), _np.uint8))
        self.w.pair_flags = <uint32_t *>self._own(_np.zeros(len(pairs), _np.uint32))
        self.w.basis = <float *>self._own(_np.zeros((len(rows), RPI_WEIGHTED_SCANS), _np.float32))
        return 0

    @property
    def group_delay(self):
        """Scans by which the weighted quantities are older than without delay correction; 0 where none is needed."""
        return self.w.lag

    @property
    def n_filters(self):
        """Filters in use for all outlets together."""
        return self.w.n_basis

    @property
    def span(self):
        """Scans that one window reads."""
        return RPI_WEIGHTED_SCANS + 2 * self.w.lag

    @property
    def t_end_ns(self):
        """CLOCK_MONOTONIC time of the last scan of the window computed last; 0 if none of its scans was there."""
        return self.w.t_end_ns

    def compute(self, Ring ring not None, uint64_t end_index):
        """Window that ends before scan `end_index`: WINDOW_OK, or WINDOW_NOT_READY / WINDOW_LAPPED with `out` as it was.

        A window that a start of the daemon or a reboot of the board lies in is not ready: time is not known across it.
        Raises ValueError if the ring has another number of channels.
        """
        if ring.ring.n_channels != self.w.n_channels:
            raise ValueError(f"the ring has {ring.ring.n_channels} channels, the kernel {self.w.n_channels}")
        cdef int result
        with nogil:
            result = rpi_window_compute(&self.w, &ring.ring, end_index, self.portable)
        return result
