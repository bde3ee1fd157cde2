# SNMP codec: BER of GET, GETBULK, SET, Response and Report; v2c messages, v3 USM messages and scoped PDUs. No keys, no sockets, no policy.
#
# The parser follows the fixed grammar of RFC 3416/3412/3414 with a cursor: there is no recursion, so nesting is at most 7 deep whatever
# the bytes say. A message is at most 64 KiB, an OID at most 128 arcs, a length at most 4 octets and always definite. Every length is
# checked against the end of the element around it before it is used.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    _SNMP_MESSAGE_MAX = 65536
    _SNMP_SEND_MAX = 65507
    _SNMP_ARCS_MAX = 128
    _SNMP_OID_OCTETS_MAX = _SNMP_ARCS_MAX * 5
    _SNMP_OID_TEXT_MAX = _SNMP_ARCS_MAX * 11 + 1
    _SNMP_OID_CACHE_MAX = 16384

    _T_INTEGER = 0x02
    _T_OCTETS = 0x04
    _T_NULL = 0x05
    _T_OID = 0x06
    _T_SEQUENCE = 0x30
    _T_IPADDRESS = 0x40
    _T_COUNTER32 = 0x41
    _T_GAUGE32 = 0x42
    _T_TIMETICKS = 0x43
    _T_OPAQUE = 0x44
    _T_COUNTER64 = 0x46
    _T_NO_SUCH_OBJECT = 0x80
    _T_NO_SUCH_INSTANCE = 0x81
    _T_END_OF_MIB = 0x82
    _P_GET = 0xA0
    _P_RESPONSE = 0xA2
    _P_SET = 0xA3
    _P_GET_BULK = 0xA5
    _P_REPORT = 0xA8


class BerError(ValueError):
    """Bytes that are not a well-formed SNMP message, or a value that has no encoding; the text says which and why."""


cdef class Varbind:
    """One name and value. `value` is int, bytes (OCTETS, IPADDRESS, OPAQUE), dotted str (OID), or None: NULL, an exception tag, or a
    number of length zero, which is missing and never 0. Not to be changed once made."""

    cdef readonly str oid
    cdef readonly int tag
    cdef readonly object value

    def __init__(self, str oid not None, int tag, value=None):
        self.oid = oid
        self.tag = tag
        self.value = value

    def __repr__(self):
        return f"Varbind({self.oid!r}, {self.tag:#04x}, {self.value!r})"

    def __eq__(self, other):
        if type(other) is not Varbind:
            return NotImplemented
        cdef Varbind o = <Varbind>other
        return self.oid == o.oid and self.tag == o.tag and type(self.value) is type(o.value) and self.value == o.value

    def __hash__(self):
        return hash((self.oid, self.tag, self.value))


cdef class Pdu:
    """A decoded PDU; the context is empty in v2c. `names_match`: the varbinds are those that the caller named, in that order."""

    cdef readonly int tag
    cdef readonly int64_t request_id
    cdef readonly int64_t status
    cdef readonly int64_t index
    cdef readonly list varbinds
    cdef readonly bint names_match
    cdef readonly bytes context_engine_id
    cdef readonly bytes context_name


cdef class V3Message:
    """The outside of a v3 message. `scoped` is the scoped PDU: plain, or the ciphertext where the privacy flag is set."""

    cdef readonly int64_t msg_id
    cdef readonly int64_t max_size
    cdef readonly int flags
    cdef readonly bytes engine_id
    cdef readonly int64_t boots
    cdef readonly int64_t time_s
    cdef readonly bytes user
    cdef readonly bytes auth_params
    cdef readonly Py_ssize_t auth_offset
    cdef readonly bytes priv_params
    cdef readonly bytes scoped


# --- writing: from the end to the front, so that every length is known when its header is written

ctypedef struct _SnmpOut:
    uint8_t *start
    uint8_t *at


cdef inline int _snmp_room(_SnmpOut *out, Py_ssize_t n) except -1:
    if out.at - out.start < n:
        raise BerError("the message would be larger than 65507 octets, the most that UDP carries; send fewer varbinds")
    return 0


cdef inline int _snmp_put(_SnmpOut *out, const char *octets, Py_ssize_t n) except -1:
    _snmp_room(out, n)
    out.at -= n
    memcpy(out.at, octets, n)
    return 0


