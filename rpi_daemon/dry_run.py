"""Dry runs: the whole pipeline, nothing written. On a recorded trace in virtual time, or on the live sensors in advisory mode."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rpi_daemon._fastpath.core import Ring
from rpi_daemon.assembly import build_pipeline
from rpi_daemon.calibration import own_word
from rpi_daemon.clock import NS_PER_S, ManualClock
from rpi_daemon.config.load import parse_config
from rpi_daemon.config.rack import rack_model
from rpi_daemon.config.schema import Board, Config
from rpi_daemon.devices import load_checked, write_budgets
from rpi_daemon.drivers.sensors.replay import ReplaySource
from rpi_daemon.drivers.sensors.traces import Trace, read_traces
from rpi_daemon.errors import TraceError
from rpi_daemon.guard import HealthFlags
from rpi_daemon.log import logging_to_stderr
from rpi_daemon.pipeline import DecisionDigest, Snapshot, TickInputs
from rpi_daemon.recording import Recording
from rpi_daemon.records import (
    TICK_NS,
    TICK_S,
    ApplyResult,
    CapDesired,
    CapOutcome,
    CapReading,
    CapReport,
    Desired,
    Forecast,
    LimitKind,
    LimitState,
    LimitWrite,
    Mode,
    PduReading,
    PduReport,
    RackModel,
    WriteOutcome,
)
from rpi_daemon.score import MeanWeights, MemberScores, RunScore
from rpi_daemon.sensing import board_setup, wiring
from rpi_daemon.service import Service, note_lowest_caps
from rpi_daemon.status import summary
from rpi_daemon.top import by_weight

SETTLE_NS = 200_000_000  # a PDU that does not exist takes a limit after this; measured ones take longer or shorter
SCANS_PER_TICK = 100
NS_PER_SCAN = 1_000_000
RING_SCANS = 4000
RATING_HEADROOM = 1.25  # rating of an outlet without a configuration: this times the highest draw of its trace


@dataclass(slots=True)
class VirtualPdu:
    """A PDU in virtual time: takes every batch after a settle time, one at a time, so that the pipeline's loop is closed."""

    name: str
    limits_w: dict[int, float]
    waiting: tuple[LimitWrite, ...] = ()
    on_wire: tuple[LimitWrite, ...] = ()
    sent_ns: int = 0

    def submit(self, desired: Desired) -> None:
        """As a PDU task: the newest desired state replaces what waits; what is on the wire goes on."""
        self.waiting = desired.limits

    def reports(self, now_ns: int) -> list[PduReport]:
        """What a tick at `now_ns` hears from it."""
        reports = [PduReport(self.name, reading=self.reading(now_ns))]
        if self.on_wire and now_ns - self.sent_ns >= SETTLE_NS:
            verified_ns = self.sent_ns + SETTLE_NS
            self.limits_w.update({write.outlet: write.limit_w for write in self.on_wire})
            outcomes = tuple(
                WriteOutcome(write.outlet, write.limit_w, write.limit_w, True, None, self.sent_ns, verified_ns)
                for write in self.on_wire
            )
            reports.append(PduReport(self.name, result=ApplyResult(outcomes, 1)))
            self.on_wire = ()
        if self.waiting and not self.on_wire:
            self.on_wire, self.waiting, self.sent_ns = self.waiting, (), now_ns
        return reports

    def reading(self, now_ns: int) -> PduReading:
        """Its limits as a poll would show them; it meters nothing."""
        states = {n: LimitState(w, True, LimitKind.ALARM) for n, w in self.limits_w.items()}
        return PduReading(now_ns, now_ns / NS_PER_S, {}, {}, {}, states)


@dataclass(slots=True)
class VirtualServer:
    """A server in virtual time: takes the newest cap after a settle time and keeps it, so that the loop is closed."""

    load: str
    keep: Callable[[float | None], None]
    cap_w: float | None = None
    asked: CapDesired | None = None

    def submit(self, desired: CapDesired) -> None:
        """As a cap task: the newest cap replaces what waits."""
        self.asked = desired

    def reports(self, now_ns: int) -> list[CapReport]:
        """What a tick at `now_ns` hears from it."""
        if self.asked is not None and now_ns - self.asked.t_mono_ns >= SETTLE_NS:
            asked, self.asked = self.asked, None
            self.cap_w = asked.cap_w
            self.keep(self.cap_w)
            outcome = CapOutcome(self.cap_w, self.cap_w, True, None, asked.t_mono_ns, now_ns)
            return [CapReport(self.load, outcome=outcome)]
        return [CapReport(self.load, reading=CapReading(now_ns, None, self.cap_w, self.cap_w is not None))]


