"""Recordings of SNMP agents: every tag, the printed BITS artefact, and damage."""

from pathlib import Path

import pytest

from rpi_daemon.drivers.pdu.snmprec import parse_oid, read_snmprec
from rpi_daemon.errors import TraceError

MASKS = {(1, 3, 6, 9): 1}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "device.snmprec"
    path.write_text(text)
    return path


def test_every_tag_is_read_and_sorted(tmp_path: Path) -> None:
    text = "1.3.6.2|2|-5\n1.3.6.1|4|two words|and a bar\n1.3.6.10|66|633\n1.3.6.3|4x|00fF\n1.3.6.4|5|\n"
    text += "1.3.6.5|6|.1.3.6.1\n1.3.6.6|64|10.0.0.1\n1.3.6.7|67|12\n1.3.6.8|70|18446744073709551615\n1.3.6.11|65|7\n"
    found = read_snmprec(written(tmp_path, text))
    assert list(found) == sorted(found)
    assert found[(1, 3, 6, 1)] == (4, b"two words|and a bar")
    assert found[(1, 3, 6, 2)] == (2, -5)
    assert found[(1, 3, 6, 3)] == (4, b"\x00\xff")
    assert found[(1, 3, 6, 4)] == (5, None)
    assert found[(1, 3, 6, 5)] == (6, (1, 3, 6, 1))
    assert found[(1, 3, 6, 6)] == (64, b"\x0a\x00\x00\x01")
    assert found[(1, 3, 6, 8)] == (70, 2**64 - 1)


def test_printed_bits_become_the_octet_only_in_named_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "1.3.6.9.1|4|30 2 3\n1.3.6.9.2|4|00\n1.3.6.9.3|4|0\n1.3.6.8.1|4|30 2 3\n")
    found = read_snmprec(path, MASKS)
    assert found[(1, 3, 6, 9, 1)] == (4, b"\x30")
    assert found[(1, 3, 6, 9, 2)] == (4, b"\x00")
    assert found[(1, 3, 6, 9, 3)] == (4, b"0")  # one octet already
    assert found[(1, 3, 6, 8, 1)] == (4, b"30 2 3")


@pytest.mark.parametrize(
    "line",
    [
        "1.3.6|2",
        "1.3.x|2|1",
        "1.3.6|2|one",
        "1.3.6|99|1",
        "1.3.-6|2|1",
        "1.3.6|66|-1",
        "1.3.6|4x|0g",
        "1.3.6|64|1.2.3.999",
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(TraceError, match=r"device\.snmprec:2: not an 'oid\|tag\|value' line"):
        read_snmprec(written(tmp_path, f"1.3|2|1\n{line}\n"))


def test_empty_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="empty"):
        read_snmprec(written(tmp_path, "# nothing\n\n"))
    with pytest.raises(TraceError, match="cannot read the recording"):
        read_snmprec(tmp_path / "absent.snmprec")


def test_parse_oid() -> None:
    assert parse_oid(".1.3.6") == parse_oid("1.3.6") == (1, 3, 6)
