# The sampling thread of one board; see sampler.h for the contract.
from libc.string cimport memcpy, strerror

cdef extern from "board_clock.h" nogil:
    ctypedef struct rpi_board_clock:
        double slope
    void rpi_board_clock_start(rpi_board_clock *clock, uint64_t ticks, int64_t arrival_ns, double ns_per_tick)
    void rpi_board_clock_add(rpi_board_clock *clock, uint64_t ticks, int64_t arrival_ns)
    int64_t rpi_board_clock_predict(const rpi_board_clock *clock, uint64_t ticks)

cdef extern from "<sys/resource.h>" nogil:
    struct rlimit:
        uint64_t rlim_cur
    int getrlimit(int resource, rlimit *limit)
    int RLIMIT_RTPRIO
    int RLIMIT_MEMLOCK

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int PTHREAD_PRIO_INHERIT
    int pthread_mutexattr_init(pthread_mutexattr_t *attributes)
    int pthread_mutexattr_setprotocol(pthread_mutexattr_t *attributes, int protocol)
    int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "sampler.h" nogil:
    enum rpi_counter:
        RPI_RECEIVED, RPI_LOST, RPI_CORRUPT, RPI_LATE, RPI_OVERFLOW, RPI_RESYNC_BYTES, RPI_REBOOTS, RPI_SATURATED
        RPI_FAULTS, RPI_REPEATED, RPI_FOREIGN, RPI_DISCONNECTS, RPI_BYTES_IN, RPI_STARVED
    ctypedef struct rpi_sampler:
        rpi_ring ring
        rpi_ring feed
        int board_id
        int event_fd
        int priority
        int lock_memory
        int paced
        uint32_t notify_every
        int64_t period_ns
        rpi_scan_layout layout
        int fifo_errno
        int lock_errno
        int lock_future
        int thread_id
        pthread_mutex_t description_lock
        uint32_t description_bytes
        uint8_t *description
    uint64_t rpi_sampler_get(const rpi_sampler *s, rpi_counter which)
    int rpi_sampler_connected(rpi_sampler *s)
    uint32_t rpi_sampler_boot_id(rpi_sampler *s)
    uint64_t rpi_sampler_forwarded(rpi_sampler *s)
    uint64_t rpi_sampler_turns(const rpi_sampler *s)
    double rpi_sampler_quantile(const rpi_sampler *s, double q)
    int rpi_sampler_start(rpi_sampler *s, int fd, uint64_t first)
    void rpi_sampler_attach(rpi_sampler *s, int fd)
    void rpi_sampler_stop(rpi_sampler *s)


cdef class BoardClock:
    """The regression of board ticks on host time that the sampler stamps with; here for tests and tools."""
    cdef rpi_board_clock clock

    def __cinit__(self, uint64_t ticks, int64_t arrival_ns, double ns_per_tick):
        rpi_board_clock_start(&self.clock, ticks, arrival_ns, ns_per_tick)

    def add(self, uint64_t ticks, int64_t arrival_ns):
        """Take in that what the board latched at `ticks` arrived at `arrival_ns`."""
        rpi_board_clock_add(&self.clock, ticks, arrival_ns)

    def predict(self, uint64_t ticks):
        """CLOCK_MONOTONIC ns of `ticks`."""
        return rpi_board_clock_predict(&self.clock, ticks)

    @property
    def drift_ppm(self):
        """How much longer the board's nominal second is than the host's, 1e-6."""
        return self.clock.slope * 1e-3


