"""A recording may hold anything: it is read, or refused with file and line, and nothing else."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rpi_daemon.drivers.pdu.snmprec import read_snmprec
from rpi_daemon.errors import TraceError

fields = st.one_of(st.sampled_from(["1.3.6", "1.3.6.1.4", "2", "4", "4x", "5", "6", "64", "65", "67", "70"]), st.text())
lines = st.lists(st.lists(fields, max_size=4).map("|".join), max_size=5).map("\n".join)


@given(st.one_of(st.binary(max_size=200), lines.map(lambda text: text.encode(errors="replace"))))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            found = read_snmprec(Path(file.name), {(1, 3, 6): 1})
        except TraceError:
            return
    assert found
    assert all(isinstance(tag, int) for tag, _ in found.values())


@given(st.binary(min_size=1, max_size=4))
def test_printed_bits_give_the_wire_octets_back(mask: bytes) -> None:
    bits = [str(8 * place + bit) for place, octet in enumerate(mask) for bit in range(8) if octet & (0x80 >> bit)]
    printed = " ".join([*(f"{octet:02X}" for octet in mask), *bits])
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(f"1.3.6.1|4|{printed}\n")
        file.flush()
        assert read_snmprec(file.name, {(1, 3, 6): len(mask)}) == {(1, 3, 6, 1): (4, mask)}
