"""The report on histories whose figures are known by hand: energy, room, risk, gaps; and the page that shows them."""

import json
import re
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from history_rig import CONFIG, T0, Alone

from rpi_daemon.cli import main
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.history.events import Event, EventLog
from rpi_daemon.history.historian import MINUTE_NS
from rpi_daemon.history.weeks import Layout, Mark, StoredLimit, path_of
from rpi_daemon.records import TICK_NS
from rpi_daemon.report.charts import bars, spark, timeline, watts
from rpi_daemon.report.page import page_of
from rpi_daemon.report.tally import BUCKETS, Curve, Highest, LimitsInTime, Needs, Outlets
from rpi_daemon.report.words import headline, mode, same_risk

SPAN = ("--from", "2025-11-21T04:40:00Z", "--to", "2025-11-21T04:50:00Z")  # T0 is 04:40:00
LAYOUT = Layout("rack", ("a/1", "a/2"))
Draw = Callable[[int], list[float]]
NAN = float("nan")


@dataclass
class Rack:
    """A rack of two outlets with static limits of 300 W, and a history that tests fill."""

    folder: Path
    historian: Alone = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "rack.toml").write_text('[daemon]\nstate_dir = "state"\n' + CONFIG)
        self.historian = Alone(self.history, LAYOUT, keep_days=36_500.0)
        self.historian.start()

    @property
    def history(self) -> Path:
        return self.folder / "state/history"

    def fill(self, ticks: range, draw_w: Draw, request_w: Draw, *, marks: int = 0, shift_ns: int = 0) -> None:
        for k in ticks:
            request = {"request_w": np.array(request_w(k))}
            self.historian.tick(T0 + k * TICK_NS + shift_ns, k * TICK_NS, np.array(draw_w(k)), request, marks=marks)

    def events(self, *events: Event) -> None:
        log = EventLog(self.history, keep_days=36_500.0)
        log.append(events)
        log.close()

    def run(self, *words: str) -> Result:
        self.historian.close()
        return CliRunner().invoke(main, ["report", *words, *SPAN, "-c", str(self.folder / "rack.toml")])

    def report(self, *words: str) -> dict[str, Any]:
        result = self.run("--json", *words)
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return document


@pytest.fixture
def rack(tmp_path: Path) -> Any:
    rack = Rack(tmp_path)
    yield rack
    rack.historian.close()


def bump(k: int) -> list[float]:
    """a/1 draws 100 W, for 3 s from second 30 on 250 W; a/2 has no reading."""
    return [250.0 if 300 <= k < 330 else 100.0, NAN]


def constant(*watts: float) -> Draw:
    return lambda _: list(watts)


def scores(rack: Rack, escaped: float, episodes: float = 1.0) -> None:
    """One minute in which so many of 1000 requests of a/1 were passed."""
    figures = {
        "judged": np.array([1000.0, 0.0]), "escaped": np.array([escaped, 0.0]), "episodes": np.array([episodes, 0.0]),
        "error_w": np.array([4.0, NAN]), "persistence_error_w": np.array([5.0, NAN]),
        "weight:lstm": np.array([0.75, NAN]), "weight:ewma": np.array([0.25, NAN]), "request_weight:ewma": np.array([1.0, NAN]),
    }  # fmt: skip
    rack.historian.scores(T0, 0, figures)


def test_energy_peak_and_mean_by_hand(rack: Rack) -> None:
    rack.fill(range(1200), bump, constant(150.0, NAN))
    document = rack.report()
    one, two = document["outlets"]
    assert one["energy_kwh"] == pytest.approx((117.0 * 100.0 + 3.0 * 250.0) / 3.6e6)
    assert one["mean_w"] == pytest.approx((117.0 * 100.0 + 3.0 * 250.0) / 120.0)
    assert (one["peak_w"], one["peak_utc_ns"]) == (250.0, T0 + 30 * NS_PER_S)
    assert one["known_share"] == 1.0
    assert two["energy_kwh"] is two["mean_w"] is two["peak_w"] is two["peak_utc_ns"] is None
    assert two["known_share"] == 0.0
    assert document["together"]["energy_kwh"] == pytest.approx(one["energy_kwh"])
    assert (document["together"]["peak_w"], document["together"]["outlets_read_at_peak"]) == (250.0, 1)
    assert "no reading of a/2: not known, not 0" in document["notes"]


