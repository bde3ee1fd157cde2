"""What lines, memories and attackers do to a message."""

import random


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """A few changes of the kinds that lines, memories and attackers make."""
    octets = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(6)
        at = rng.randrange(len(octets)) if octets else 0
        if kind <= 1 and octets:
            octets[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and octets:
            octets[at] = rng.choice((0, 1, 0x7F, 0x80, 0x81, 0x84, 0xFF, rng.randrange(256)))
        elif kind == 3:
            del octets[at : at + rng.randrange(1, 4)]
        elif kind == 4:
            octets[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4)))
        elif octets:
            other = rng.randrange(len(octets))
            n = rng.randrange(1, 12)
            octets[at : at + n] = octets[other : other + n]
    return bytes(octets)
