"""The status document: one look at the newest snapshot and the counters, for `status`, `top`, the demo and scripts."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpi_daemon.alarms import KINDS
from rpi_daemon.clock import NS_PER_S
from rpi_daemon.control import SCHEMA
from rpi_daemon.guard import loadings
from rpi_daemon.reasons import brief, explained
from rpi_daemon.records import REQUEST_QUANTILE, TELEMETRY, FloatArray, LimitKind, Quality, RackModel
from rpi_daemon.settle import too_slow

if TYPE_CHECKING:
    from rpi_daemon.pipeline import Snapshot
    from rpi_daemon.service import Service


def status_document(service: "Service") -> dict[str, Any]:
    """Everything a view shows; numbers that are not known are null, never 0."""
    snapshot = service.snapshot
    now_ns = service.clock.mono_ns()
    causes = list(snapshot.safe.causes) if snapshot else ["starting"]
    return {
        "schema": SCHEMA,
        "rack": service.config.rack.id,
        "pid": os.getpid(),
        "t_utc_ns": service.clock.utc_ns(),
        "t_mono_ns": now_ns,
        "uptime_s": (now_ns - service.started_ns) / NS_PER_S,
        "mode": service.limits.mode.value,
        "state": snapshot.safe.state.name if snapshot else "STATIC_SAFE",
        "causes": causes,
        "why": brief(causes),
        "reasons": explained(causes),
        "latched": list(snapshot.safe.latched) if snapshot else [],
        "config": service.reload.status(),
        "kill_switch": service.limits.killed(),
        "static_safe_verified_s": service.limits.static_safe_s,
        "static_safe_differs": service.limits.differs,
        "ceilings": service.operator.ceilings(),
        "outlets": _outlets(service, snapshot) if snapshot else [],
        "constraints": constraint_rows(service.limits.rack, snapshot) if snapshot else [],
        "forecast": _forecast(service) if snapshot else {},
        "caps": [_cap(service, snapshot, k, now_ns) for k in range(len(service.limits.rack.caps))] if snapshot else [],
        "telemetry": _telemetry(service, snapshot),
        "telemetry_feed": service.telemetry.feed_status(),
        "boards": [_board(link) for link in service.boards],
        "pdus": [_pdu(service, pdu, now_ns) for pdu in service.limits.tasks],
        "alarms": _alarms(service),
        "trap_sinks": service.traps.status(),
        "watchdog": {
            "waits_s": _number(service.pinger.waits_s),
            "hangs": dict(service.heartbeats.verdict.hangs),
            "starves": dict(service.heartbeats.verdict.starves),
        },
        "audit": service.audit.status(),
        "history": service.keeping.status() if service.keeping is not None else None,
        "retrain": service.learning.status() if service.learning is not None else None,
        "summary": summary(service),
    }


def summary(service: "Service") -> dict[str, Any]:
    """The figures of the run so far."""
    counters: dict[str, int] = {}
    for link in service.boards:
        for name, value in link.sampler.counters().items():
            counters[name] = counters.get(name, 0) + value
    wall_s = (service.clock.mono_ns() - service.loop_started_ns) / NS_PER_S if service.loop_started_ns else math.nan
    ring_bytes = sum(link.ring_bytes for link in service.boards)
    return {
        "schema": SCHEMA,
        "outlets": service.limits.rack.n,
        "samples_total": counters.get("received", 0),
        "samples_lost": counters.get("lost", 0),
        "samples_late": counters.get("late", 0),
        **service.score.summary(),
        "expert_weights": service.weights.mean(),
        "writes": service.writes,
        "writes_verified": service.writes_verified,
        "writes_refused": service.writes_refused,
        "tick_ms_p50": _quantile(service.tick_ms, 50),
        "tick_ms_p99": _quantile(service.tick_ms, 99),
        "write_batches": len(service.write_ms),
        "write_ms_p50": _quantile(service.write_ms, 50),
        "write_ms_p99": _quantile(service.write_ms, 99),
        "lateness_us_p50": _worst(service, 0.5),
        "lateness_us_p99": _worst(service, 0.99),
        "cpu_percent": _number(100.0 * (time.process_time() - service.loop_started_cpu_s) / wall_s),
        "rss_mb": _memory_mb(Path("/proc/self/status").read_text(), ring_bytes),
        "raw_ring_mb": ring_bytes / 1e6,
        "decision_digest": service.digest.hexdigest(),
        "state": service.snapshot.safe.state.name if service.snapshot else "STATIC_SAFE",
        "mode": service.limits.mode.value,
    }


def _outlets(service: "Service", snapshot: "Snapshot") -> list[dict[str, Any]]:
    rack = service.limits.rack
    used = service.pipeline.actuator.writes_used(snapshot.t_mono_ns)
    caps = snapshot.caps
    capped_w = service.pipeline.capping.of_outlets(np.where(caps.ours & caps.followed, caps.cap_w, np.nan))
    return [
        {
            "id": rack.outlet_ids[i],
            "load": rack.loads[rack.load_of[i]].name,
            "power_w": _number(snapshot.readings.power_w[i]),
            "forecast_w": _number(snapshot.forecast.value_w[i, -1, 0]),
            "forecast_max_w": _number(snapshot.forecast.running_max_w[i, -1, REQUEST_QUANTILE]),
            "request_w": _number(snapshot.request.request_w[i]),
            "margin_w": _number(snapshot.request.margin_w[i]),
            "grant_w": _number(snapshot.allocation.grant_w[i]),
            "shortfall_w": _number(snapshot.allocation.shortfall_w[i]),
            "limit_w": _number(snapshot.in_force.limit_w[i]),
            "limit_kind": snapshot.in_force.kind[i].value,
            "server_cap_w": _number(capped_w[i]),
            "static_safe_w": float(rack.static_safe_w[i]),
            "rating_w": float(rack.rating_w[i]),
            "source": snapshot.forecast.source[i],
            "weights": _weights(snapshot.weights, i),
            "request_weights": _weights(snapshot.request_weights, i),
            "rule": snapshot.permitted.rule[i],
            "quality": [
                flag.name.lower() for flag in Quality(int(snapshot.readings.quality[i]) & ~Quality.HELD) if flag.name
            ],
            "opted_in": bool(rack.opted_in[i]),
            "uncontrolled": bool(snapshot.in_force.uncontrolled[i]),
            "writes_today": int(used[i]),
        }
        for i in range(rack.n)
    ]


def _weights(weights: Mapping[str, FloatArray], i: int) -> dict[str, float]:
    return {expert: round(float(weight[i]), 3) for expert, weight in weights.items()}


def constraint_rows(rack: RackModel, snapshot: "Snapshot") -> list[dict[str, Any]]:
    """What each constraint carries, and what the limits in force take of each of its ratings, in that rating's unit.

    A load with two feeds counts once in the limits, as in the grants: its whole draw may move to either.
    """
    allocation, env = snapshot.allocation, snapshot.allocation.envelope
    carried = list(zip(loadings(rack, snapshot.readings), env.coefficient, strict=False))  # ceilings come last

    def limits(per_watt: FloatArray) -> float | None:
        amount = np.where(per_watt > 0.0, per_watt * snapshot.in_force.limit_w, 0.0)
        return _number(float(np.maximum(amount[env.first], amount[env.second]).sum()))

    rows = []
    for item in rack.constraints:
        draw_w = snapshot.readings.power_w[item.share > 0.0]
        rows.append(
            {
                "id": item.name,
                "kind": item.kind,
                "draw_w": _number(float(draw_w.sum())),
                "limits_w": limits(item.share),
                "granted_w": allocation.usage_w[item.name],
                "ceiling_w": allocation.ceiling_w[item.name],
                "derate": item.derate,
                "ratings": [
                    {
                        "unit": c.unit,
                        "draw": c.draw,
                        "limits": limits(per_watt),
                        "rating": c.rating,
                        "over": "rating" if c.overload else "derating" if c.over_derating else None,
                    }
                    for c, per_watt in carried
                    if c.constraint == item.name
                ],
            }
        )
    return rows


def _forecast(service: "Service") -> dict[str, Any]:
    forecaster = service.pipeline.forecaster
    return {
        "primary": service.config.forecast.primary,
        "model": None if forecaster.model is None or service.standing is None else service.standing.name,
        "outlet_ticks": dict(forecaster.counts),
        "primary_unused_because": (service.model_refused if forecaster.model is None else None) or forecaster.reason,
    }


def _telemetry(service: "Service", snapshot: "Snapshot | None") -> list[dict[str, Any]]:
    """What each configured host says now: null where it is not known, or too old to be."""
    outlet_of = {load.name: load.outlets[0] for load in service.limits.rack.loads}
    entries = service.telemetry.status()
    for entry in entries:
        shares = snapshot.telemetry[outlet_of[entry["load"]]] if snapshot else [math.nan] * len(TELEMETRY)
        entry |= {name: _number(share) for name, share in zip(TELEMETRY, shares, strict=True)}
    return entries


def _board(link: Any) -> dict[str, Any]:
    described = link.description
    return {
        "id": link.board.id,
        "port": link.board.iio_device if link.board.driver == "iio" else link.board.port,
        "connected": link.sampler.connected(),
        "sees_losses": link.source.sees_losses,
        "serial_number": described.serial_number if described else None,
        "firmware": described.firmware if described else None,
        "scheduling": link.sampler.scheduling(),
        "calibration": _calibration(link),
        "ring_mb": link.ring_bytes / 1e6,
        "lateness_us_p99": _number(link.sampler.lateness_us(0.99)),
        **link.sampler.counters(),
    }


def _calibration(link: Any) -> dict[str, Any]:
    """Where its scale comes from; without a file all but that is null."""
    file = link.calibration
    if file is None:
        return {"file": None, "date": None, "expires": None, "instruments": [], "good": 0, "refused": 0}
    good = [record for record in file.channels if record.good]
    return {
        "file": str(link.calibration_path),
        "date": file.date.isoformat(timespec="seconds"),
        "expires": file.expires.isoformat(timespec="seconds"),
        "instruments": sorted({str(record.instrument) for record in good}),
        "good": len(good),
        "refused": len(file.channels) - len(good),
    }


def _alarms(service: "Service") -> list[dict[str, Any]]:
    return [
        {"id": alarm, "severity": KINDS[s.kind].severity.name.lower(), "subject": s.subject, "text": s.text,
         "since_utc_ns": s.since_utc_ns}
        for alarm, s in service.traps.table.standing.items()
    ]  # fmt: skip


def _pdu(service: "Service", pdu: str, now_ns: int) -> dict[str, Any]:
    task = service.limits.tasks[pdu]
    identity = service.limits.identities.get(pdu)  # none: away since the start
    options = next(item for item in service.config.pdu if item.id == pdu)
    return {
        "id": pdu,
        "host": options.host or options.serial_port,
        "profile": options.profile,
        "vendor": identity.vendor if identity else None,
        "model": identity.model if identity else None,
        "firmware": identity.firmware if identity else None,
        "proven": identity.proven if identity else None,
        "insecure": options.version == "2c" if options.driver == "snmp" else options.driver == "modbus_tcp",
        "meters_only": service.limits.meters_only.get(pdu),
        "reachable": task.reachable,
        "last_answer_s": (now_ns - task.last_ok_ns) / NS_PER_S,
        "polls": task.polls,
        "settle_s": service.settle.pdus.get(pdu),
        "too_slow": too_slow(service.settle.pdus.get(pdu)),
    }


def _cap(service: "Service", snapshot: "Snapshot", k: int, now_ns: int) -> dict[str, Any]:
    """One server: what its cap is, what is wanted, and how it answers."""
    options, caps, plan = service.config.cap[k], snapshot.caps, snapshot.cap_plan
    task = service.limits.cap_tasks[options.load]
    identity = task.identity
    cap_w = float(caps.cap_w[k])
    return {
        "load": options.load,
        "host": options.host,
        "kind": LimitKind.SERVER_CAP.value,
        "mechanism": identity.mechanism if identity else None,
        "vendor": identity.vendor if identity else None,
        "model": identity.model if identity else None,
        "on_exceed": identity.on_exceed if identity else None,
        "lowest_w": float(caps.lowest_w[k]),
        "wanted_w": _number(plan.wanted_w[k]),
        "asked_w": _number(caps.asked_w[k]),
        "cap_w": _number(cap_w),
        "active": None if math.isnan(cap_w) else math.isfinite(cap_w),
        "ours": bool(caps.ours[k]),
        "pending": bool(caps.pending[k]),
        "held": bool(caps.followed[k] & ~caps.not_held[k]) if math.isfinite(cap_w) else None,
        "server_power_w": task.reading.power_w if task.reading else None,
        "why": plan.rule[k],
        "settle_s": _number(caps.settle_s[k]),
        "too_slow": too_slow(_number(caps.settle_s[k])),
        "opted_in": options.closed_loop,
        "insecure": options.allow_insecure,
        "reachable": task.reachable and task.last_ok_ns > 0,
        "error": task.error or None,
        "last_answer_s": (now_ns - task.last_ok_ns) / NS_PER_S if task.last_ok_ns else None,
        "writes": task.writes,
        "writes_verified": task.verified,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _quantile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(np.array(values), percent)) if values else None


def _worst(service: "Service", q: float) -> float | None:
    values = [link.sampler.lateness_us(q) for link in service.boards]
    return _number(max(values)) if values else None


def _memory_mb(proc_status: str, ring_bytes: int) -> float:
    """Resident memory apart from the raw ring, MB, wherever the ring's file lies (proc(5): Rss* of status, kB)."""
    fields: Mapping[str, str] = dict(line.split(":", 1) for line in proc_status.splitlines() if ":" in line)
    anonymous, file, shared = (1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))
    return (anonymous + file - (0 if shared else ring_bytes)) / 1e6  # in /run it is shared memory, on a disk a file
