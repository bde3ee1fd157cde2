"""The chain of hashes: whatever is altered, removed, moved, added or cut off is found and named; what is untouched holds."""

import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.errors import RpiError
from rpi_daemon.history.chain import Chain, ChainLog, Event, Head, read_chain, verify_chain

T0 = 1_799_020_790 * NS_PER_S  # Sunday 2027-01-03 23:59:50 UTC
WEEK_NS = 7 * 86_400 * NS_PER_S
DAYS = 36_500.0
PER_FILE, FILES = 3, 3
RECORDS = PER_FILE * FILES
T = TypeVar("T")
COLUMNS = ("seq", "t_ns", "t_mono_ns", "name", "data", "hash")


def written(folder: Path) -> Head:
    """Three files of four records each."""
    log = ChainLog(folder, kind="audit", keep_days=DAYS)
    for week in range(FILES):
        at_ns = T0 + week * WEEK_NS
        log.append([Event(at_ns + k, k, "asked", {"week": week, "k": k}) for k in range(PER_FILE)])
    log.close()
    return log.head


def checked(folder: Path, *heads: Head) -> Chain:
    return verify_chain(folder, kind="audit", heads=heads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Head]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, written(folder)


@pytest.fixture
def copy(whole: tuple[Path, Head], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "chain"))


def copies(whole: tuple[Path, Head], tmp_path: Path, cases: Iterable[T]) -> Iterator[tuple[Path, T]]:
    """A fresh copy of the chain for each case."""
    for k, case in enumerate(cases):
        yield Path(shutil.copytree(whole[0], tmp_path / f"chain {k}")), case