def dry_run_replay(trace_path: Path, config_path: Path | None, seconds: float | None) -> dict[str, Any]:
    """Run a recorded trace through the pipeline in virtual time; raises TraceError or ConfigError."""
    traces = read_traces(trace_path)
    config = load_checked(config_path) if config_path is not None else _config_for(traces)
    rack = rack_model(config)
    duration_s = min(trace.duration_s for trace in traces)
    duration_s = duration_s if seconds is None else min(seconds, duration_s)
    score, digest, members, weights = RunScore(rack), DecisionDigest(), MemberScores(), MeanWeights()
    for i in range(rack.n):
        score.limit_seen(i, float(rack.static_safe_w[i]))
    writes = caps = 0
    loads = [rack.loads[cap.load].name for cap in rack.caps]
    lowest_caps_w: dict[str, float] = {}
    draw_w: list[float] = []
    for snapshot, reports, latest in _ticks(config, rack, traces, duration_s):
        members.update(snapshot.readings, latest)
        weights.update(snapshot.weights, snapshot.readings.valid)
        caps += len(snapshot.cap_plan.desired)
        note_lowest_caps(lowest_caps_w, loads, snapshot.cap_plan)
        for report in reports:
            for outcome in report.result.outcomes if report.result is not None else ():
                writes += 1
                score.limit_verified(
                    rack.outlet_ids.index(f"{report.pdu}/{outcome.outlet}"), outcome.asked_w, outcome.t_verified_ns or 0
                )
        score.update(snapshot.readings, snapshot.residual)
        digest.add(snapshot)
        if snapshot.readings.valid.any():
            draw_w.append(float(np.nanmean(snapshot.readings.power_w)))
    figures = score.summary()
    mean_w = float(np.mean(draw_w)) if draw_w else None
    return {
        "schema": 1,
        "trace": str(trace_path),
        "sampled_hz": traces[0].rate_hz,
        "upsampled": traces[0].rate_hz < 1000.0,
        "seconds": duration_s,
        "outlets": rack.n,
        "mean_draw_w": mean_w,
        "writes_proposed": writes,
        "caps_proposed": caps,
        "lowest_caps_w": lowest_caps_w,
        **figures,
        "headroom_found_w": _difference(figures["mean_static_safe_w"], figures["mean_limit_w"]),
        "member_mae_w": members.mae_w(),
        "expert_weights": weights.mean(),
        "mae_vs_persistence": _ratio(figures["forecast_mae_w"], figures["persistence_mae_w"]),
        "decision_digest": digest.hexdigest(),
    }