def test_stranded_watts_by_hand(rack: Rack) -> None:
    """115 of 120 seconds can be judged: the last five lack what came after them."""
    rack.fill(range(1200), bump, constant(150.0, NAN))
    document = rack.report()
    one, two = document["outlets"]
    draw_w = (112.0 * 100.0 + 3.0 * 250.0) / 115.0
    assert one["draw_w"] == pytest.approx(draw_w)
    assert (one["static_w"], one["reserve_w"], one["freed_w"]) == (300.0, 150.0, 150.0)
    assert one["stranded_static_w"] == pytest.approx(300.0 - draw_w)
    assert one["stranded_daemon_w"] == pytest.approx(150.0 - draw_w)
    assert two["reserve_w"] is two["freed_w"] is two["stranded_static_w"] is None
    rack_w = document["together"]  # a/2 is not known: it counts with its static limit on both sides
    assert (rack_w["static_w"], rack_w["reserve_w"], rack_w["freed_w"]) == (600.0, 450.0, 150.0)
    assert rack_w["stranded_static_w"] == pytest.approx(600.0 - draw_w)
    assert rack_w["judged_share"] == pytest.approx(115.0 / 120.0)


@pytest.mark.parametrize(("escaped", "needed_w"), [(0.0, 250.0), (60.0, 250.0), (61.0, 100.0), (1000.0, 0.0)])
def test_the_static_limit_of_the_same_risk_by_hand(rack: Rack, escaped: float, needed_w: float) -> None:
    """The highest draw of the 5 s after it is 250 W in 7 of 115 seconds, 25 to 31: 6.09 %."""
    rack.fill(range(1200), bump, constant(150.0, NAN))
    scores(rack, escaped)
    one = rack.report()["outlets"][0]
    assert one["request_escape_share"] == escaped / 1000.0
    assert one["static_same_risk_w"] == needed_w


