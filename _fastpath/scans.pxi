# Python face of the IIO scan codec; see scans.h.
from libc.string cimport memset

cdef extern from "scans.h" nogil:
    ctypedef struct rpi_scan_element:
        uint16_t channel
        uint16_t offset
        uint8_t bytes
        uint8_t bits
        uint8_t shift
        uint8_t is_signed
        uint8_t big_endian
        int64_t add
        int64_t low
        int64_t high
    ctypedef struct rpi_scan_layout:
        uint32_t bytes
        uint32_t n_elements
        int32_t stamp_offset
        int stamp_big_endian
        rpi_scan_element *elements
    ctypedef struct rpi_scan_pieces:
        uint32_t held
    ctypedef struct rpi_stamp_line:
        double period_ns
    uint32_t RPI_SCAN_MAX_BYTES
    void rpi_scan_counts(const rpi_scan_layout *layout, const uint8_t *record, int32_t *counts)
    int64_t rpi_scan_stamp(const rpi_scan_layout *layout, const uint8_t *record)
    void rpi_stamp_begin(rpi_stamp_line *line, double nominal_ns)
    int rpi_stamp_extend(rpi_stamp_line *line, int64_t stamp_ns, uint64_t *index, uint64_t *lost)

cdef extern from "scans.h":  # holding the GIL: what it calls makes Python objects
    void rpi_scan_feed(
        rpi_scan_pieces *pieces, uint32_t size, const uint8_t *data, size_t n,
        void (*fn)(void *context, const uint8_t *record) noexcept, void *context
    )


@_dataclass(frozen=True)
class ScanElement:
    """Where one channel lies in a record: `bits` above `shift`, in `bytes` from `offset` on; `add` makes its value a count."""

    channel: int
    offset: int
    bytes: int
    bits: int
    shift: int = 0
    signed: bool = True
    big_endian: bool = False
    add: int = 0

    @property
    def lowest(self):
        """Least value that it can hold, before `add`."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def highest(self):
        """Largest value that it can hold, before `add`."""
        return (1 << self.bits - self.signed) - 1


cdef class ScanLayout:
    """Records of `scan_bytes`: elements, and where the timestamp (8 bytes, ns) lies; None: there is none.

    A value at the end of its range is saturated; the least value of an unsigned one only where `add` is negative: else 0
    is a reading. A channel that no element has reads 0. Raises ValueError where something lies outside the record, or a
    value + add outside 32 bits.
    """
    cdef rpi_scan_layout layout
    cdef readonly uint32_t n_channels

    def __cinit__(self, elements, *, n_channels, scan_bytes, timestamp=None, timestamp_big_endian=False):
        if not 0 < n_channels <= RPI_FRAME_MAX_CHANNELS:
            raise ValueError(f"n_channels = {n_channels}: must be 1 to {RPI_FRAME_MAX_CHANNELS}")
        if not 0 < scan_bytes <= RPI_SCAN_MAX_BYTES:
            raise ValueError(f"scan_bytes = {scan_bytes}: must be 1 to {RPI_SCAN_MAX_BYTES}")
        if timestamp is not None and not 0 <= timestamp <= scan_bytes - 8:
            raise ValueError(f"a timestamp at byte {timestamp} is not within {scan_bytes} bytes")
        if len({element.channel for element in elements}) != len(elements):
            raise ValueError("two elements are of one channel")
        for element in elements:
            _check_element(element, n_channels, scan_bytes)
        self.n_channels = n_channels
        self.layout.bytes = scan_bytes
        self.layout.n_elements = len(elements)
        self.layout.stamp_offset = -1 if timestamp is None else timestamp
        self.layout.stamp_big_endian = timestamp_big_endian
        for i, element in enumerate(elements):
            rails_low = element.signed or element.add < 0
            self.layout.elements[i] = rpi_scan_element(
                element.channel, element.offset, element.bytes, element.bits, element.shift, element.signed, element.big_endian,
                element.add, element.lowest if rails_low else -(2**63 - 1), element.highest,
            )

    @property
    def scan_bytes(self):
        return self.layout.bytes


def _check_element(element, n_channels, scan_bytes):
    if not 0 <= element.channel < n_channels:
        raise ValueError(f"channel {element.channel} is not within 0 to {n_channels - 1}")
    if element.bytes not in (1, 2, 4, 8) or not 2 <= element.bits <= 8 * element.bytes - element.shift or element.shift < 0:
        raise ValueError(f"{element.bits} bits above bit {element.shift} are not within 1, 2, 4 or 8 bytes")
    if not 0 <= element.offset <= scan_bytes - element.bytes:
        raise ValueError(f"an element at byte {element.offset} is not within {scan_bytes} bytes")
    if element.lowest + element.add < -(2**31) or element.highest + element.add >= 2**31:
        raise ValueError(f"values of {element.bits} bits with offset {element.add} do not fit 32 bits")


cdef class ScanDecoder:
    """Bytes in any pieces -> whole records; here for tests and tools, the sampler does the same."""
    cdef ScanLayout layout
    cdef rpi_scan_pieces pieces

    def __cinit__(self, ScanLayout layout not None):
        self.layout = layout

    def feed(self, data):
        """Counts [n, n_channels] and timestamps [n] of the records that are complete now; stamps are 0 without a timestamp."""
        cdef const uint8_t[::1] view = memoryview(data).cast("B")
        cdef const uint8_t[::1] record
        cdef int32_t[:, ::1] out
        cdef Py_ssize_t i
        records = []
        context = (self, records)
        if view.shape[0]:
            rpi_scan_feed(&self.pieces, self.layout.layout.bytes, &view[0], view.shape[0], _take_record, <void *>context)
        counts = _np.zeros((len(records), self.layout.n_channels), _np.int32)
        stamps = _np.zeros(len(records), _np.int64)
        out = counts
        for i in range(len(records)):
            record = records[i]
            rpi_scan_counts(&self.layout.layout, &record[0], &out[i, 0])
            stamps[i] = rpi_scan_stamp(&self.layout.layout, &record[0])
        return counts, stamps

    @property
    def held(self):
        """Bytes of the record that is not complete."""
        return self.pieces.held


cdef void _take_record(void *context, const uint8_t *record) noexcept:
    decoder, records = <object>context
    records.append(PyBytes_FromStringAndSize(<const char *>record, (<ScanDecoder>decoder).layout.layout.bytes))


cdef class StampLine:
    """Timestamps -> index, with the gaps that lost scans leave; here for tests and tools."""
    cdef rpi_stamp_line line

    def __cinit__(self, double nominal_ns):
        rpi_stamp_begin(&self.line, nominal_ns)

    def extend(self, int64_t stamp_ns):
        """Place one scan: (TIMELINE_*, its index, scans lost before it); of TIMELINE_REPEAT only the first counts."""
        cdef uint64_t index = 0, lost = 0
        kind = rpi_stamp_extend(&self.line, stamp_ns, &index, &lost)
        return kind, index, lost

    @property
    def period_ns(self):
        return self.line.period_ns