cdef class Sampler:
    """One board's sampling thread: compiled, without the GIL, the only producer of `ring`.

    It is started once, streamed or paced, and stopped once. The eventfd counts completed runs of `notify_every` scans
    (their indices are aligned); it also wakes on a disconnect. A ring that holds scans already is continued behind them, by whole hundreds.
    Raises ValueError on wrong use, OSError where the kernel refuses the thread.
    """
    cdef rpi_sampler sampler
    cdef Ring ring
    cdef Ring feed
    cdef str state

    def __cinit__(
        self, Ring ring not None, *, int board_id=0, int event_fd=-1, int notify_every=100, int fifo_priority=0, bint lock_memory=False
    ):
        cdef pthread_mutexattr_t attributes
        if ring.buffer.readonly:
            raise ValueError("the ring is attached read-only; a sampler writes to it")
        if ring.ring.n_channels > RPI_FRAME_MAX_CHANNELS:
            raise ValueError(f"{ring.ring.n_channels} channels: a board has at most {RPI_FRAME_MAX_CHANNELS}")
        if not 0 <= fifo_priority <= 99:
            raise ValueError(f"fifo_priority = {fifo_priority}: must be 1 to 99, or 0 for none")
        if notify_every < 1:
            raise ValueError(f"notify_every = {notify_every}: must be 1 or more")
        self.ring = ring
        self.state = "new"
        self.sampler.ring = ring.ring
        self.sampler.board_id = board_id
        self.sampler.event_fd = event_fd
        self.sampler.notify_every = notify_every
        self.sampler.priority = fifo_priority
        self.sampler.lock_memory = lock_memory
        self.sampler.period_ns = 1_000_000_000 // ring.ring.header.rate_hz
        pthread_mutexattr_init(&attributes)
        pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT)  # a reader of the description must not hold up the thread
        pthread_mutex_init(&self.sampler.description_lock, &attributes)

    def __dealloc__(self):
        if self.state == "running":
            with nogil:
                rpi_sampler_stop(&self.sampler)

    cdef _start(self, int fd, uint64_t first):
        cdef int error
        if self.state != "new":
            raise ValueError("a sampler is started once; make a new one")
        with nogil:
            error = rpi_sampler_start(&self.sampler, fd, first)
        if error:
            raise OSError(error, f"the sampling thread did not start: {strerror(error).decode()}")
        self.state = "running"

    def start_streamed(self, int fd, ScanLayout records=None):
        """Decode the frames that `fd` delivers, or its IIO records. The caller owns fd, and closes it only once `connected()` is false."""
        if fd < 0:
            raise ValueError(f"fd = {fd}: not a descriptor")
        if records is not None:
            if records.n_channels != self.ring.ring.n_channels:
                raise ValueError(f"the records have {records.n_channels} channels, the ring {self.ring.ring.n_channels}")
            if self.state == "new":
                self.sampler.layout = records.layout
        self._start(fd, 0)

    def start_paced(self, Ring feed not None, int64_t period_ns):
        """Forward scan k of `feed` every `period_ns`, stamped with its deadline; the host's clock is the board's.

        It begins with the oldest scan in the feed. The producer of the feed stays ahead of `forwarded()`, by at most
        the feed's capacity; a scan that is not there at its deadline is counted as starved and stays missing.
        """
        if feed.ring.n_channels != self.ring.ring.n_channels:
            raise ValueError(f"the feed has {feed.ring.n_channels} channels, the ring {self.ring.ring.n_channels}")
        if not 10_000 <= period_ns <= 1_000_000_000:
            raise ValueError(f"period_ns = {period_ns}: must be 10 us to 1 s")
        if self.state == "new":
            self.feed = feed
            self.sampler.feed = feed.ring
            self.sampler.paced = True
            self.sampler.period_ns = period_ns
        self._start(-1, max(0, feed.head - feed.capacity))

    def attach(self, int fd):
        """Go on with this descriptor, after a re-plug or instead of the present one, which is free once this returns."""
        if self.state != "running" or self.sampler.paced:
            raise ValueError("only a running streamed sampler takes another descriptor")
        if fd < 0:
            raise ValueError(f"fd = {fd}: not a descriptor")
        with nogil:
            rpi_sampler_attach(&self.sampler, fd)

    def stop(self):
        """Stop the thread; returns when every byte that had been received is in the ring. Safe to call twice."""
        if self.state == "running":
            with nogil:
                rpi_sampler_stop(&self.sampler)
            self.state = "stopped"

    def counters(self):
        """What was received and what went wrong, each cause by itself.

        In scans: received, lost (missing in the board's index), late (more than a period after the predicted time), overflow
        (dropped by the board, part of lost), repeated, starved (paced). In samples of one channel: saturated, faults.
        In frames: corrupt, foreign (other board id or channel count). In bytes: bytes_in, resync_bytes. And reboots, disconnects.
        """
        cdef rpi_sampler *s = &self.sampler
        return {
            "received": rpi_sampler_get(s, RPI_RECEIVED),
            "lost": rpi_sampler_get(s, RPI_LOST),
            "corrupt": rpi_sampler_get(s, RPI_CORRUPT),
            "late": rpi_sampler_get(s, RPI_LATE),
            "overflow": rpi_sampler_get(s, RPI_OVERFLOW),
            "resync_bytes": rpi_sampler_get(s, RPI_RESYNC_BYTES),
            "reboots": rpi_sampler_get(s, RPI_REBOOTS),
            "saturated": rpi_sampler_get(s, RPI_SATURATED),
            "faults": rpi_sampler_get(s, RPI_FAULTS),
            "repeated": rpi_sampler_get(s, RPI_REPEATED),
            "foreign": rpi_sampler_get(s, RPI_FOREIGN),
            "disconnects": rpi_sampler_get(s, RPI_DISCONNECTS),
            "bytes_in": rpi_sampler_get(s, RPI_BYTES_IN),
            "starved": rpi_sampler_get(s, RPI_STARVED),
        }

    def connected(self):
        """Whether the thread runs and has a descriptor (streamed) or its clock (paced)."""
        return bool(rpi_sampler_connected(&self.sampler))

    def turns(self):
        """How often the thread has gone round: it rises four times a second at least, whether or not something comes."""
        return rpi_sampler_turns(&self.sampler)

    def thread_id(self):
        """The kernel's number of the thread; 0 before it was started."""
        return self.sampler.thread_id

    def boot_id(self):
        """The board's boot id; 0 before the first data frame."""
        return rpi_sampler_boot_id(&self.sampler)

    def forwarded(self):
        """Paced: index of the next scan that will be taken from the feed."""
        return rpi_sampler_forwarded(&self.sampler)

    def description(self):
        """Payload of the newest description frame, None before the first."""
        pthread_mutex_lock(&self.sampler.description_lock)
        payload = (<char *>self.sampler.description)[: self.sampler.description_bytes]
        pthread_mutex_unlock(&self.sampler.description_lock)
        return payload or None

    def lateness_us(self, double q):
        """Quantile q in 0..1 of lateness, to 1.6 %; NaN before the first.

        Streamed: arrival minus predicted time of the newest scan in its frame, so lateness beyond the path's least delay.
        Paced: wake-up minus deadline.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q = {q}: must be 0 to 1")
        return rpi_sampler_quantile(&self.sampler, q) / 1000.0

    def scheduling(self):
        """In words: the scheduling and memory locking that the thread obtained, or why not."""
        if self.state == "new":
            return "not started"
        return f"{self._policy()}, {self._locking()}"

    cdef str _policy(self):
        cdef rlimit limit
        if self.sampler.priority == 0:
            return "SCHED_OTHER as asked"
        if self.sampler.fifo_errno == 0:
            return f"SCHED_FIFO {self.sampler.priority}"
        getrlimit(RLIMIT_RTPRIO, &limit)
        return (
            f"SCHED_OTHER: SCHED_FIFO {self.sampler.priority} was refused ({strerror(self.sampler.fifo_errno).decode()}; "
            f"needs CAP_SYS_NICE or RLIMIT_RTPRIO of that, now {limit.rlim_cur})"
        )

    cdef str _locking(self):
        cdef rlimit limit
        if not self.sampler.lock_memory:
            return "memory not locked as asked"
        if self.sampler.lock_errno == 0:
            return "memory locked" if self.sampler.lock_future else "memory locked, but not what is mapped later (needs CAP_IPC_LOCK or unlimited RLIMIT_MEMLOCK)"
        getrlimit(RLIMIT_MEMLOCK, &limit)
        return (
            f"memory not locked: mlockall was refused ({strerror(self.sampler.lock_errno).decode()}; "
            f"needs CAP_IPC_LOCK or a larger RLIMIT_MEMLOCK, now {limit.rlim_cur // 1024} kB)"
        )