def _ticks(
    config: Config, rack: RackModel, traces: Sequence[Trace], duration_s: float
) -> Iterator[tuple[Snapshot, tuple[PduReport, ...], Mapping[str, Forecast]]]:
    """The control loop in virtual time: scans, a tick, the virtual PDUs; 100 ms at a time."""
    clock = ManualClock()
    boards = [_ReplayBoard(board, config, rack, traces) for board in config.board]
    pdus = {
        pdu.id: VirtualPdu(
            pdu.id,
            {rack.number_of[i]: float(rack.static_safe_w[i]) for i in range(rack.n) if rack.pdu_of[i] == pdu.id},
        )
        for pdu in config.pdu
    }
    servers = {
        rack.loads[cap.load].name: VirtualServer(
            rack.loads[cap.load].name, partial(_throttle, boards, rack.loads[cap.load].outlets)
        )
        for cap in rack.caps
    }
    pipeline = build_pipeline(config, rack, [board.setup for board in boards], clock)
    for _ in range(int(duration_s * NS_PER_S // TICK_NS)):
        for board in boards:
            board.advance(clock.mono_ns())
        clock.advance(TICK_S)
        now_ns = clock.mono_ns()
        reports = tuple(report for pdu in pdus.values() for report in pdu.reports(now_ns))
        cap_reports = tuple(report for server in servers.values() for report in server.reports(now_ns))
        inputs = TickInputs(now_ns, clock.utc_ns(), Mode.CLOSED_LOOP, HealthFlags(), reports, cap_reports=cap_reports)
        snapshot = pipeline.step(inputs)
        for cap in snapshot.cap_plan.desired:
            servers[cap.load].submit(cap)
        for desired in snapshot.desired:
            pdus[desired.pdu].submit(desired)
        yield snapshot, reports, pipeline.forecaster.latest


def _throttle(boards: Sequence["_ReplayBoard"], outlets: Sequence[int], cap_w: float | None) -> None:
    """A server keeps its cap: each of its supplies takes its part."""
    for board in boards:
        board.set_cap(outlets, None if cap_w is None else cap_w / len(outlets))


class _ReplayBoard:
    """A sensor board whose outlets draw what a recording says, as 1 kHz counts into a ring."""

    def __init__(self, board: Board, config: Config, rack: RackModel, traces: Sequence[Trace]) -> None:
        self._source = ReplaySource(board, config.outlets(), config.rack, traces)
        description = self._source.description
        memory = bytearray(Ring.bytes_needed(len(description.channels), RING_SCANS))
        self._ring = Ring(memory, n_channels=len(description.channels), capacity=RING_SCANS)
        wired = wiring(board, config.outlets())
        self._outlets = wired.outlets
        self.setup = board_setup(self._ring, description, wired, own_word(description), dc=config.rack.supply == "dc")
        self._index = 0

    def set_cap(self, outlets: Sequence[int], cap_w: float | None) -> None:
        """The servers behind these outlets of the rack, as far as they are on this board, draw no more than this."""
        for k, outlet in enumerate(self._outlets):
            if outlet in outlets:
                self._source.plant.set_cap(k, cap_w)

    def advance(self, from_ns: int) -> None:
        """The next 100 ms of scans, the first 1 ms after `from_ns`."""
        for k, counts in enumerate(self._source.plant.advance(SCANS_PER_TICK), start=1):
            self._ring.push(self._index, from_ns + k * NS_PER_SCAN, self._index, 0, counts)
            self._index += 1


def _config_for(traces: Sequence[Trace]) -> Config:
    """A rack for a recording without a configuration: one outlet per column, rated 25 % above its highest draw."""
    lines = ['[rack]', 'id = "replay"', '[[pdu]]', 'id = "pdu"', 'profile = "raritan_px"', 'host = "192.0.2.1"', 'user = "none"',
             'auth_key_env = "NONE"', 'priv_key_env = "NONE"', '[[board]]', 'id = "board"', 'port = "none"',
             f'channels = {[f"current:pdu/{i + 1}" for i in range(len(traces))]}'.replace("'", '"')]  # fmt: skip
    total_w = 0.0
    for i, trace in enumerate(traces, start=1):
        rating_w = max(10.0, float(np.ceil(RATING_HEADROOM * np.max(trace.power_w) / 10.0) * 10.0))
        total_w += rating_w
        lines += ['[[outlet]]', 'pdu = "pdu"', f'numbers = "{i}"', f'load = "trace-{i}"', f"rating_w = {rating_w}",
                  f"static_safe_w = {rating_w}", "closed_loop = true"]  # fmt: skip
    lines += ["[[constraint]]", 'id = "feed"', 'kind = "feed"', f"rating_w = {total_w / 0.8 + 1.0}", 'outlets = ["*"]']
    return parse_config("\n".join(lines), "replay", base_dir=Path(), env={"NONE": "not a secret"})


def dry_run_live(config_path: Path, seconds: float) -> dict[str, Any]:
    """The daemon itself for a while, in advisory mode whatever the configuration says, in folders of its own."""
    config = load_checked(config_path)
    with tempfile.TemporaryDirectory(prefix="rpi-dry-run-") as folder:
        daemon = config.daemon.model_copy(update={"mode": "advisory", "state_dir": folder, "runtime_dir": folder})
        history = config.history.model_copy(update={"enabled": False})
        # facilities and the history hear nothing of it
        service = Service(config.model_copy(update={"daemon": daemon, "trap_sink": [], "history": history}))
        with logging_to_stderr("warning", "text"):
            asyncio.run(service.run(seconds=seconds))
        return {
            "trace": None,
            "seconds": seconds,
            "writes_proposed": None,
            "lowest_caps_w": service.lowest_caps_w,
            **summary(service),
        }


def dry_run_recording(folder: Path) -> dict[str, Any]:
    """Replay what `run --record` wrote, and say whether the same was decided; raises TraceError where it is cut off."""
    recording = Recording(folder)
    try:
        return _replayed(folder, recording)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # it is right by kind; that its outlets, PDUs and causes are those of its configuration shows as they are used
        raise TraceError(f"{folder}: does not fit together, as a recording of this version does: {error!r}") from error


def _replayed(folder: Path, recording: Recording) -> dict[str, Any]:
    config, rows = recording.config, recording.config.outlets()
    rack = replace(rack_model(config), opted_in=np.array(recording.header.opted_in))
    setups = []
    for board, description, correction in zip(config.board, recording.boards, recording.corrections, strict=True):
        n_channels = len(description.channels)
        ring = Ring(bytearray(Ring.bytes_needed(n_channels, RING_SCANS)), n_channels=n_channels, capacity=RING_SCANS)
        setups.append(board_setup(ring, description, wiring(board, rows), correction, config.rack.supply == "dc"))
    build = partial(
        build_pipeline,
        config,
        rack,
        setups,
        recording.clock,
        writes_per_day=write_budgets(config),
        without_model=recording.header.without_model,
    )
    digest, ticks, differs, recorded = DecisionDigest(), 0, None, DecisionDigest().hexdigest()
    for snapshot, recorded in recording.replay([setup.ring for setup in setups], build):
        digest.add(snapshot)
        ticks += 1
        if differs is None and digest.hexdigest() != recorded:
            differs = ticks
    return {
        "schema": 1,
        "recording": str(folder),
        "ticks": ticks,
        "decision_digest": digest.hexdigest(),
        "recorded_digest": recorded,
        "same": differs is None,
        "first_different_tick": differs,
    }


def recording_text(document: dict[str, Any]) -> str:
    """What a replay showed, for a person."""
    verdict = (
        "the same decisions" if document["same"] else f"other decisions from tick {document['first_different_tick']}"
    )
    return (
        f"replayed {document['ticks']} ticks of {document['recording']}: {verdict}\n"
        f"  recorded {document['recorded_digest']}\n  replayed {document['decision_digest']}"
    )


def report_text(document: dict[str, Any]) -> str:
    """The report for a person."""

    def watts(key: str) -> str:
        value = document.get(key)
        return "no data" if value is None else f"{value:.1f} W"

    def share(key: str) -> str:
        value = document.get(key)
        return "no data" if value is None else f"{value:.2%}"

    lines = [
        f"dry run of {document['seconds']:.0f} s, {document['outlets']} outlets, nothing written"
        + (f", from {document['trace']}" if document["trace"] else ", live sensors"),
    ]
    if document.get("upsampled"):
        lines.append(f"  recorded at {document['sampled_hz']:.3g} Hz and up-sampled: nothing faster than that is in it")
    if document.get("mean_draw_w") is not None:
        lines.append(
            f"  mean draw {watts('mean_draw_w')}; mean limit {watts('mean_limit_w')}; static limit {watts('mean_static_safe_w')}"
        )
    if document.get("writes_proposed") is not None:
        lines.append(f"  {document['writes_proposed']} writes it would have made")
    if document.get("lowest_caps_w"):
        lowest = ", ".join(f"{load} {cap_w:.0f} W" for load, cap_w in document["lowest_caps_w"].items())
        lines.append(f"  servers it would have capped, at the lowest: {lowest}")
    lines += [
        f"  requests passed by {share('request_escape_rate')} of running maxima; limit passed in {document['limit_escapes']} windows"
        f" ({document['limit_escape_episodes']} times)",
        f"  rises with their limit in place 1 s before: {share('prealloc_share')} of {document['rises']}",
        f"  forecast error 5 s ahead {watts('forecast_mae_w')}; persistence {watts('persistence_mae_w')}",
    ]
    members = ", ".join(f"{name} {mae_w:.1f} W" for name, mae_w in document.get("member_mae_w", {}).items())
    lines += [f"    each forecaster alone: {members}"] if members else []
    shares = by_weight(document.get("expert_weights", {}))
    lines += [f"    mean weights: {shares}"] if shares else []
    return "\n".join(lines)


def _difference(a: Any, b: Any) -> float | None:
    return None if a is None or b is None else float(a - b)


def _ratio(a: Any, b: Any) -> float | None:
    return None if a is None or not b else float(a / b)