def test_request_escapes_skill_and_weights_are_those_of_the_daemon(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    scores(rack, 12.0, episodes=2.0)
    document = rack.report()
    one, two = document["outlets"]
    assert (one["requests_judged"], one["requests_escaped"], one["request_episodes"]) == (1000, 12, 2)
    assert (one["mae_w"], one["persistence_mae_w"], one["mae_vs_persistence"]) == (4.0, 5.0, pytest.approx(0.8))
    assert one["weights"] == {"lstm": pytest.approx(0.75), "ewma": pytest.approx(0.25)}
    assert one["request_weights"] == {"ewma": 1.0}
    assert two["request_escape_share"] is two["mae_w"] is two["request_episodes"] is None
    assert two["weights"] == {}
    assert document["together"]["request_escape_share"] == 0.012
    assert document["together"]["weights"] == {"lstm": pytest.approx(0.75), "ewma": pytest.approx(0.25)}


def test_an_older_history_without_scores_is_not_known_not_zero(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    document = rack.report()
    assert document["together"]["request_escape_share"] is None
    assert document["together"]["static_same_risk_w"] is None
    assert "not known" in document["headline"]
    assert any("none of the minutes' scores" in note for note in document["notes"])


def test_limits_that_were_passed_and_written_by_hand(rack: Rack) -> None:
    """200 W until 1 s after the rise to 250 W, then 300 W; a/2's limit is somebody else's, and never passed."""
    rack.historian.limit(StoredLimit(T0 - 1, 0, "a/1", "alarm", 200.0, "read", ""))
    rack.historian.limit(StoredLimit(T0, 0, "a/2", "alarm", 500.0, "foreign_change", ""))
    rack.historian.limit(StoredLimit(T0 + 31 * NS_PER_S, 31 * NS_PER_S, "a/1", "alarm", 300.0, "raise", "granted"))
    rack.fill(range(600), lambda k: [bump(k)[0], 100.0], constant(150.0, 150.0))
    document = rack.report()
    one, two = document["outlets"]
    assert (one["limit_escape_episodes"], one["limit_escape_s"], one["limit_passed_by_w"]) == (
        1,
        pytest.approx(1.0),
        50.0,
    )
    assert one["limit_w"] == pytest.approx((31.0 * 200.0 + 29.0 * 300.0) / 60.0)
    assert (one["writes"], one["foreign_changes"], one["limit_kind"]) == (1, 0, "alarm")
    assert (two["limit_escape_episodes"], two["writes"], two["foreign_changes"]) == (0, 0, 1)
    assert (document["together"]["writes"], document["together"]["limit_escape_episodes"]) == (1, 1)


def test_an_outlet_whose_limit_nobody_knows_has_no_escapes_not_zero(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    assert {row["limit_escape_episodes"] for row in rack.report()["outlets"]} == {None}


def test_under_static_safe_the_static_limit_is_what_is_reserved(rack: Rack) -> None:
    rack.fill(range(1200), constant(100.0, 100.0), constant(150.0, 150.0), marks=Mark.CLOSED_LOOP | Mark.STATIC_SAFE)
    document = rack.report()
    assert document["outlets"][0]["reserve_w"] == 300.0
    assert document["together"]["freed_w"] == 0.0
    assert document["closed_loop_share"] == 1.0
    assert document["states"] == {"NORMAL": 0.0, "HOLD": 0.0, "STATIC_SAFE": 1.0, "DEVICE_DEFAULT": 0.0}


def closed_loop(rack: Rack) -> None:
    """a/1 opted in, 250 W at first and 200 W from second 30 on; a/2 not, with somebody else's limit of 650 W."""
    config = rack.folder / "rack.toml"
    first, second = (
        f'[[outlet]]\npdu = "a"\nnumbers = "{n}"\nload = "load-{n}"\nrating_w = 700.0\nstatic_safe_w = 300.0\n'
        for n in (1, 2)
    )
    text = config.read_text()
    begin, end = text.index("[[outlet]]"), text.index("[[constraint]]")
    config.write_text(text[:begin] + first + "closed_loop = true\n" + second + text[end:])
    rack.historian.limit(StoredLimit(T0 - 1, 0, "a/1", "alarm", 250.0, "lower", "granted"))
    rack.historian.limit(StoredLimit(T0 - 1, 0, "a/2", "alarm", 650.0, "read", ""))
    rack.historian.limit(StoredLimit(T0 + 30 * NS_PER_S, 30 * NS_PER_S, "a/1", "alarm", 200.0, "lower", "granted"))


def test_in_closed_loop_the_limits_in_force_are_what_was_freed_not_the_requests(rack: Rack) -> None:
    """Requests of 150 W would free 150 W of each outlet; the limits of a/1 freed 50 W for 30 s, then 100 W for 25 s."""
    closed_loop(rack)
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0), marks=Mark.CLOSED_LOOP)
    document = rack.report()
    rack_w = document["together"]
    freed_w = (30.0 * 50.0 + 25.0 * 100.0) / 55.0
    assert rack_w["freed_w"] == 300.0
    assert rack_w["freed_in_force_w"] == pytest.approx(freed_w)
    assert (rack_w["in_force_highest_w"], rack_w["freed_in_force_always_w"]) == (550.0, 50.0)
    assert rack_w["stranded_in_force_w"] == pytest.approx(600.0 - freed_w - 200.0)
    assert plain(document["headline"]).startswith(
        "rpi-daemon freed 73 W of the 600 W that static limits reserve here (12 %), on average, and 50 W at every moment,"
        " by the limits that were in force; the draw never passed a limit in force, and the static limits in 0.00 %"
    )


def test_time_in_advisory_mode_frees_nothing_where_some_of_the_time_was_closed_loop(rack: Rack) -> None:
    closed_loop(rack)
    rack.fill(range(300), constant(100.0, 100.0), constant(150.0, 150.0))
    rack.fill(range(300, 600), constant(100.0, 100.0), constant(150.0, 150.0), marks=Mark.CLOSED_LOOP)
    rack_w = rack.report()["together"]
    assert rack_w["freed_in_force_w"] == pytest.approx(25.0 * 100.0 / 55.0)
    assert rack_w["freed_in_force_always_w"] == 0.0


def test_in_advisory_mode_nothing_of_ours_is_in_force(rack: Rack) -> None:
    closed_loop(rack)
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    document = rack.report()
    assert document["together"]["in_force_w"] is document["together"]["freed_in_force_w"] is None
    assert plain(document["headline"]).startswith("rpi-daemon would have freed 300 W of the 600 W")


def test_two_feeds_of_one_load_reserve_the_whole_load_each(rack: Rack) -> None:
    config = rack.folder / "rack.toml"
    config.write_text(config.read_text().replace('"load-{n}"', '"load"'))
    rack.fill(range(600), constant(100.0, 80.0), constant(150.0, 120.0))
    document = rack.report()
    assert [row["reserve_w"] for row in document["outlets"]] == [270.0, 270.0]
    assert document["together"]["reserve_w"] == 540.0
    assert document["together"]["draw_w"] == 180.0


def test_the_fullest_moment_is_free_room_at_every_moment(rack: Rack) -> None:
    """Requests of 150 W each; a/2's is 280 W for one second."""
    rack.fill(range(600), constant(100.0, 100.0), lambda k: [150.0, 280.0 if 200 <= k < 210 else 150.0])
    rack_w = rack.report()["together"]
    assert (rack_w["reserve_highest_w"], rack_w["freed_always_w"]) == (430.0, 170.0)
    assert rack_w["reserve_highest_utc_ns"] == T0 + 20 * NS_PER_S
    assert rack_w["reserve_w"] == pytest.approx(300.0 + 130.0 / 55.0)


def test_gaps_are_shown_and_nothing_is_filled_in(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    rack.fill(range(1800, 2400), constant(100.0, 100.0), constant(150.0, 150.0))
    document = rack.report()
    assert document["gaps"] == [{"from_utc_ns": T0 + MINUTE_NS, "to_utc_ns": T0 + 3 * MINUTE_NS}]
    assert document["known_share"] == pytest.approx(0.5)
    assert document["outlets"][0]["energy_kwh"] == pytest.approx(120.0 * 100.0 / 3.6e6)
    assert document["together"]["judged_share"] == pytest.approx(110.0 / 240.0)  # none is judged across the gap
    assert "1 gap in the measurements, 2.0 min together: nothing is filled in" in document["notes"]
    draws = document["curves"]["draw_w"]["mean"]
    assert draws[len(draws) // 2] is None
    assert draws[0] == draws[-1] == 200.0


def test_other_racks_renamed_outlets_and_a_set_clock_are_told(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    rack.historian.close()
    for name, outlets, minute in (("rack", ("a/1", "old/2"), 2), ("other", ("a/1", "a/2"), 3)):
        historian = Alone(rack.history, Layout(name, outlets, "cal-2"), keep_days=36_500.0)
        historian.start()
        for k in range(600):
            historian.tick(T0 + minute * MINUTE_NS + k * TICK_NS, k * TICK_NS, np.full(2, 500.0), {})
        historian.close()
    document = rack.report()
    assert document["outlets"][1]["known_share"] == pytest.approx(60.0 / 180.0)
    assert document["outlets"][0]["peak_w"] == 500.0
    assert document["outlets"][1]["peak_w"] == 100.0
    told = "\n".join(document["notes"])
    assert "outlets that the configuration does not have (renamed, or taken out) are left out: old/2" in told
    assert "the calibration changed within the span" in told
    assert "blocks of another rack, 'other', were left out" in told


def test_damaged_blocks_are_left_out_and_counted(rack: Rack) -> None:
    rack.fill(range(1800), constant(100.0, 100.0), constant(150.0, 150.0))
    rack.historian.close()
    with sqlite3.connect(path_of(rack.history, T0)) as connection:
        connection.execute("UPDATE block SET crc = crc + 1 WHERE quantity = 'power_w' AND t_ns = ?", (T0 + MINUTE_NS,))
    connection.close()
    document = rack.report()
    assert "1 damaged blocks were left out" in document["notes"]
    assert document["outlets"][0]["energy_kwh"] == pytest.approx(120.0 * 100.0 / 3.6e6)
    assert document["gaps"] == [{"from_utc_ns": T0 + MINUTE_NS, "to_utc_ns": T0 + 2 * MINUTE_NS}]


def test_events_by_kind_and_what_became_of_models(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    rack.events(
        Event(T0, 0, "pdu.found", {"level": "info", "pdu": "a"}),
        Event(T0 + 1, 1, "overload", {"level": "error", "constraint": "breaker"}),
        Event(T0 + 2, 2, "overload", {"level": "error", "constraint": "breaker"}),
        Event(T0 + 3, 3, "model.promoted", {"level": "info", "model": "night-2", "before": "shipped"}),
    )
    document = rack.report()
    assert document["events"]["by_kind"] == {"overload": 2, "pdu.found": 1, "model.promoted": 1}
    assert [event["name"] for event in document["events"]["notable"]] == ["overload", "overload"]
    (model,) = document["models"]
    assert (model["name"], model["data"]) == ("model.promoted", {"model": "night-2", "before": "shipped"})


def test_one_outlet_alone(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 80.0), constant(150.0, 120.0))
    document = rack.report("a/2")
    assert [row["outlet"] for row in document["outlets"]] == ["a/2"]
    assert document["together"]["static_w"] == 300.0
    assert document["together"]["draw_w"] == 80.0


@pytest.mark.parametrize(
    ("ticks", "told"),
    [(range(0), "no history is there"), (range(9000, 9600), "nothing is stored of rack 'rack' between"), (range(50), "only 5.0 s of measurements")],
)  # fmt: skip
def test_nothing_or_hardly_anything_to_report_is_one_sentence(rack: Rack, ticks: range, told: str) -> None:
    rack.fill(ticks, constant(100.0, 100.0), constant(150.0, 150.0))
    result = rack.run()
    assert result.exit_code == 1
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_an_unreadable_file_is_named_where_nothing_is_found(rack: Rack) -> None:
    rack.historian.close()
    path_of(rack.history, T0).parent.mkdir(parents=True)
    path_of(rack.history, T0).write_bytes(b"no database" * 100)
    result = rack.run()
    assert result.exit_code == 1
    assert f"not readable: {path_of(rack.history, T0).name}" in result.stderr


def test_the_terminal_has_the_sentence_and_where_the_page_is(rack: Rack) -> None:
    rack.fill(range(1200), bump, constant(150.0, NAN))
    scores(rack, 50.0)
    target = rack.folder / "x.html"
    result = rack.run("-o", str(target))
    assert result.exit_code == 0, result.output
    said = result.stdout.replace("\u00a0", " ").replace("\u202f", " ")
    assert "rpi-daemon would have freed 150 W of the 600 W that static limits reserve here (25 %)" in said
    assert "the draw passed 5.00 % of the requests" in said
    assert f"written: {target}" in said
    assert target.read_text().startswith("<!doctype html>")


def test_a_page_that_cannot_be_written_is_one_sentence(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    result = rack.run("-o", str(rack.folder / "no/x.html"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


class _Balance(HTMLParser):
    """Every tag that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_takes_names_as_text(rack: Rack) -> None:
    rack.fill(range(1200), bump, constant(150.0, NAN))
    scores(rack, 50.0)
    rack.events(Event(T0, 0, "pdu.unreachable", {"level": "error", "error": "<script>alert('x')</script>"}))
    page = page_of(rack.report() | {"rack": "<b>rack</b>", "states": {"<b>state</b>": 0.5}}, UTC)
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert "<b>state" not in page
    assert "&lt;b&gt;rack&lt;/b&gt;" in page
    assert not re.search(r"https?://|@import|url\(|src=", page)
    balance = _Balance()
    balance.feed(page)
    assert balance.open == []
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(picture)
    assert "not known" in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().replace("nano", "")
    assert "2025-11-21 04:40 to 2025-11-21 04:42 UTC" in page


def test_scores_of_a_decision_stay_in_the_document(rack: Rack) -> None:
    rack.fill(range(600), constant(100.0, 100.0), constant(150.0, 150.0))
    scores = {"candidate": {"pinball_w": 1.25}, "outcome": "promoted", "reasons": ["wins by 9 %"], "word": "x" * 400}
    rack.events(Event(T0, 0, "retrain.decided", {"level": "info"} | scores))
    document = rack.report()
    assert document["models"][0]["data"] == scores
    page = page_of(document, UTC)
    assert "outcome promoted, reasons wins by 9 %, word xxx" in page
    assert "pinball_w" not in page
    assert "x" * 300 not in page


def test_times_are_in_the_readers_zone(rack: Rack) -> None:
    rack.fill(range(1200), bump, constant(150.0, NAN))
    page = page_of(rack.report(), timezone(timedelta(hours=5, minutes=30), "IST"))
    assert "2025-11-21 10:10 to 2025-11-21 10:12 IST" in page
    assert "times in IST" in page


def words(**changes: Any) -> dict[str, Any]:
    together = {
        "freed_w": 5000.0, "freed_always_w": 3000.0, "static_w": 10_000.0, "static_same_risk_w": 6500.0, "freed_same_risk_w": 1500.0,
        "request_escape_share": 0.01, "static_escape_share": 0.0, "freed_in_force_w": 2000.0, "freed_in_force_always_w": 1000.0,
        "limit_escape_episodes": 2, "limit_escape_s": 0.4,
    }  # fmt: skip
    return {"closed_loop_share": changes.pop("closed_loop_share", 0.0), "together": together | changes}


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("\u202f", " ")


def test_the_sentence_says_what_is_so_and_no_more() -> None:
    assert plain(headline(words())).startswith("rpi-daemon would have freed 5 000 W of the 10 000 W")
    assert plain(headline(words(closed_loop_share=1.0))).startswith("rpi-daemon freed 2 000 W of the 10 000 W")
    assert "the draw passed limits in force 2 times, for 0.4 s together" in plain(
        headline(words(closed_loop_share=1.0))
    )
    assert "limits in force reserved 200 W more" in plain(
        headline(words(closed_loop_share=1.0, freed_in_force_w=-200.0))
    )
    assert "limits in force reserved is not known" in headline(words(closed_loop_share=1.0, freed_in_force_w=None))
    assert "though not at every moment" in headline(words(freed_always_w=-10.0))
    assert "reserve 200 W more than the configured static limits" in plain(headline(words(freed_w=-200.0)))
    assert "not known" in headline(words(freed_w=None))
    assert "1 500 W more than the requests' mean" in plain(same_risk(words()))
    assert "1 500 W less than the requests' mean" in plain(same_risk(words(freed_same_risk_w=-1500.0)))
    assert same_risk(words(freed_same_risk_w=None)) == ""
    assert mode(words()) == "advisory: nothing was written"
    assert plain(mode(words(closed_loop_share=0.5))) == "closed loop 50 % of the time, else advisory"
    assert mode(words(closed_loop_share=None)) == "mode not known"


def test_the_highest_is_found_across_blocks_whatever_is_missing() -> None:
    highest = Highest(2)
    highest.take(np.array([[1.0, 5.0, 2.0], [NAN, NAN, NAN]]), np.arange(3))
    highest.take(np.array([[4.0, NAN], [-3.0, -2.0]]), np.array([10, 11]))
    assert highest.value.tolist() == [5.0, -2.0]
    assert highest.t_ns.tolist() == [1, 11]


def test_a_curve_is_the_mean_of_its_spans() -> None:
    span_ns = 20 * NS_PER_S
    curve = Curve(1, 0, BUCKETS * span_ns)
    for start in (0, 7):  # a span may come in two blocks
        seconds = np.arange(start, start + 7)
        curve.take(seconds[None].astype(np.float64), 2 * seconds * NS_PER_S)
    assert curve.mean[0, 0] == 4.5
    assert (curve.low[0, 0], curve.high[0, 0]) == (0.0, 9.0)
    assert curve.mean[0, 1] == 11.5
    assert np.isnan(curve.mean[0, 2:]).all()
    assert curve.mean.shape == (1, BUCKETS)
    assert Curve(1, 0, 60 * NS_PER_S).mean.shape == (1, 30)  # a request is kept by the second: no finer than 2 s


def test_limits_play_back_in_step_with_the_measurements() -> None:
    changes = [
        StoredLimit(t, t, outlet, "alarm", limit_w, "raise", "")
        for t, outlet, limit_w in (
            (-5, "a/1", 100.0),
            (3, "a/1", 200.0),
            (4, "x/9", 1.0),
            (5, "a/2", 50.0),
            (20, "a/1", None),
        )
    ]
    limits = LimitsInTime(("a/1", "a/2"), changes, 0)
    np.testing.assert_array_equal(limits.at(np.arange(3)), [[100.0], [NAN]])
    np.testing.assert_array_equal(limits.at(np.arange(3, 7)), [[200.0] * 4, [NAN, NAN, 50.0, 50.0]])
    np.testing.assert_array_equal(limits.at(np.arange(10, 12)), [[200.0], [50.0]])
    limits.rest()
    assert limits.writes.tolist() == [2, 1]  # the first was before the span


def test_needs_agree_with_a_plain_loop() -> None:
    """Random draw and requests, handed over in odd pieces: means and the limit of the same risk, one second after the other."""
    random = np.random.default_rng(7)
    seconds = 400
    power_w = random.uniform(0.0, 500.0, (2, seconds, 10))
    power_w[0, 100:103] = NAN
    request_w = random.uniform(100.0, 600.0, (2, seconds))
    request_w[1, 200:210] = NAN
    outlets = Outlets(("a/1", "a/2"), np.full(2, 450.0), np.eye(2, dtype=bool), np.array([True, False]))
    limit_w = random.uniform(300.0, 600.0, (2, seconds, 10))
    marks = np.where(np.arange(seconds) < 300, int(Mark.CLOSED_LOOP), 0) + np.zeros((2, 1), np.int64)
    needs = Needs(outlets, 0, seconds * NS_PER_S)
    t_ns = NS_PER_S * np.arange(seconds)
    for first, end in ((0, 3), (3, 60), (60, 61), (61, 400)):
        piece = slice(first, end)
        needs.take(
            t_ns[piece], power_w[:, piece], request_w[:, piece], request_w[:, piece], limit_w[:, piece], marks[:, piece]
        )
    some = {
        s for i in range(2) for s in range(seconds - 5) if not np.isnan(power_w[i, s : s + 6].sum() + request_w[i, s])
    }
    in_force_w = [450.0 + (limit_w[0, s].mean() if s < 300 else 450.0) for s in some]
    assert needs.all_in_force_w == pytest.approx(np.mean(in_force_w))
    assert needs.highest_in_force.value[0] == pytest.approx(
        max(450.0 + (limit_w[0, s].max() if s < 300 else 450.0) for s in some)
    )
    for i in range(2):
        ahead = [(s, power_w[i, s + 1 : s + 6].max()) for s in range(seconds - 5)]
        judged = [(s, high) for s, high in ahead if not np.isnan(high + request_w[i, s] + power_w[i, s].mean())]
        assert needs.moments[i] == len(judged)
        assert needs.reserve_w[i] == pytest.approx(np.mean([request_w[i, s] for s, _ in judged]))
        assert needs.over_static[i] == sum(high > 450.0 for _, high in judged)
        share = 0.13
        found = needs.static_for(np.full(2, share))[i]
        passed = [sum(high > limit for _, high in judged) / len(judged) for limit in (found - 1.0, found)]
        assert passed[1] <= share < passed[0]


def test_pictures_of_nothing_known_are_still_pictures() -> None:
    nothing = [None] * BUCKETS
    for picture in (
        bars([("static", 600.0, None, None), ("hindsight", None, None, None)]),
        timeline(T0, T0 + MINUTE_NS, UTC, {"mean": nothing, "min": nothing, "max": nothing}, nothing, 600.0),
        spark(nothing, 0.0),
    ):
        ET.fromstring(picture)
    assert watts(None) == "not known"
    assert plain(watts(12_345.6)) == "12 346 W"


def test_the_axis_has_round_local_times() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    points = [100.0] * BUCKETS
    start = round(datetime(2026, 1, 1, 0, 7, tzinfo=zone).timestamp()) * NS_PER_S
    picture = timeline(
        start, start + 4 * 3600 * NS_PER_S, zone, {"mean": points, "min": points, "max": points}, points, 150.0
    )
    assert re.findall(r">(\d\d:\d\d)<", picture) == [
        "00:30",
        "01:00",
        "01:30",
        "02:00",
        "02:30",
        "03:00",
        "03:30",
        "04:00",
    ]