cdef int _snmp_put_header(_SnmpOut *out, uint8_t tag, Py_ssize_t n) except -1:
    _snmp_room(out, 6)
    if n < 0x80:
        out.at -= 1
        out.at[0] = <uint8_t>n
    elif n < 0x100:
        out.at -= 2
        out.at[0] = 0x81
        out.at[1] = <uint8_t>n
    else:
        out.at -= 3
        out.at[0] = 0x82
        out.at[1] = <uint8_t>(n >> 8)
        out.at[2] = <uint8_t>n
    out.at -= 1
    out.at[0] = tag
    return 0


cdef inline int _snmp_wrap(_SnmpOut *out, uint8_t tag, const uint8_t *end) except -1:
    """Put the header of what was written since `end`."""
    return _snmp_put_header(out, tag, end - out.at)


cdef int _snmp_put_int(_SnmpOut *out, uint8_t tag, int64_t value) except -1:
    """Shortest two's complement, as BER asks."""
    cdef const uint8_t *end = out.at
    _snmp_room(out, 16)
    while True:
        out.at -= 1
        out.at[0] = <uint8_t>(value & 0xFF)
        value >>= 8
        if (value == 0 and out.at[0] < 0x80) or (value == -1 and out.at[0] >= 0x80):
            break
    return _snmp_wrap(out, tag, end)


cdef int _snmp_put_uint64(_SnmpOut *out, uint8_t tag, uint64_t value) except -1:
    cdef const uint8_t *end = out.at
    _snmp_room(out, 16)
    while True:
        out.at -= 1
        out.at[0] = <uint8_t>(value & 0xFF)
        value >>= 8
        if value == 0:
            break
    if out.at[0] >= 0x80:
        out.at -= 1
        out.at[0] = 0
    return _snmp_wrap(out, tag, end)


