# Ring of scans over caller-owned memory; see spsc.h for the contract.
import numpy as _np
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

cdef extern from "spsc.h" nogil:
    ctypedef struct rpi_scan:
        uint64_t index
        int64_t t_mono_ns
        uint64_t ticks
        uint32_t status
        uint32_t flags
        int32_t counts[0]
    ctypedef struct rpi_ring_header:
        uint32_t version
        uint32_t n_channels
        uint64_t capacity
        uint32_t rate_hz
    ctypedef struct rpi_ring:
        rpi_ring_header *header
        char *slots
        uint64_t capacity
        uint64_t slot_bytes
        uint32_t n_channels
    uint32_t RPI_RING_VERSION
    uint32_t RPI_RING_HEADER_BYTES
    uint32_t RPI_RING_MAX_CHANNELS
    int RPI_RING_OK
    int RPI_RING_NOT_A_RING
    int RPI_RING_OTHER_VERSION
    int RPI_RING_BAD_SHAPE
    uint64_t rpi_ring_slot_bytes(uint32_t n_channels)
    uint64_t rpi_ring_bytes(uint32_t n_channels, uint64_t capacity)
    int rpi_ring_check(void *memory, uint64_t n_bytes)
    void rpi_ring_attach(rpi_ring *ring, void *memory)
    void rpi_ring_create(rpi_ring *ring, void *memory, uint32_t n_channels, uint64_t capacity, uint32_t rate_hz)
    void rpi_ring_take_over(rpi_ring *ring)
    void rpi_ring_push(rpi_ring *ring, uint64_t index, int64_t t_mono_ns, uint64_t ticks, uint32_t status, uint32_t flags, const int32_t *counts)
    uint64_t rpi_ring_head(const rpi_ring *ring)
    rpi_scan *rpi_ring_slot(const rpi_ring *ring, uint64_t index)
    int rpi_ring_intact(const rpi_ring *ring, uint64_t first)
    int rpi_ring_read(const rpi_ring *ring, uint64_t index, void *out)
    uint64_t rpi_ring_missing(const rpi_ring *ring, uint64_t first, uint64_t n)
    ctypedef struct rpi_reader:
        const rpi_ring *ring
        uint64_t next
        uint64_t lost
    int rpi_reader_take(rpi_reader *reader, void *out)


cdef str _ring_fault(int fault, void *memory, Py_ssize_t n_bytes):
    cdef rpi_ring_header *header = <rpi_ring_header *>memory
    if fault == RPI_RING_NOT_A_RING:
        return "not a ring: the magic number is missing; was the file written by rpi-daemon, and completely?"
    if fault == RPI_RING_OTHER_VERSION:
        return f"ring version {header.version} is not {RPI_RING_VERSION}: read it with the release that wrote it"
    if fault == RPI_RING_BAD_SHAPE:
        return f"ring header is damaged: {header.n_channels} channels, {header.capacity} scans"
    return f"ring is cut short: {n_bytes} bytes do not hold what its header promises"