def file_of(folder: Path, number: int) -> Path:
    return sorted(folder.glob("*.sqlite"))[(number - 1) // PER_FILE]


def changed(folder: Path, number: int, statement: str, *values: object) -> None:
    """A statement in the file that holds this record."""
    connection = sqlite3.connect(file_of(folder, number))
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


def stored(folder: Path, number: int) -> tuple[object, ...]:
    connection = sqlite3.connect(file_of(folder, number))
    row = connection.execute("SELECT t_ns, t_mono_ns, name, data, hash FROM event WHERE seq = ?", (number,)).fetchone()
    connection.close()
    return tuple(row)


def test_every_altered_field_of_every_record_is_named(whole: tuple[Path, Head], tmp_path: Path) -> None:
    other = {"seq": "seq + 100", "name": "name || 'x'", "data": "data || ' '", "hash": "zeroblob(32)"}
    cases = [(number, column) for number in range(1, RECORDS + 1) for column in COLUMNS]
    for folder, (number, column) in copies(whole, tmp_path, cases):
        value = other.get(column, f"{column} + 1")
        changed(folder, number, f"UPDATE event SET {column} = {value} WHERE seq = ?", number)
        broken = checked(folder, whole[1]).broken
        named = {number, number + 1, number + 100}
        assert any(f"number {n}" in sentence for n in named for sentence in broken), (number, column, broken)


def test_a_value_of_another_kind_is_named_too(whole: tuple[Path, Head], tmp_path: Path) -> None:
    for folder, column in copies(whole, tmp_path, ("t_ns", "hash")):
        changed(folder, 5, f"UPDATE event SET {column} = 'x' WHERE seq = ?", 5)
        first, *others = checked(folder, whole[1]).broken
        assert "number 5 (asked) is not what was stored" in first
        assert sum("after number 5 nothing can be checked" in other for other in others) == (column == "hash")


def test_every_removed_record_is_named(whole: tuple[Path, Head], tmp_path: Path) -> None:
    for folder, number in copies(whole, tmp_path, range(1, RECORDS + 1)):
        changed(folder, number, "DELETE FROM event WHERE seq = ?", number)
        (sentence,) = checked(folder, whole[1]).broken
        if number == RECORDS:
            assert (
                sentence == f"the end is missing: number {RECORDS} had been written, the last one here is {RECORDS - 1}"
            )
        elif number % PER_FILE:
            assert f"1 records are missing before number {number + 1}" in sentence
        else:
            assert "1 records are missing before it" in sentence


def test_two_records_that_changed_places_are_named(whole: tuple[Path, Head], tmp_path: Path) -> None:
    change = "UPDATE event SET t_ns = ?, t_mono_ns = ?, name = ?, data = ?, hash = ? WHERE seq = ?"
    pairs = [(a, b) for b in range(1, RECORDS + 1) for a in range(1, b)]
    for folder, (a, b) in copies(whole, tmp_path, pairs):
        rows = stored(folder, a), stored(folder, b)
        changed(folder, a, change, *rows[1], a)
        changed(folder, b, change, *rows[0], b)
        assert f"number {a} (asked) is not what was stored" in checked(folder, whole[1]).broken[0]


def test_an_inserted_record_is_named(whole: tuple[Path, Head], tmp_path: Path) -> None:
    """In the place of a record, those behind it moved on within its file."""
    for folder, number in copies(whole, tmp_path, range(1, RECORDS + 1)):
        connection = sqlite3.connect(file_of(folder, number))
        with connection:
            connection.execute("UPDATE event SET seq = -(seq + 1) WHERE seq >= ?", (number,))
            connection.execute("UPDATE event SET seq = -seq WHERE seq < 0")
            connection.execute(
                "INSERT INTO event SELECT ?, t_ns, t_mono_ns, 'forged', data, hash FROM event LIMIT 1", (number,)
            )
        connection.close()
        assert f"number {number} (forged) is not what was stored" in checked(folder, whole[1]).broken[0]


def test_an_end_that_was_cut_off_is_found_by_the_head_alone(whole: tuple[Path, Head], tmp_path: Path) -> None:
    for folder, kept in copies(whole, tmp_path, range(RECORDS)):
        for path in sorted(folder.glob("*.sqlite"))[-(-kept // PER_FILE) :]:
            path.unlink()
        if kept % PER_FILE:
            connection = sqlite3.connect(file_of(folder, kept))
            with connection:
                connection.execute("DELETE FROM event WHERE seq > ?", (kept,))
            connection.close()
        assert checked(folder).broken == (), "the chain itself cannot tell"
        assert checked(folder, whole[1]).broken == (
            f"the end is missing: number {RECORDS} had been written, the last one here is {kept}",
        )


def test_every_deleted_file_and_swapped_pair_is_named(whole: tuple[Path, Head], tmp_path: Path) -> None:
    names = [path.name for path in sorted(whole[0].glob("*.sqlite"))]
    told = []
    for k, name in enumerate(names):
        folder = Path(shutil.copytree(whole[0], tmp_path / f"without {k}"))
        (folder / name).unlink()
        told.append(checked(folder, whole[1]).broken)
    assert told[0] == (f"{names[1]}: it begins with number 4, and no record says that older files were deleted",)
    assert told[1] == (f"{names[2]}: 3 records are missing before it: a file was deleted or set aside",)
    assert told[2] == ("the end is missing: number 9 had been written, the last one here is 6",)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        folder = Path(shutil.copytree(whole[0], tmp_path / f"swapped {a}{b}"))
        (folder / names[a]).rename(folder / "aside")
        (folder / names[b]).rename(folder / names[a])
        (folder / "aside").rename(folder / names[b])
        assert any(names[a] in sentence or names[b] in sentence for sentence in checked(folder, whole[1]).broken)


def test_a_chain_that_was_rewritten_from_its_middle_on_is_found_by_a_head_kept_elsewhere(tmp_path: Path) -> None:
    head = written(tmp_path / "true")
    log = ChainLog(tmp_path / "forged", kind="audit", keep_days=DAYS)
    for week in range(FILES):
        at_ns = T0 + week * WEEK_NS
        log.append([Event(at_ns + k, k, "asked", {"week": week, "k": k + (week == 1)}) for k in range(PER_FILE)])
    log.close()
    assert checked(tmp_path / "forged").broken == (), "whoever writes it all anew makes a chain that holds"
    own = checked(tmp_path / "forged").head
    assert checked(tmp_path / "forged", head, own).broken == checked(tmp_path / "forged", own, head).broken
    assert checked(tmp_path / "forged", head).broken == (
        "number 9 is not the one whose hash was kept elsewhere: the chain was rewritten",
    )


def test_a_break_stays_when_the_next_process_writes_on(copy: Path, whole: tuple[Path, Head]) -> None:
    """Whoever cuts off the end while nothing runs is not helped by the next start, which keeps a new head."""
    changed(copy, RECORDS, "DELETE FROM event WHERE seq = ?", RECORDS)
    log = ChainLog(copy, kind="audit", keep_days=DAYS, head=whole[1])
    log.append([Event(T0 + 3 * WEEK_NS, 1, "begin", {})])
    log.close()
    assert log.lost == "audit-2027W02.sqlite ends with number 8, but 9 had been written"
    assert "1 records are missing before it" in checked(copy, log.head).broken[0]
    for path in copy.iterdir():
        path.unlink()
    log = ChainLog(copy, kind="audit", keep_days=DAYS, head=whole[1])
    log.append([Event(T0 + 3 * WEEK_NS, 1, "begin", {})])
    log.close()
    (begins,) = checked(copy, log.head).broken
    assert "it begins with number 10, and no record says that older files were deleted" in begins


def test_a_tail_that_was_rewritten_breaks_for_good_when_the_next_process_writes_on(
    copy: Path, whole: tuple[Path, Head]
) -> None:
    changed(copy, RECORDS, "DELETE FROM event WHERE seq = ?", RECORDS)
    forger = ChainLog(copy, kind="audit", keep_days=DAYS)
    forger.append([Event(T0 + 2 * WEEK_NS, 3, "asked", {"forged": True})])
    forger.close()
    assert checked(copy).broken == ()
    log = ChainLog(copy, kind="audit", keep_days=DAYS, head=whole[1])
    log.append([Event(T0 + 2 * WEEK_NS, 4, "begin", {})])
    log.close()
    assert log.lost.endswith("number 9 is not the one that had been written")
    assert "number 10 (begin) is not what was stored" in " ".join(checked(copy, log.head).broken)


def test_two_writers_at_once_make_one_chain(tmp_path: Path) -> None:
    """The daemon's last words and the first ones of what follows it."""
    one, two = (ChainLog(tmp_path, kind="audit", keep_days=DAYS) for _ in range(2))
    for k in range(6):
        (one, two)[k % 2].append([Event(T0, k, "asked", {"k": k})])
    one.close()
    two.close()
    chain = checked(tmp_path, one.head, two.head)
    assert (chain.events, chain.broken, chain.head) == (6, (), two.head)


def batches() -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(st.text(max_size=20), max_size=5), max_size=12)


@given(batches(), st.data())
@settings(max_examples=12)
def test_untouched_chains_of_any_length_and_text_hold(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    at_ns = T0
    count = 0
    heads = [Head()]
    log: ChainLog | None = None
    for batch in texts:
        log = log or ChainLog(
            folder, kind="audit", keep_days=DAYS, head=data.draw(st.sampled_from([Head(), heads[-1]]))
        )
        log.append([Event(at_ns, k, text, {"text": text}) for k, text in enumerate(batch)])
        count += len(batch)
        heads += [log.head] if batch else []
        at_ns += data.draw(st.sampled_from([1, WEEK_NS]))
        if data.draw(st.booleans()):
            log.close()
            log = None
    if log is not None:
        log.close()
    chain = checked(folder, *heads)
    assert (chain.events, chain.broken, chain.head) == (count, (), heads[-1])
    assert [e.name for e in read_chain(folder, 0, 4 * 10**18, kind="audit")] == [t for batch in texts for t in batch]


@pytest.mark.parametrize(
    "text", ["", "12", "12:", ":" + "0" * 64, "12:" + "0" * 63, "12:" + "0" * 66, "x:" + "0" * 64, "-1:" + "0" * 64]
)
def test_a_head_is_number_and_hash(text: str) -> None:
    with pytest.raises(RpiError, match="NUMBER:HASH"):
        Head.parse(text)
    head = Head(12, bytes(range(32)))
    assert Head.parse(f" {head}\n") == head


@pytest.mark.parametrize("taken_away", ["database", "log"])
def test_a_file_that_was_put_in_the_place_of_the_one_in_use_is_noticed_before_the_next_record(
    taken_away: str, tmp_path: Path
) -> None:
    """A backup put back, a log cleaned away: what is written to the one without a name is durable nowhere."""
    log = ChainLog(tmp_path, kind="audit", keep_days=DAYS)
    events = [Event(T0 + k, k, "asked", {"k": "of many outlets " * 5000}) for k in range(60)]
    log.append(events[:3])
    path = file_of(tmp_path, 1)
    if taken_away == "database":
        shutil.copy(path, tmp_path / "copy").rename(path)
    else:
        path.with_name(path.name + "-wal").unlink()
    for event in events[3:]:
        log.append([event])
    left = Path(shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + " after a crash")))
    log.close()
    chain = checked(left, log.head)
    assert (chain.events, chain.head, chain.broken) == (60, log.head, ())