cdef inline int _snmp_put_octets(_SnmpOut *out, uint8_t tag, bytes octets) except -1:
    _snmp_put(out, PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
    return _snmp_put_header(out, tag, PyBytes_GET_SIZE(octets))


cdef dict _snmp_oids = {}


cdef bytes _snmp_oid_octets(str oid):
    """Content octets of a dotted OID, remembered: a controller asks for the same names for years."""
    cdef object known = _snmp_oids.get(oid)
    if known is None:
        known = _snmp_encode_oid(oid)
        if len(_snmp_oids) >= _SNMP_OID_CACHE_MAX:
            _snmp_oids.clear()
        _snmp_oids[oid] = known
    return <bytes>known


cdef bytes _snmp_encode_oid(str oid):
    cdef uint8_t octets[_SNMP_OID_OCTETS_MAX + 8]
    cdef Py_ssize_t n = 0
    cdef int arcs = 0, shift
    cdef uint64_t arc = 0, first = 0
    cdef list parts = oid.split(".")
    if len(parts) < 2 or len(parts) > _SNMP_ARCS_MAX:
        raise BerError(f"OID {oid[:60]!r} has {len(parts)} arcs; 2 to {_SNMP_ARCS_MAX} are allowed")
    for part in parts:
        if not (part.isascii() and part.isdigit()) or len(part) > 10 or (part[0] == "0" and len(part) > 1) or int(part) > 0xFFFFFFFF:
            raise BerError(f"OID {oid[:60]!r}: {part[:20]!r} is not a number from 0 to 4294967295 written without leading zeros")
        arc = int(part)
        if arcs == 0:
            if arc > 2:
                raise BerError(f"OID {oid[:60]!r}: the first arc is 0, 1 or 2")
            first = arc
        else:
            if arcs == 1:
                if first < 2 and arc > 39:
                    raise BerError(f"OID {oid[:60]!r}: the second arc is at most 39 here")
                arc += first * 40
            shift = 28 if arc < (<uint64_t>1 << 35) else 35
            while shift > 0 and (arc >> shift) == 0:
                shift -= 7
            while shift >= 0:
                octets[n] = <uint8_t>((arc >> shift) & 0x7F) | (0x80 if shift > 0 else 0)
                n += 1
                shift -= 7
        arcs += 1
    return PyBytes_FromStringAndSize(<char *>octets, n)


cdef int _snmp_put_value(_SnmpOut *out, Varbind v) except -1:
    cdef int tag = v.tag
    cdef int overflow = 0
    cdef int64_t number
    value = v.value
    if tag == _T_INTEGER or tag == _T_COUNTER32 or tag == _T_GAUGE32 or tag == _T_TIMETICKS or tag == _T_COUNTER64:
        if not isinstance(value, int):
            raise BerError(f"{v.oid}: a number is needed for tag {tag:#04x}, not {type(value).__name__}")
        if tag == _T_COUNTER64:
            if not 0 <= value <= 0xFFFFFFFFFFFFFFFF:
                raise BerError(f"{v.oid}: {value} is out of the range of Counter64")
            return _snmp_put_uint64(out, tag, value)
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow or number > (0x7FFFFFFF if tag == _T_INTEGER else 0xFFFFFFFF) or number < (-0x80000000LL if tag == _T_INTEGER else 0):
            raise BerError(f"{v.oid}: {value} does not fit 32 bits of tag {tag:#04x}")
        return _snmp_put_int(out, tag, number)
    if tag == _T_OCTETS or tag == _T_OPAQUE or tag == _T_IPADDRESS:
        if not isinstance(value, bytes) or (tag == _T_IPADDRESS and len(value) != 4):
            raise BerError(f"{v.oid}: tag {tag:#04x} needs bytes{' of length 4' if tag == _T_IPADDRESS else ''}")
        return _snmp_put_octets(out, tag, <bytes>value)
    if tag == _T_OID:
        if not isinstance(value, str):
            raise BerError(f"{v.oid}: an OID value is a dotted str, not {type(value).__name__}")
        return _snmp_put_octets(out, tag, _snmp_oid_octets(value))
    if tag == _T_NULL or tag == _T_NO_SUCH_OBJECT or tag == _T_NO_SUCH_INSTANCE or tag == _T_END_OF_MIB:
        if value is not None:
            raise BerError(f"{v.oid}: tag {tag:#04x} carries no value")
        return _snmp_put_header(out, tag, 0)
    raise BerError(f"{v.oid}: tag {tag:#04x} is not an SNMP type")


cdef int _snmp_put_pdu(_SnmpOut *out, int pdu_tag, int64_t request_id, varbinds, int64_t status, int64_t index) except -1:
    cdef const uint8_t *end = out.at
    cdef const uint8_t *one
    if pdu_tag != _P_GET and pdu_tag != _P_SET and pdu_tag != _P_GET_BULK and pdu_tag != _P_RESPONSE and pdu_tag != _P_REPORT:
        raise BerError(f"PDU tag {pdu_tag:#04x} is not GET, GETBULK, SET, Response or Report")
    for item in reversed(varbinds):
        one = out.at
        if isinstance(item, str):  # a bare name, as in a GET
            _snmp_put_header(out, _T_NULL, 0)
            _snmp_put_octets(out, _T_OID, _snmp_oid_octets(<str>item))
        else:
            _snmp_put_value(out, <Varbind?>item)
            _snmp_put_octets(out, _T_OID, _snmp_oid_octets((<Varbind>item).oid))
        _snmp_wrap(out, _T_SEQUENCE, one)
    _snmp_wrap(out, _T_SEQUENCE, end)
    _snmp_put_int(out, _T_INTEGER, index)
    _snmp_put_int(out, _T_INTEGER, status)
    _snmp_put_int(out, _T_INTEGER, request_id)
    return _snmp_wrap(out, pdu_tag, end)


def encode_oid(str oid not None):
    """Content octets of a dotted OID such as '1.3.6.1'; raises BerError."""
    return _snmp_encode_oid(oid)


def encode_v2c(bytes community not None, int pdu_tag, int64_t request_id, varbinds not None, int64_t status=0, int64_t index=0):
    """A whole v2c message. `varbinds`: Varbind, or a bare dotted name for one without a value. In a GETBULK `status` is the
    number of non-repeaters and `index` that of repetitions (RFC 3416 section 3). Raises BerError."""
    cdef uint8_t buffer[_SNMP_SEND_MAX]
    cdef uint8_t *end = buffer + _SNMP_SEND_MAX
    cdef _SnmpOut out
    out.start = buffer
    out.at = end
    _snmp_put_pdu(&out, pdu_tag, request_id, varbinds, status, index)
    _snmp_put_octets(&out, _T_OCTETS, community)
    _snmp_put_int(&out, _T_INTEGER, 1)
    _snmp_wrap(&out, _T_SEQUENCE, end)
    return PyBytes_FromStringAndSize(<char *>out.at, end - out.at)


def encode_scoped(
    bytes engine_id not None, bytes context not None, int pdu_tag, int64_t request_id, varbinds not None, int64_t status=0, int64_t index=0
):
    """A scoped PDU (RFC 3412 section 6.8), plain; `engine_id` and `context` name the context. Raises BerError."""
    cdef uint8_t buffer[_SNMP_SEND_MAX]
    cdef uint8_t *end = buffer + _SNMP_SEND_MAX
    cdef _SnmpOut out
    out.start = buffer
    out.at = end
    _snmp_put_pdu(&out, pdu_tag, request_id, varbinds, status, index)
    _snmp_put_octets(&out, _T_OCTETS, context)
    _snmp_put_octets(&out, _T_OCTETS, engine_id)
    _snmp_wrap(&out, _T_SEQUENCE, end)
    return PyBytes_FromStringAndSize(<char *>out.at, end - out.at)


def encode_v3(
    int64_t msg_id, int flags, bytes engine_id not None, int64_t boots, int64_t time_s, bytes user not None, int auth_octets,
    bytes priv_params not None, bytes scoped not None, int64_t max_size=65507,
):
    """A v3 USM message around `scoped` (ciphertext where flags & 2). Returns (bytearray, offset of the digest): the digest is
    `auth_octets` zeros, as it must be while it is computed (RFC 3414 section 6.3.1). Raises BerError."""
    cdef uint8_t buffer[_SNMP_SEND_MAX]
    cdef uint8_t *end = buffer + _SNMP_SEND_MAX
    cdef _SnmpOut out
    cdef const uint8_t *mark
    cdef const uint8_t *digest
    cdef uint8_t flag_octet = <uint8_t>flags
    out.start = buffer
    out.at = end
    if auth_octets < 0 or auth_octets > 64:
        raise BerError(f"a digest of {auth_octets} octets is not one of USM")
    _snmp_put(&out, PyBytes_AS_STRING(scoped), PyBytes_GET_SIZE(scoped))
    if flags & 2:
        _snmp_wrap(&out, _T_OCTETS, end)
    mark = out.at
    _snmp_put_octets(&out, _T_OCTETS, priv_params)
    _snmp_room(&out, auth_octets)
    out.at -= auth_octets
    memset(out.at, 0, auth_octets)
    digest = out.at
    _snmp_put_header(&out, _T_OCTETS, auth_octets)
    _snmp_put_octets(&out, _T_OCTETS, user)
    _snmp_put_int(&out, _T_INTEGER, time_s)
    _snmp_put_int(&out, _T_INTEGER, boots)
    _snmp_put_octets(&out, _T_OCTETS, engine_id)
    _snmp_wrap(&out, _T_SEQUENCE, mark)
    _snmp_wrap(&out, _T_OCTETS, mark)
    mark = out.at
    _snmp_put_int(&out, _T_INTEGER, 3)
    _snmp_put(&out, <const char *>&flag_octet, 1)
    _snmp_put_header(&out, _T_OCTETS, 1)
    _snmp_put_int(&out, _T_INTEGER, max_size)
    _snmp_put_int(&out, _T_INTEGER, msg_id)
    _snmp_wrap(&out, _T_SEQUENCE, mark)
    _snmp_put_int(&out, _T_INTEGER, 3)
    _snmp_wrap(&out, _T_SEQUENCE, end)
    return bytearray(PyBytes_FromStringAndSize(<char *>out.at, end - out.at)), digest - out.at


# --- reading: a cursor that never passes the end of the element around it

ctypedef struct _SnmpIn:
    const uint8_t *at
    const uint8_t *end


cdef int _snmp_enter(_SnmpIn *outer, uint8_t *tag, _SnmpIn *inner) except -1:
    """Take the next element off `outer`; `inner` spans its contents."""
    cdef Py_ssize_t left = outer.end - outer.at
    cdef Py_ssize_t n
    cdef int octets, i
    if left < 2:
        raise BerError("the message ends inside an element")
    tag[0] = outer.at[0]
    if (tag[0] & 0x1F) == 0x1F:
        raise BerError(f"tag {tag[0]:#04x} starts a long tag, which SNMP does not have")
    n = outer.at[1]
    inner.at = outer.at + 2
    left -= 2
    if n >= 0x80:
        octets = n & 0x7F
        if octets == 0 or octets > 4:
            raise BerError("a length is indefinite or has more than 4 octets")
        if octets > left:
            raise BerError("the message ends inside a length")
        n = 0
        for i in range(octets):
            n = (n << 8) | inner.at[i]
        inner.at += octets
        left -= octets
    if n > left:
        raise BerError("an element is longer than what is around it")
    inner.end = inner.at + n
    outer.at = inner.end
    return 0


cdef inline int _snmp_enter_as(_SnmpIn *outer, uint8_t wanted, _SnmpIn *inner, str what) except -1:
    cdef uint8_t tag
    _snmp_enter(outer, &tag, inner)
    if tag != wanted:
        raise BerError(f"{what}: tag {tag:#04x} where {wanted:#04x} belongs")
    return 0


cdef inline int _snmp_done(_SnmpIn *cursor, str what) except -1:
    if cursor.at != cursor.end:
        raise BerError(f"{what}: {cursor.end - cursor.at} octets too many")
    return 0


cdef int64_t _snmp_signed(_SnmpIn *field, str what) except? -1:
    """Contents of an INTEGER in 32 bits; needlessly long forms are taken, as agents send them."""
    cdef Py_ssize_t n = field.end - field.at
    cdef int64_t value
    if n == 0 or n > 8:
        raise BerError(f"{what}: an INTEGER of {n} octets")
    value = -1 if field.at[0] & 0x80 else 0
    while field.at < field.end:
        value = <int64_t>(<uint64_t>value << 8) | field.at[0]
        field.at += 1
    if value > 0x7FFFFFFF or value < -0x80000000LL:
        raise BerError(f"{what}: an INTEGER of more than 32 bits")
    return value


cdef int64_t _snmp_take_int(_SnmpIn *outer, str what, int64_t lowest) except? -1:
    cdef _SnmpIn field
    cdef int64_t value
    _snmp_enter_as(outer, _T_INTEGER, &field, what)
    value = _snmp_signed(&field, what)
    if value < lowest:
        raise BerError(f"{what}: {value} is below {lowest}")
    return value


cdef inline bytes _snmp_take_octets(_SnmpIn *outer, str what):
    cdef _SnmpIn field
    _snmp_enter_as(outer, _T_OCTETS, &field, what)
    return PyBytes_FromStringAndSize(<const char *>field.at, field.end - field.at)


cdef object _snmp_unsigned(_SnmpIn *field, uint8_t tag):
    """Counter32, Gauge32, TimeTicks, Counter64. Some agents leave out the leading zero octet, so a set top bit is not a sign."""
    cdef Py_ssize_t n = field.end - field.at
    cdef Py_ssize_t widest = 8 if tag == _T_COUNTER64 else 4
    cdef uint64_t value = 0
    while n > widest and field.at[0] == 0:
        field.at += 1
        n -= 1
    if n > widest:
        raise BerError(f"tag {tag:#04x}: a number of more than {widest * 8} bits")
    while field.at < field.end:
        value = (value << 8) | field.at[0]
        field.at += 1
    return value


cdef int _snmp_arc_text(char *text, uint64_t arc) noexcept:
    cdef char digits[24]
    cdef int n = 0, i
    while True:
        digits[n] = <char>(48 + arc % 10)
        n += 1
        arc //= 10
        if arc == 0:
            break
    for i in range(n):
        text[i] = digits[n - 1 - i]
    return n


cdef str _snmp_oid_text(_SnmpIn *field):
    cdef char text[_SNMP_OID_TEXT_MAX + 24]
    cdef int length = 0, arcs = 1
    cdef uint64_t arc, first
    cdef uint8_t octet
    if field.at == field.end:
        raise BerError("an OID without arcs")
    while field.at < field.end:
        if field.at[0] == 0x80:
            raise BerError("an OID arc with a leading zero group")
        arc = 0
        while True:
            if field.at == field.end:
                raise BerError("an OID ends inside an arc")
            octet = field.at[0]
            field.at += 1
            arc = (arc << 7) | (octet & 0x7F)
            if arc > 0xFFFFFFFF + <uint64_t>80:
                raise BerError("an OID arc above 4294967295")
            if octet < 0x80:
                break
        if arcs == 1:
            first = 2 if arc >= 80 else arc // 40
            length += _snmp_arc_text(text + length, first)
            arc -= first * 40
        if arc > 0xFFFFFFFF:
            raise BerError("an OID arc above 4294967295")
        arcs += 1
        if arcs > _SNMP_ARCS_MAX:
            raise BerError(f"an OID of more than {_SNMP_ARCS_MAX} arcs")
        text[length] = 46
        length += 1
        length += _snmp_arc_text(text + length, arc)
    return PyUnicode_DecodeASCII(text, length, NULL)


cdef object _snmp_value(_SnmpIn *field, uint8_t tag):
    cdef Py_ssize_t n = field.end - field.at
    if tag == _T_INTEGER:
        return None if n == 0 else _snmp_signed(field, "value")
    if tag == _T_GAUGE32 or tag == _T_COUNTER32 or tag == _T_TIMETICKS or tag == _T_COUNTER64:
        return None if n == 0 else _snmp_unsigned(field, tag)
    if tag == _T_OCTETS or tag == _T_OPAQUE:
        return PyBytes_FromStringAndSize(<const char *>field.at, n)
    if tag == _T_OID:
        return None if n == 0 else _snmp_oid_text(field)
    if tag == _T_IPADDRESS:
        if n != 4:
            raise BerError(f"an IpAddress of {n} octets")
        return PyBytes_FromStringAndSize(<const char *>field.at, n)
    if tag == _T_NULL or tag == _T_NO_SUCH_OBJECT or tag == _T_NO_SUCH_INSTANCE or tag == _T_END_OF_MIB:
        if n != 0:
            raise BerError(f"tag {tag:#04x} carries {n} octets")
        return None
    raise BerError(f"tag {tag:#04x} is not an SNMP type")


cdef Pdu _snmp_take_pdu(_SnmpIn *outer, names):
    cdef _SnmpIn body, listing, pair, field
    cdef uint8_t tag
    cdef Pdu pdu = Pdu.__new__(Pdu)
    cdef Varbind v
    cdef list varbinds = []
    cdef bytes octets
    cdef str name
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t n_names = 0 if names is None else len(names)
    _snmp_enter(outer, &tag, &body)
    if tag != _P_GET and tag != _P_SET and tag != _P_GET_BULK and tag != _P_RESPONSE and tag != _P_REPORT:
        raise BerError(f"PDU tag {tag:#04x} is not GET, GETBULK, SET, Response or Report")
    pdu.tag = tag
    pdu.request_id = _snmp_take_int(&body, "request id", -0x80000000LL)
    pdu.status = _snmp_take_int(&body, "error status", 0)
    pdu.index = _snmp_take_int(&body, "error index", 0)
    pdu.names_match = names is not None
    _snmp_enter_as(&body, _T_SEQUENCE, &listing, "varbinds")
    _snmp_done(&body, "PDU")
    while listing.at < listing.end:
        _snmp_enter_as(&listing, _T_SEQUENCE, &pair, "varbind")
        _snmp_enter_as(&pair, _T_OID, &field, "varbind name")
        v = Varbind.__new__(Varbind)
        name = None
        if i < n_names:
            item = names[i]
            name = <str>item if isinstance(item, str) else (<Varbind?>item).oid
            octets = _snmp_oid_octets(name)
            # encodings of an OID are unique here (shortest groups only), so equal octets are equal names
            if PyBytes_GET_SIZE(octets) != field.end - field.at or memcmp(PyBytes_AS_STRING(octets), field.at, field.end - field.at) != 0:
                name = None
        if name is None:
            pdu.names_match = False
            name = _snmp_oid_text(&field)
        v.oid = name
        _snmp_enter(&pair, &tag, &field)
        v.tag = tag
        v.value = _snmp_value(&field, tag)
        _snmp_done(&pair, "varbind")
        varbinds.append(v)
        i += 1
    if i != n_names:
        pdu.names_match = False
    pdu.varbinds = varbinds
    pdu.context_engine_id = b""
    pdu.context_name = b""
    return pdu


cdef int _snmp_open(bytes data, _SnmpIn *cursor) except -1:
    if PyBytes_GET_SIZE(data) > _SNMP_MESSAGE_MAX:
        raise BerError(f"a message of {len(data)} octets; {_SNMP_MESSAGE_MAX} at most")
    cursor.at = <const uint8_t *>PyBytes_AS_STRING(data)
    cursor.end = cursor.at + PyBytes_GET_SIZE(data)
    return 0


def decode_oid(bytes octets not None):
    """Dotted text of the content octets of an OID; raises BerError."""
    cdef _SnmpIn cursor
    _snmp_open(octets, &cursor)
    return _snmp_oid_text(&cursor)


def decode_v2c(bytes data not None, names=None):
    """(community, Pdu) of a v2c message; `names` are the varbinds or dotted names that should be in it. Raises BerError."""
    cdef _SnmpIn whole, message
    cdef bytes community
    cdef Pdu pdu
    _snmp_open(data, &whole)
    _snmp_enter_as(&whole, _T_SEQUENCE, &message, "message")
    _snmp_done(&whole, "message")
    if _snmp_take_int(&message, "version", 0) != 1:
        raise BerError("the version is not v2c")
    community = _snmp_take_octets(&message, "community")
    pdu = _snmp_take_pdu(&message, names)
    _snmp_done(&message, "message")
    return community, pdu


def decode_v3(bytes data not None):
    """The V3Message around a scoped PDU, nothing verified yet; raises BerError."""
    cdef _SnmpIn whole, message, header, field, security
    cdef V3Message m = V3Message.__new__(V3Message)
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
    _snmp_open(data, &whole)
    _snmp_enter_as(&whole, _T_SEQUENCE, &message, "message")
    _snmp_done(&whole, "message")
    if _snmp_take_int(&message, "version", 0) != 3:
        raise BerError("the version is not v3")
    _snmp_enter_as(&message, _T_SEQUENCE, &header, "header")
    m.msg_id = _snmp_take_int(&header, "message id", 0)
    m.max_size = _snmp_take_int(&header, "maximum size", 0)
    _snmp_enter_as(&header, _T_OCTETS, &field, "flags")
    if field.end - field.at != 1:
        raise BerError("flags are one octet")
    m.flags = field.at[0]
    if (m.flags & 3) == 2:
        raise BerError("privacy without authentication")
    if _snmp_take_int(&header, "security model", 0) != 3:
        raise BerError("the security model is not USM")
    _snmp_done(&header, "header")
    _snmp_enter_as(&message, _T_OCTETS, &field, "security parameters")
    _snmp_enter_as(&field, _T_SEQUENCE, &security, "security parameters")
    _snmp_done(&field, "security parameters")
    m.engine_id = _snmp_take_octets(&security, "engine id")
    m.boots = _snmp_take_int(&security, "engine boots", 0)
    m.time_s = _snmp_take_int(&security, "engine time", 0)
    m.user = _snmp_take_octets(&security, "user")
    _snmp_enter_as(&security, _T_OCTETS, &field, "digest")
    m.auth_offset = field.at - start
    m.auth_params = PyBytes_FromStringAndSize(<const char *>field.at, field.end - field.at)
    m.priv_params = _snmp_take_octets(&security, "privacy parameters")
    _snmp_done(&security, "security parameters")
    if m.flags & 2:
        m.scoped = _snmp_take_octets(&message, "encrypted PDU")
    else:
        field.at = message.at
        _snmp_enter_as(&message, _T_SEQUENCE, &header, "scoped PDU")
        m.scoped = PyBytes_FromStringAndSize(<const char *>field.at, message.at - field.at)
    _snmp_done(&message, "message")
    return m


def decode_scoped(bytes data not None, names=None):
    """The Pdu in a plain scoped PDU; octets after it are padding and ignored (RFC 3414 section 8.3.2). Raises BerError."""
    cdef _SnmpIn whole, scoped
    cdef bytes engine_id, context
    cdef Pdu pdu
    _snmp_open(data, &whole)
    _snmp_enter_as(&whole, _T_SEQUENCE, &scoped, "scoped PDU")
    engine_id = _snmp_take_octets(&scoped, "context engine id")
    context = _snmp_take_octets(&scoped, "context name")
    pdu = _snmp_take_pdu(&scoped, names)
    _snmp_done(&scoped, "scoped PDU")
    pdu.context_engine_id = engine_id
    pdu.context_name = context
    return pdu


def xor_octets(bytes octets not None, bytes mask not None):
    """`octets` xor the beginning of `mask`, which is at least as long; raises ValueError if it is not."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(octets)
    cdef Py_ssize_t i
    cdef bytes result
    cdef uint8_t *to
    cdef const uint8_t *a = <const uint8_t *>PyBytes_AS_STRING(octets)
    cdef const uint8_t *b = <const uint8_t *>PyBytes_AS_STRING(mask)
    if PyBytes_GET_SIZE(mask) < n:
        raise ValueError(f"a mask of {len(mask)} octets for {n}")
    result = PyBytes_FromStringAndSize(NULL, n)
    to = <uint8_t *>PyBytes_AS_STRING(result)
    for i in range(n):
        to[i] = a[i] ^ b[i]
    return result
