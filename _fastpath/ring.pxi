# Ring of scans over caller-owned memory; see spsc.h for the contract.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
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
        uint64_t magic
        uint32_t version
        uint32_t n_channels
        uint64_t capacity
        uint64_t slot_bytes
        uint32_t rate_hz
    ctypedef struct rpi_ring:
        rpi_ring_header *header
        char *slots
        uint64_t capacity
        uint64_t slot_bytes
        uint32_t n_channels
    uint64_t RPI_RING_MAGIC
    uint32_t RPI_RING_VERSION
    uint32_t RPI_RING_HEADER_BYTES
    uint64_t rpi_ring_bytes(uint32_t n_channels, uint64_t capacity)
    void rpi_ring_attach(rpi_ring *ring, void *memory)
    void rpi_ring_create(rpi_ring *ring, void *memory, uint32_t n_channels, uint64_t capacity, uint32_t rate_hz)
    rpi_scan *rpi_ring_claim(rpi_ring *ring, uint64_t index)
    void rpi_ring_publish(rpi_ring *ring, uint64_t index)
    uint64_t rpi_ring_head(const rpi_ring *ring)
    rpi_scan *rpi_ring_slot(const rpi_ring *ring, uint64_t index)
    int rpi_ring_intact(const rpi_ring *ring, uint64_t first)


cdef class Ring:
    """A ring of scans in `memory` (memfd or tmpfs mapping), created or attached to."""
    cdef rpi_ring ring
    cdef Py_buffer buffer

    def __cinit__(self, memory, *, n_channels=None, capacity=None, rate_hz=1000):
        PyObject_GetBuffer(memory, &self.buffer, PyBUF_WRITABLE if n_channels is not None else PyBUF_SIMPLE)
        if n_channels is not None:
            if self.buffer.len < <Py_ssize_t>rpi_ring_bytes(n_channels, capacity):
                raise ValueError("memory is too small for the ring")
            rpi_ring_create(&self.ring, self.buffer.buf, n_channels, capacity, rate_hz)
        else:
            if self.buffer.len < <Py_ssize_t>RPI_RING_HEADER_BYTES or (<rpi_ring_header *>self.buffer.buf).magic != RPI_RING_MAGIC:
                raise ValueError("not a ring")
            rpi_ring_attach(&self.ring, self.buffer.buf)

    def __dealloc__(self):
        PyBuffer_Release(&self.buffer)

    @staticmethod
    def bytes_needed(uint32_t n_channels, uint64_t capacity):
        return rpi_ring_bytes(n_channels, capacity)

    @property
    def n_channels(self):
        return self.ring.n_channels

    @property
    def capacity(self):
        return self.ring.capacity

    @property
    def head(self):
        return rpi_ring_head(&self.ring)

    def push(self, uint64_t index, int64_t t_mono_ns, uint64_t ticks, uint32_t status, const int32_t[::1] counts):
        if index < rpi_ring_head(&self.ring):
            raise ValueError("index goes back")
        if counts.shape[0] != self.ring.n_channels:
            raise ValueError("wrong channel count")
        cdef rpi_scan *scan = rpi_ring_claim(&self.ring, index)
        scan.index = index
        scan.t_mono_ns = t_mono_ns
        scan.ticks = ticks
        scan.status = status
        scan.flags = 0
        memcpy(scan.counts, &counts[0], 4 * self.ring.n_channels)
        rpi_ring_publish(&self.ring, index)
