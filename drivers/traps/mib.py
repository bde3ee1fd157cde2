"""RPI-DAEMON-MIB in numbers: which notification is which, and what each carries."""

import math
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from rpi_daemon.clock import NS_PER_S
from rpi_daemon.records import Mode, Notice, SafeState, Severity

MODULE = "RPI-DAEMON-MIB"
SHIPPED_ENTERPRISE = 32_473  # RFC 5612: for documentation
NOTIFICATION_ROOT = "1.0"  # under the enterprise number
OBJECT_ROOT = "1.1"
CLEARED = 100  # the clear of an alarm has its number + this

# kind -> number under rpidNotifications
ALARMS = {
    "overload_predicted": 1,
    "overload": 2,
    "over_derating": 3,
    "limit_escaped": 4,
    "budget_shortfall": 5,
    "pdu_unreachable": 6,
    "foreign_writer": 7,
    "sensor_fault": 8,
    "calibration_expired": 9,
    "outlet_uncontrolled": 10,
    "model_fallback": 11,
    "model_refused": 12,
    "kill_switch": 13,
    "cap_not_held": 14,
    "bmc_unreachable": 15,
    "daemon_fault": 16,
}
EVENTS = {
    "started": 201,
    "stopped": 202,
    "heartbeat": 203,
    "state_change": 204,
    "mode_change": 205,
    "foreign_change": 206,
    "model_promoted": 207,
    "test": 208,
}
# object -> number under rpidObjects
OBJECTS = {
    "sequence": 1,
    "dropped": 2,
    "time": 3,
    "rack": 4,
    "severity": 5,
    "alarm_state": 6,
    "alarm_id": 7,
    "subject": 8,
    "text": 9,
    "value": 10,
    "threshold": 11,
    "unit": 12,
    "seconds_to_overload": 13,
    "standing_alarms": 14,
    "mode": 15,
    "safe_state": 16,
}
ALARM_STATES = {"raised": 1, "cleared": 2, "event": 3}
MODES = {Mode.ADVISORY: 1, Mode.CLOSED_LOOP: 2}
TEXT_BYTES = 255  # SnmpAdminString
INTEGER32_MAX = 2**31 - 1
UNSIGNED32 = 2**32

Value = tuple[str, int | bytes]  # SMI type, value


def mib_path() -> Path:
    """The shipped module."""
    return Path(str(files("rpi_daemon.config").joinpath(f"{MODULE}.txt")))


def mib_text(enterprise: int = SHIPPED_ENTERPRISE) -> str:
    """The module, with this enterprise number."""
    text = mib_path().read_text(encoding="ascii")
    return re.sub(rf"enterprises {SHIPPED_ENTERPRISE}\b", f"enterprises {enterprise}", text)


def notification_oid(notice: Notice, enterprise: int) -> str:
    """The value of snmpTrapOID.0."""
    number = EVENTS[notice.kind] if notice.state == "event" else ALARMS[notice.kind]
    return f"1.3.6.1.4.1.{enterprise}.{NOTIFICATION_ROOT}.{number + CLEARED * (notice.state == 'cleared')}"


def varbinds(
    notice: Notice, rack: str, enterprise: int, *, sequence: int, dropped: int, least: Severity = Severity.INFO
) -> list[tuple[str, Value]]:
    """The objects of a notification behind snmpTrapOID.0, in the MIB's order: (OID, (SMI type, value)).

    `least`: alarms below it are not counted among the standing ones, this receiver does not hear of them.
    """
    values: dict[str, Value | None] = {
        "sequence": ("Unsigned32", sequence % UNSIGNED32),
        "dropped": ("Counter32", dropped % UNSIGNED32),
        "time": ("OctetString", date_and_time(notice.t_utc_ns)),
        "rack": _text(rack),
        "severity": ("Integer32", notice.severity.value),
        "alarm_state": ("Integer32", ALARM_STATES[notice.state]),
        "alarm_id": _text(notice.alarm),
        "subject": _text(notice.subject),
        "text": _text(notice.text),
        "value": _thousandths(notice.value),
        "threshold": _thousandths(notice.threshold),
        "unit": None if notice.unit is None else _text(notice.unit),
        "seconds_to_overload": None if notice.seconds is None else ("Unsigned32", notice.seconds),
        "standing_alarms": None
        if notice.standing is None
        else ("Gauge32", sum(severity >= least for severity in notice.standing)),
        "mode": None if notice.mode is None else ("Integer32", MODES[notice.mode]),
        "safe_state": None if notice.safe_state is None else ("Integer32", SafeState(notice.safe_state) + 1),
    }
    return [
        (f"1.3.6.1.4.1.{enterprise}.{OBJECT_ROOT}.{OBJECTS[name]}.0", value)
        for name, value in values.items()
        if value is not None
    ]


def date_and_time(t_utc_ns: int) -> bytes:
    """DateAndTime of RFC 2579, 11 octets, in UTC."""
    t = datetime.fromtimestamp(t_utc_ns // NS_PER_S, UTC)
    tenths = t_utc_ns % NS_PER_S // 100_000_000
    return t.year.to_bytes(2, "big") + bytes((t.month, t.day, t.hour, t.minute, t.second, tenths)) + b"+\0\0"


def _text(text: str) -> Value:
    return "OctetString", text.encode()[:TEXT_BYTES].decode(errors="ignore").encode()


def _thousandths(value: float | None) -> Value | None:
    if value is None or not math.isfinite(value):
        return None
    return "Integer32", round(max(-INTEGER32_MAX, min(INTEGER32_MAX, value * 1000.0)))