cdef class Ring:
    """A ring of scans in `memory` (see `_fastpath.memory`): created, continued or attached to.

    With `n_channels` the memory gets a new, empty ring; with `keep` as well, a ring of that very shape that a former
    producer left there is continued: its scans stay readable, and `head` stays where it was. Without `n_channels` the
    ring that is in the memory is attached to, read-only memory included. Raises ValueError on memory that is too small,
    or holds no ring, another version or a damaged header.

    One producer (a `push`ing thread or a Sampler) for each ring; any number of readers anywhere.
    """
    cdef rpi_ring ring
    cdef Py_buffer buffer
    cdef object memory

    def __cinit__(self, memory, *, n_channels=None, capacity=None, rate_hz=1000, bint keep=False):
        cdef int fault
        PyObject_GetBuffer(memory, &self.buffer, PyBUF_SIMPLE if n_channels is None else PyBUF_WRITABLE)
        self.memory = memory
        if <size_t>self.buffer.buf % 8:
            raise ValueError("ring memory must be aligned to 8 bytes; take it from _fastpath.memory")
        if n_channels is None:
            fault = rpi_ring_check(self.buffer.buf, self.buffer.len)
            if fault != RPI_RING_OK:
                raise ValueError(_ring_fault(fault, self.buffer.buf, self.buffer.len))
            rpi_ring_attach(&self.ring, self.buffer.buf)
            return
        needed = Ring.bytes_needed(n_channels, capacity)
        if self.buffer.len < needed:
            raise ValueError(f"a ring of {capacity} scans of {n_channels} channels needs {needed} bytes, not {self.buffer.len}")
        if not 0 < rate_hz < 2**32:
            raise ValueError(f"rate_hz = {rate_hz}: must be 1 or more")
        if keep and rpi_ring_check(self.buffer.buf, self.buffer.len) == RPI_RING_OK:
            rpi_ring_attach(&self.ring, self.buffer.buf)
            if (self.ring.n_channels, self.ring.capacity, self.ring.header.rate_hz) == (n_channels, capacity, rate_hz):
                rpi_ring_take_over(&self.ring)
                return
        rpi_ring_create(&self.ring, self.buffer.buf, n_channels, capacity, rate_hz)

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    @staticmethod
    def bytes_needed(n_channels, capacity):
        """Size of the memory for `capacity` scans of `n_channels`, bytes."""
        if not 0 < n_channels <= RPI_RING_MAX_CHANNELS:
            raise ValueError(f"n_channels = {n_channels}: must be 1 to {RPI_RING_MAX_CHANNELS}")
        if capacity is None or not 0 < capacity < 2**40:
            raise ValueError(f"capacity = {capacity}: must be 1 or more scans")
        return rpi_ring_bytes(n_channels, capacity)

    @property
    def n_channels(self):
        return self.ring.n_channels

    @property
    def capacity(self):
        return self.ring.capacity

    @property
    def rate_hz(self):
        return self.ring.header.rate_hz

    @property
    def head(self):
        """One past the index of the newest complete scan."""
        return rpi_ring_head(&self.ring)

    @property
    def scans(self):
        """All slots in place, read-only, [capacity]: fields index, t_mono_ns, ticks, status, flags, counts[n_channels].

        Scan k is in slot k % capacity if that slot's index says so. Use, then ask `intact(first used)`.
        """
        dtype = _np.dtype({
            "names": ["index", "t_mono_ns", "ticks", "status", "flags", "counts"],
            "formats": ["<u8", "<i8", "<u8", "<u4", "<u4", ("<i4", (self.ring.n_channels,))],
            "offsets": [0, 8, 16, 24, 28, 32],
            "itemsize": self.ring.slot_bytes,
        })
        view = _np.frombuffer(self.memory, dtype, count=self.ring.capacity, offset=RPI_RING_HEADER_BYTES)
        view.flags.writeable = False
        return view

    def spans(self, uint64_t first, uint64_t n):
        """Scans first .. first + n - 1 in place: one view of `scans`, or two where they wrap around the end."""
        if n > self.ring.capacity:
            raise ValueError(f"{n} scans are more than the ring's {self.ring.capacity}")
        scans = self.scans
        start = first % self.ring.capacity
        if start + n <= self.ring.capacity:
            return (scans[start : start + n],)
        return scans[start:], scans[: start + n - self.ring.capacity]

    def intact(self, uint64_t first):
        """After reading in place from scan `first` on: whether none of it was overwritten meanwhile."""
        return bool(rpi_ring_intact(&self.ring, first))

    def missing(self, uint64_t first, uint64_t n):
        """How many of the scans first .. first + n - 1 are lost, overwritten or not yet there."""
        return rpi_ring_missing(&self.ring, first, n)

    def read(self, uint64_t first, uint64_t n):
        """Copy of scans first .. first + n - 1: (scans[n], present[n]). What is not present is all zeros."""
        scans = _np.zeros(n, self.scans.dtype)
        present = _np.zeros(n, _np.bool_)
        cdef uint8_t[::1] out = scans.view(_np.uint8)
        cdef uint8_t[::1] there = present.view(_np.uint8)
        cdef uint64_t i
        with nogil:
            for i in range(n):
                there[i] = rpi_ring_read(&self.ring, first + i, &out[i * self.ring.slot_bytes])
        scans[~present] = 0
        return scans, present

    def push(self, uint64_t index, int64_t t_mono_ns, uint64_t ticks, uint32_t status, const int32_t[::1] counts, *, uint32_t flags=0):
        """Producer only: write scan `index`. Raises ValueError if it is below head or `counts` is not [n_channels]."""
        if self.buffer.readonly:
            raise ValueError("the ring is attached read-only")
        if index >> 63:
            raise ValueError(f"index {index} is beyond what a ring counts to")
        if index < rpi_ring_head(&self.ring):
            raise ValueError(f"index {index} goes back: scans up to {rpi_ring_head(&self.ring) - 1} are written")
        if counts.shape[0] != self.ring.n_channels:
            raise ValueError(f"{counts.shape[0]} counts for {self.ring.n_channels} channels")
        rpi_ring_push(&self.ring, index, t_mono_ns, ticks, status, flags, &counts[0])


cdef class RingReader:
    """One passive reader, scan by scan from `first` on. `next` - first always equals scans taken + `lost`."""
    cdef rpi_reader reader
    cdef Ring ring

    def __cinit__(self, Ring ring not None, uint64_t first=0):
        self.ring = ring
        self.reader.ring = &ring.ring
        self.reader.next = first

    @property
    def next(self):
        """Index of the scan to take next."""
        return self.reader.next

    @property
    def lost(self):
        """Scans passed over: never written, or overwritten before they were taken."""
        return self.reader.lost

    def take(self, uint64_t most):
        """Copies of the next scans that are there, `most` at most: [m] as in `Ring.scans`, empty when caught up."""
        scans = _np.zeros(most, self.ring.scans.dtype)
        cdef uint8_t[::1] out = scans.view(_np.uint8)
        cdef uint64_t taken = 0
        with nogil:
            while taken < most and rpi_reader_take(&self.reader, &out[taken * self.ring.ring.slot_bytes]):
                taken += 1
        return scans[:taken]
