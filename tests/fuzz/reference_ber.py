"""A second SNMP decoder, for comparison only: the generic tree of BER first, then the grammar of RFC 3416 and 3412 on it.

Written from the standards (ITU-T X.690; RFC 2578, 3416, 3412) and sharing no line with the codec. Lenient exactly where the codec
means to be, because agents in the field are: INTEGERs in needlessly long form, unsigned numbers without their leading zero octet,
numbers and OIDs of length zero (read as missing, never as 0), any error status, lengths in long form up to 4 octets.
"""

from dataclasses import dataclass
from typing import Any

CONSTRUCTED = {0x30, 0xA0, 0xA2, 0xA3, 0xA5, 0xA8}
PDUS = CONSTRUCTED - {0x30}
UNSIGNED = {0x41: 4, 0x42: 4, 0x43: 4, 0x46: 8}
EMPTY = {0x05, 0x80, 0x81, 0x82}


class Refused(Exception):
    """Not a message."""


@dataclass
class Node:
    tag: int
    content: bytes
    raw: bytes


def nodes(octets: bytes) -> list[Node]:
    """The elements one behind the other in `octets`."""
    found = []
    while octets:
        if len(octets) < 2 or octets[0] & 0x1F == 0x1F:
            raise Refused
        head, length = 2, octets[1]
        if length & 0x80:
            n = length & 0x7F
            if not 1 <= n <= 4 or len(octets) < 2 + n:
                raise Refused
            head, length = 2 + n, int.from_bytes(octets[2 : 2 + n], "big")
        if len(octets) < head + length:
            raise Refused
        found.append(Node(octets[0], octets[head : head + length], octets[: head + length]))
        octets = octets[head + length :]
    return found


def expect(found: list[Node], *tags: int) -> list[Node]:
    if [node.tag for node in found] != list(tags):
        raise Refused
    return found


def integer(node: Node, low: int = 0, high: int = 2**31 - 1) -> int:
    value = int.from_bytes(node.content, "big", signed=True)
    if node.tag != 0x02 or not 1 <= len(node.content) <= 8 or not low <= value <= high:
        raise Refused
    return value


def oid(content: bytes) -> str:
    arcs: list[int] = []
    arc, begun = 0, False
    for octet in content:
        if octet == 0x80 and not begun:
            raise Refused
        arc, begun = arc << 7 | octet & 0x7F, True
        if octet < 0x80:
            arcs.append(arc)
            arc, begun = 0, False
    if begun or not arcs:
        raise Refused
    first = min(arcs[0] // 40, 2)
    arcs = [first, arcs[0] - 40 * first, *arcs[1:]]
    if len(arcs) > 128 or max(arcs) >= 2**32:
        raise Refused
    return ".".join(map(str, arcs))


def value(node: Node) -> object:
    content = node.content
    if node.tag == 0x02:
        return integer(node, -(2**31)) if content else None
    if node.tag in UNSIGNED:
        if not content:
            return None
        number = int.from_bytes(content, "big")
        if number >= 256 ** UNSIGNED[node.tag]:
            raise Refused
        return number
    if node.tag in (0x04, 0x44) or (node.tag == 0x40 and len(content) == 4):
        return content
    if node.tag == 0x06:
        return oid(content) if content else None
    if node.tag in EMPTY and not content:
        return None
    raise Refused


def pdu(node: Node) -> tuple[int, int, int, int, list[tuple[str, int, object]]]:
    """Tag, request id, status, index, varbinds."""
    if node.tag not in PDUS:
        raise Refused
    request_id, status, index, listing = expect(nodes(node.content), 0x02, 0x02, 0x02, 0x30)
    varbinds = []
    for pair in nodes(listing.content):
        if pair.tag != 0x30 or len(parts := nodes(pair.content)) != 2 or parts[0].tag != 0x06:
            raise Refused
        varbinds.append((oid(parts[0].content), parts[1].tag, value(parts[1])))
    return node.tag, integer(request_id, -(2**31)), integer(status), integer(index), varbinds


def one(octets: bytes) -> Node:
    found = nodes(octets)
    if len(found) != 1:
        raise Refused
    return found[0]


def v2c(octets: bytes) -> tuple[bytes, Any]:
    """(community, pdu)."""
    message = nodes(expect([one(octets)], 0x30)[0].content)
    if len(message) != 3 or message[1].tag != 0x04 or integer(message[0]) != 1:
        raise Refused
    return message[1].content, pdu(message[2])


def scoped(octets: bytes) -> tuple[bytes, bytes, Any]:
    """(context engine, context name, pdu); what stands behind is padding."""
    first = leading(octets)
    parts = nodes(first.content)
    if first.tag != 0x30 or len(parts) != 3 or (parts[0].tag, parts[1].tag) != (0x04, 0x04):
        raise Refused
    return parts[0].content, parts[1].content, pdu(parts[2])


def leading(octets: bytes) -> Node:
    """The first element; octets behind it need not be elements."""
    if len(octets) < 2:
        raise Refused
    head = 2 + (octets[1] & 0x7F if octets[1] & 0x80 else 0)
    length = int.from_bytes(octets[2:head], "big") if head > 2 else octets[1]
    return one(octets[: head + length])


def v3(octets: bytes) -> tuple[object, ...]:
    """(message id, maximum size, flags, engine, boots, time, user, digest, salt, scoped)."""
    version, header, security, body = nodes(expect([one(octets)], 0x30)[0].content)
    if integer(version) != 3 or header.tag != 0x30 or security.tag != 0x04:
        raise Refused
    message_id, size, flags, model = expect(nodes(header.content), 0x02, 0x02, 0x04, 0x02)
    if len(flags.content) != 1 or flags.content[0] & 3 == 2 or integer(model) != 3:
        raise Refused
    usm = expect([one(security.content)], 0x30)[0]
    engine, boots, time_s, user, digest, salt = expect(nodes(usm.content), 0x04, 0x02, 0x02, 0x04, 0x04, 0x04)
    expect([body], 0x04 if flags.content[0] & 2 else 0x30)
    inner = body.content if flags.content[0] & 2 else body.raw
    return (
        integer(message_id), integer(size), flags.content[0], engine.content, integer(boots), integer(time_s), user.content,
        digest.content, salt.content, inner,
    )  # fmt: skip
