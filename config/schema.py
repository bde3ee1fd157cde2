"""Every option: type, default, range, unit. Cross-field checks are in `checks.py`; `default.toml` shows each with a sentence."""

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

PositiveW = Annotated[float, Field(gt=0, le=1_000_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
CREDENTIAL = "credential:"
SECRETS = (
    "auth_key",
    "priv_key",
    "community",
    "password",
    "token",
)  # kept in files or variables, which KEY_file and KEY_env name
NUMBERS = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*")
MOST_NUMBERS = 1000  # of one group: longer than any PDU
CHANNEL = re.compile(r"voltage:L[123N]|voltage:DC|current:[A-Za-z0-9_.-]+/[0-9]+(:reversed)?|unused")


def expand_numbers(text: str) -> list[int]:
    """`"1-3,7"` -> [1, 2, 3, 7]; raises ValueError for anything else or a range that goes back."""
    if not NUMBERS.fullmatch(text):
        raise ValueError(f"{text!r} is not a list of outlet numbers such as '1-12' or '1,3,5-8'")
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        stop = int(last or first)
        if stop < int(first):
            raise ValueError(f"range {part!r} goes back")
        if stop - int(first) + len(numbers) >= MOST_NUMBERS:
            raise ValueError(f"range {part!r} is longer than any PDU")
        numbers.extend(range(int(first), stop + 1))
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{text!r} names an outlet twice")
    return numbers


def shorten_numbers(numbers: Iterable[int]) -> str:
    """The inverse of `expand_numbers`: {1, 2, 3, 7} -> `"1-3,7"`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _checked_numbers(text: str) -> str:
    expand_numbers(text)
    return text


Numbers = Annotated[str, AfterValidator(_checked_numbers)]


HOST_NAME = re.compile(r"(?=.{1,254}$)[\w-]{1,63}(\.[\w-]{1,63})*\.?")


def _checked_host(text: str) -> str:
    number = text.rpartition(".")[2].isdigit()  # no name ends so (RFC 1123, 2.1)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if number or not HOST_NAME.fullmatch(text):
            told = "what is given" if "@" in text else repr(text)  # a URL may hold a password
            raise ValueError(
                f"{told} is not a host name or address such as 'pdu-a.example', '192.0.2.10' or '2001:db8::10';"
                " a port has a key of its own"
            ) from None
    return text


Host = Annotated[str, Field(min_length=1), AfterValidator(_checked_host)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Rack(Section):
    """The rack itself."""

    id: Name = Field("rack", description="name of the rack in records, logs and traps")
    supply: Literal["ac", "dc"] = Field("ac", description="AC mains or a DC bus")
    nominal_v: float = Field(
        230.0, ge=10, le=1000, description="V, nominal outlet voltage (line-to-line where outlets are)"
    )


class Daemon(Section):
    """The process."""

    mode: Literal["advisory", "closed_loop"] = Field(
        "advisory",
        description="advisory computes everything and writes nothing; closed_loop writes to outlets that opted in",
    )
    state_dir: str = Field("/var/lib/rpi-daemon", description="found values, kill switch; kept over restarts")
    runtime_dir: str = Field("/run/rpi-daemon", description="control socket, locks, the raw ring; a tmpfs")
    socket_mode: str = Field(
        "0660", pattern="^0[0-7]{3}$", description="file mode of the control socket: who may connect"
    )
    read_group: GroupName | None = Field(
        None,
        description="group that the control socket belongs to: its members may read; the daemon's own group if not given",
        examples=["rpi-daemon"],
    )
    operate_group: GroupName | None = Field(
        None,
        description="group whose members may operate; if not given, only root and the daemon's user",
        examples=["rpi-operate"],
    )
    admin_group: GroupName | None = Field(
        None,
        description="group whose members may do everything; if not given, only root and the daemon's user",
        examples=["rpi-admin"],
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity that is logged")
    log_format: Literal["json", "text"] = Field("json", description="json for the journal, text for a terminal")


class Sampling(Section):
    """The 1 kHz path."""

    fifo_priority: int = Field(
        80, ge=0, le=99, description="SCHED_FIFO priority of the sampler; 0 keeps the normal scheduler"
    )
    lock_memory: bool = Field(True, description="mlockall(MCL_ONFAULT), so that the sampler never waits for a page")
    raw_ring_s: float = Field(600.0, ge=10, le=7200, description="s of raw 1 kHz scans kept in the ring in runtime_dir")


class History(Section):
    """What is kept on disk, see docs/history.md."""

    enabled: bool = Field(True, description="keep measurements, forecasts, limits and events")
    keep_days: float = Field(30.0, ge=1, le=3650, description="days that are kept; whole weeks are deleted after that")
    keep_events_days: float = Field(365.0, ge=1, le=36_500, description="the same for events: they are small")
    folder: str = Field("history", description="where; a relative path is taken from daemon.state_dir")
    capture: bool = Field(
        True, description="keep the raw 1 kHz around draws that pass their limit, overloads, steps and faults"
    )
    capture_before_s: float = Field(1.0, ge=0.1, le=60, description="s before what happened")
    capture_after_s: float = Field(
        2.0, ge=0.1, le=60, description="s after it; what follows within lengthens the capture, three times at most"
    )
    capture_step_share: float = Field(
        0.5, gt=0, le=10, description="a change within 40 ms above this share of the outlet's rating is a step"
    )
    capture_per_hour: int = Field(
        1, ge=1, le=1000, description="captures an hour of each kind, on average over 3 h; more are counted alone"
    )
    capture_keep: int = Field(200, ge=1, le=100_000, description="captures kept; the oldest are deleted")
    capture_keep_mb: float = Field(200.0, ge=1, le=1e6, description="MB of captures kept")


class Audit(Section):
    """Who wrote which limit and why, see docs/audit.md."""

    keep_days: float = Field(
        400.0,
        ge=1,
        le=36_500,
        description="days that are kept: a year, and time to look at it; whole weeks are deleted",
    )


class Board(Section):
    """A sensor board, or what stands in for one."""

    id: Name = Field(description="name of the board", examples=["board-1"])
    driver: Literal["serial", "iio", "simulated", "replay"] = Field(
        "serial", description="serial and iio (Linux Industrial I/O) are real; the others need no hardware"
    )
    board_id: int = Field(0, ge=0, le=255, description="id that the board sends in its frames")
    port: str | None = Field(
        None,
        description="serial: device, best a /dev/serial/by-id path",
        examples=["/dev/serial/by-id/usb-sensor-board-0001"],
    )
    baud: int = Field(3_000_000, ge=9600, le=20_000_000, description="serial: line rate, bit/s; USB CDC ignores it")
    iio_device: str | None = Field(
        None, description="iio: name or folder of the device", examples=["/sys/bus/iio/devices/iio:device0"]
    )
    iio_gains: list[Annotated[float, Field(gt=0, le=1e6)]] | None = Field(
        None,
        description="iio: A or V on the line per V or A at each input, in the order of channels; 1 if not given",
        examples=[[20.0, 20.0, 100.0]],
    )
    trace: str | None = Field(None, description="replay: recorded trace (CSV or NPZ)", examples=["trace.csv"])
    calibration: str | None = Field(
        None,
        description="file that `rpi-daemon calibrate` wrote; the board's own scale if not given",
        examples=["board-1.calibration.json"],
    )
    channels: list[str] = Field(
        min_length=1,
        max_length=128,
        description="what each input is, in the board's order: 'voltage:L1', 'current:PDU/OUTLET' or 'unused'; ':reversed' behind a current turns a transformer that is mounted the wrong way round",
        examples=[["current:pdu-a/1", "current:pdu-a/2", "voltage:L1"]],
    )

    @field_validator("channels")
    @classmethod
    def _channels(cls, value: list[str]) -> list[str]:
        for text in value:
            if not CHANNEL.fullmatch(text):
                raise ValueError(f"{text!r} is not 'voltage:L1|L2|L3|DC', 'current:PDU/OUTLET[:reversed]' or 'unused'")
        return value

    def currents(self) -> dict[str, tuple[int, bool]]:
        """Outlet id -> (its current channel, whether its transformer is mounted the wrong way round)."""
        parts = [channel.split(":") for channel in self.channels]
        return {p[1]: (i, p[-1] == "reversed") for i, p in enumerate(parts) if p[0] == "current"}


class Pdu(Section):
    """A power distribution unit, a power shelf, or a meter."""

    id: Name = Field(description="name of the PDU", examples=["pdu-a"])
    driver: Literal["snmp", "modbus_tcp", "modbus_rtu"] = Field("snmp", description="protocol")
    profile: str = Field(
        description="snmp: vendor profile; modbus: register map; by name, or the path of your own",
        examples=["raritan_px"],
    )
    host: Host | None = Field(
        None, description="snmp, modbus_tcp: address of the management port", examples=["192.0.2.10"]
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="snmp: UDP port, 161 if not given; modbus_tcp: TCP port, 502", examples=[161]
    )
    unit: int | None = Field(
        None, ge=0, le=255, description="snmp: place in a chain of PDUs; the profile's own if not given", examples=[1]
    )
    serial_port: str | None = Field(
        None,
        description="modbus_rtu: device of the bus; several devices may share it",
        examples=["/dev/serial/by-id/usb-rs485-0001"],
    )
    baud: int = Field(19_200, ge=300, le=1_000_000, description="modbus_rtu: line rate, bit/s")
    parity: Literal["none", "even", "odd"] = Field("none", description="modbus_rtu: parity")
    stop_bits: int = Field(1, ge=1, le=2, description="modbus_rtu: stop bits")
    device_id: int = Field(1, ge=0, le=247, description="modbus: device (unit) number on the bus or behind the gateway")
    version: Literal["3", "2c"] = Field("3", description="SNMP version; 2c is plain text and needs allow_insecure")
    user: str | None = Field(None, description="v3: user name", examples=["rpi-daemon"])
    auth: Literal["SHA-1", "SHA-256", "SHA-512"] = Field("SHA-256", description="v3: authentication")
    auth_key_file: str | None = Field(
        None, description="v3: file with the authentication pass phrase, mode 0600", examples=["auth.key"]
    )
    auth_key_env: str | None = Field(
        None, description="v3: or the environment variable that holds it", examples=["RPI_PDU_KEY"]
    )
    priv: Literal["AES-128"] = Field("AES-128", description="v3: encryption")
    priv_key_file: str | None = Field(
        None, description="v3: file with the encryption pass phrase, mode 0600", examples=["priv.key"]
    )
    priv_key_env: str | None = Field(
        None, description="v3: or the environment variable that holds it", examples=["RPI_PDU_KEY"]
    )
    community_file: str | None = Field(
        None, description="2c: file with the community, mode 0600", examples=["community"]
    )
    community_env: str | None = Field(
        None, description="2c: or the environment variable that holds it", examples=["RPI_PDU_COMMUNITY"]
    )
    allow_insecure: bool = Field(
        False,
        description="accept a protocol without authentication (SNMP 2c, Modbus TCP) on this PDU; stays visible in status",
    )
    accept_unproven: bool = Field(False, description="write with a profile that was never proven on this device")
    timeout_s: float | None = Field(
        None,
        ge=0.02,
        le=10,
        description="s to wait for one reply; if not given, snmp 0.25, modbus 0.5",
        examples=[0.5],
    )
    retries: int | None = Field(
        None,
        ge=0,
        le=5,
        description="more tries after the first; if not given, snmp 1, modbus 0 (there a write is never repeated)",
        examples=[1],
    )
    poll_s: float = Field(1.0, ge=0.2, le=60, description="s between two polls of metering and limits")
    writes_per_day: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="writes per outlet and day, protective ones apart; the profile's own number if not given",
        examples=[200],
    )


class Outlet(Section):
    """One outlet, or several alike."""

    pdu: Name = Field(description="PDU that has the outlet", examples=["pdu-a"])
    numbers: Numbers = Field(description="outlet numbers on the PDU: '7', '1-24' or '1,3,5-8'", examples=["1-2"])
    load: str = Field(
        min_length=1,
        description="what it feeds; '{n}' becomes the outlet number; two outlets with one load are its two feeds",
        examples=["server-{n}"],
    )
    phases: list[Literal["L1", "L2", "L3", "DC"]] = Field(
        ["L1"], min_length=1, max_length=2, description="one phase, or two line-to-line"
    )
    meter: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.{}-]{1,80}/([0-9]|\{n\}){1,9}$",
        description="slow meter that stands for outlets which no board measures: 'PDU/{n}'; the outlet's own PDU if not given",
        examples=["meter-1/{n}"],
    )
    rating_w: PositiveW = Field(description="W, what the outlet may carry continuously", examples=[600.0])
    static_safe_w: PositiveW = Field(
        description="W, limit at start, at stop, after a crash and where nothing is measured any more", examples=[400.0]
    )
    closed_loop: bool = Field(False, description="the outlet opts in to limits written by the daemon")


class Load(Section):
    """The owner's word on a load; loads that are not listed have these defaults."""

    id: str = Field(min_length=1, description="load named by an outlet", examples=["server-1"])
    tier: int = Field(1, ge=0, le=9, description="priority tier, 0 is served first")
    floor_w: float = Field(
        0.0, ge=0, le=1_000_000, description="W it cannot do without; one outlet alone must carry it"
    )
    demand_w: PositiveW | None = Field(
        None,
        description="W it may be granted at most; the rating of its (smaller) outlet if not given",
        examples=[500.0],
    )
    sheddable: bool = Field(False, description="may be switched off as a last resort")
    critical: bool = Field(False, description="must never be switched off")


class Cap(Section):
    """A server's own power cap, set on its management controller (BMC). This one is enforced: the server throttles itself."""

    load: str = Field(
        min_length=1, description="load named by an outlet; one cap holds for all its outlets", examples=["server-1"]
    )
    driver: Literal["redfish"] = Field("redfish", description="protocol")
    host: Host = Field(description="address of the BMC", examples=["192.0.2.30"])
    port: int = Field(443, ge=1, le=65535, description="TCP port")
    user: str = Field(min_length=1, description="user name on the BMC", examples=["rpi-daemon"])
    password_file: str | None = Field(None, description="file with the password, mode 0600", examples=["bmc.key"])
    password_env: str | None = Field(
        None, description="or the environment variable that holds it", examples=["RPI_BMC_PASSWORD"]
    )
    tls_ca_file: str | None = Field(
        None,
        description="PEM file of the authority that signed the BMC's certificate; the system's if not given",
        examples=["bmc-ca.pem"],
    )
    tls_fingerprint: str | None = Field(
        None,
        pattern=r"^([0-9A-Fa-f]{2}:?){32}$",
        description="SHA-256 of a self-signed certificate, in place of an authority",
        examples=["00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff"],
    )
    allow_insecure: bool = Field(False, description="do not verify the BMC's certificate; stays visible in status")
    resource: str | None = Field(
        None,
        pattern=r"^/redfish/\S+$",
        description="path of the chassis or property on the BMC, where several carry a cap; found by itself if not given",
        examples=["/redfish/v1/Chassis/Node1"],
    )
    closed_loop: bool = Field(False, description="the server opts in to caps written by the daemon")
    lowest_w: PositiveW | None = Field(
        None, description="W, never capped below this; what the BMC allows if not given", examples=[200.0]
    )
    timeout_s: float = Field(2.0, ge=0.1, le=60, description="s to wait for one answer")
    poll_s: float = Field(5.0, ge=0.5, le=300, description="s between two polls of power and cap")


class Telemetry(Section):
    """What a load's host says of itself (CPU, memory, network, disk); optional, see docs/telemetry.md."""

    load: str = Field(min_length=1, description="load named by an outlet", examples=["server-1"])
    driver: Literal["node_exporter", "feed"] = Field(
        "node_exporter",
        description="node_exporter is asked over HTTP; feed: an agent of yours sends JSON lines to telemetry.sock in runtime_dir",
    )
    url: str | None = Field(
        None, description="node_exporter: address of its metrics", examples=["https://192.0.2.40:9100/metrics"]
    )
    poll_s: float = Field(
        1.0,
        ge=1,
        le=5,
        description="s between two scrapes, or lines of the feed; after three without one it is not known",
    )
    timeout_s: float = Field(1.0, ge=0.1, le=5, description="node_exporter: s to wait for an answer")
    user: str | None = Field(
        None, min_length=1, description="user name, for basic authentication", examples=["rpi-daemon"]
    )
    password_file: str | None = Field(None, description="file with its password, mode 0600", examples=["host.key"])
    password_env: str | None = Field(
        None, description="or the environment variable that holds it", examples=["RPI_HOST_PASSWORD"]
    )
    token_file: str | None = Field(
        None, description="in place of a user: file with a bearer token, mode 0600", examples=["host.token"]
    )
    token_env: str | None = Field(
        None, description="or the environment variable that holds it", examples=["RPI_HOST_TOKEN"]
    )
    tls_ca_file: str | None = Field(
        None,
        description="PEM file of the authority that signed the host's certificate; the system's if not given",
        examples=["hosts-ca.pem"],
    )
    tls_fingerprint: str | None = Field(
        None,
        pattern=r"^([0-9A-Fa-f]{2}:?){32}$",
        description="SHA-256 of a self-signed certificate, in place of an authority",
        examples=["00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff"],
    )
    allow_insecure: bool = Field(
        False, description="accept plain HTTP, or do not verify the certificate; stays visible in status"
    )
    network_mbit_s: float | None = Field(
        None,
        gt=0,
        le=10_000_000,
        description="Mbit/s of network interfaces whose speed the host does not tell (virtual machines); without it their share is not known",
        examples=[1000.0],
    )


class Traps(Section):
    """What facilities hear by SNMP; see config/RPI-DAEMON-MIB.txt."""

    enterprise: int = Field(
        32_473,
        ge=1,
        le=2**31 - 1,
        description="enterprise number of our MIB; 32473 is reserved for documentation (RFC 5612)",
    )
    heartbeat_s: float = Field(300.0, ge=0, le=86_400, description="s between two heartbeats; 0 sends none")
    per_minute: int = Field(
        60,
        ge=1,
        le=1200,
        description="messages per sink and minute at most; informs wait, traps are counted as dropped",
    )
    queue: int = Field(
        20_000,
        ge=100,
        le=1_000_000,
        description="informs kept on disk for a sink that is down; beyond it the oldest are dropped and counted",
    )


class TrapSink(Section):
    """A receiver of our traps."""

    id: Name = Field(description="name of the receiver", examples=["facility"])
    host: Host = Field(description="address", examples=["192.0.2.20"])
    port: int = Field(162, ge=1, le=65535, description="UDP port")
    kind: Literal["inform", "trap"] = Field(
        "inform", description="inform is acknowledged and repeated until then; trap is sent once"
    )
    version: Literal["3", "2c"] = Field("3", description="SNMP version; 2c is plain text and needs allow_insecure")
    user: str | None = Field(None, description="v3: user name", examples=["rpi-daemon"])
    auth: Literal["SHA-1", "SHA-256", "SHA-512"] = Field("SHA-256", description="v3: authentication")
    auth_key_file: str | None = Field(
        None, description="v3: file with the authentication pass phrase, mode 0600", examples=["trap-auth.key"]
    )
    auth_key_env: str | None = Field(
        None, description="v3: or the environment variable that holds it", examples=["RPI_TRAP_KEY"]
    )
    priv: Literal["AES-128"] = Field("AES-128", description="v3: encryption")
    priv_key_file: str | None = Field(
        None, description="v3: file with the encryption pass phrase, mode 0600", examples=["trap-priv.key"]
    )
    priv_key_env: str | None = Field(
        None, description="v3: or the environment variable that holds it", examples=["RPI_TRAP_KEY"]
    )
    community_file: str | None = Field(
        None, description="2c: file with the community, mode 0600", examples=["trap-community"]
    )
    community_env: str | None = Field(
        None, description="2c: or the environment variable that holds it", examples=["RPI_TRAP_COMMUNITY"]
    )
    allow_insecure: bool = Field(False, description="accept version 2c for this sink; stays visible in status")
    min_severity: Literal["info", "warning", "critical"] = Field("info", description="least severity that is sent")
    timeout_s: float = Field(2.0, ge=0.1, le=60, description="s to wait for an acknowledgement")


class Constraint(Section):
    """A rating that the limits of some outlets must keep together."""

    id: Name = Field(description="name of the breaker, phase, feed or rack budget", examples=["breaker-1"])
    kind: Literal["breaker", "phase", "feed", "rack"] = Field(description="what it is", examples=["breaker"])
    rating_w: PositiveW | None = Field(None, description="W", examples=[3680.0])
    rating_va: PositiveW | None = Field(None, description="VA", examples=[3680.0])
    rating_a: Annotated[float, Field(gt=0, le=10_000)] | None = Field(None, description="A", examples=[16.0])
    derate: Fraction = Field(0.8, description="share of the rating that may be used continuously")
    outlets: list[str] = Field(min_length=1, description="outlets on it: 'PDU/1-12', 'PDU/*'", examples=[["pdu-a/*"]])


class Forecasting(Section):
    """The 5 s forecast."""

    primary: Literal[
        "mixture", "lstm", "ridge", "periodic", "median_5s", "median_20s", "median_60s", "ewma", "persistence"
    ] = Field("mixture", description="forecaster: all experts mixed by how well each has done, or one of them alone")
    model: str = Field("shipped", description="model directory, or 'shipped'")


class Retrain(Section):
    """Learning the rack's own loads at night, see docs/retraining.md. Needs the extra `train` and the history."""

    enabled: bool = Field(True, description="train by itself; a model that was promoted stands either way")
    hours: str = Field(
        "01:00-05:00",
        pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
        description="local time of day in which a training may begin and run; may pass midnight",
    )
    max_load: Fraction = Field(
        0.7, description="no constraint may carry more than this part of its derated rating, mean of 15 min"
    )
    min_history_days: float = Field(
        2.0, ge=0, le=365, description="days that must be stored before a candidate may stand by itself"
    )
    history_days: float = Field(
        7.0, gt=0, le=365, description="days that are learned from, the newest fifth to judge by"
    )
    minutes: float = Field(30.0, ge=0.05, le=600, description="a training that takes longer is ended")
    memory_mb: float = Field(500.0, ge=300, le=16_000, description="MB; a training that takes more is ended")
    keep_models: int = Field(5, ge=2, le=100, description="trained models kept; the one that stands always is")
    watch_hours: float = Field(
        24.0, ge=0, le=720, description="h that a promoted model is compared with the one before it, live; 0 trusts it"
    )


class Corrector(Section):
    """What margins aim at, and how thresholds of `alarm` kinds are held up."""

    target: float = Field(
        0.01, gt=0, lt=1, description="long-run share of readings whose running maximum may pass the request"
    )
    meter_noise_w: float = Field(
        0.2,
        ge=0,
        le=10_000,
        description="W, what the meter shows beside the draw; a margin is never below it. What is seen of it is learned anyway",
    )
    start_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="s over which an outlet's first requests come down from its static_safe_w; 0: what is forecast at once",
    )
    hold_s: float = Field(
        5.0, gt=0, le=3600, description="s that the allocation keeps room for what was requested, before others get it"
    )
    censor_band: float = Field(
        0.05, ge=0, lt=1, description="an enforced limit this close to the draw hides the demand"
    )
    growth_per_s: float = Field(
        1.5, gt=1, le=10, description="factor per second by which the request of a capped load grows"
    )
    blind_hold_s: float = Field(
        5.0, ge=0, le=3600, description="s that the last request holds without readings; then STATIC_SAFE"
    )
    alarm_learn_s: float = Field(
        600.0,
        ge=0,
        le=604_800,
        description="s from the first reading that an alarm threshold stays at STATIC_SAFE or above",
    )
    alarm_hold_s: float = Field(
        86_400.0, gt=0, le=604_800, description="s: an alarm threshold clears the largest request of this span"
    )
    alarm_headroom: float = Field(
        0.1, ge=0, le=10, description="part by which it clears it: an alarm that cries wolf is worse than none"
    )
    alarm_step: float = Field(
        0.05, gt=0, le=1, description="more headroom, part of the rating, for each escape episode beyond ..."
    )
    alarm_episodes_per_day: float = Field(1.0, gt=0, le=1000, description="... this many per outlet and day")


class Allocator(Section):
    """How the rack's power is shared."""

    slack_share: float = Field(
        0.5, ge=0, le=1, description="part of the unused room that is handed out; the rest makes raises immediate"
    )
    assumed_power_factor: Fraction = Field(0.9, description="power factor where none is measured")
    lowest_power_factor: Fraction = Field(
        0.5, description="a lower reading is an idle supply's, not the load's that a limit is for"
    )
    lowest_voltage: Fraction = Field(0.8, description="part of nominal_v below which a phase is lost, not low")


class Guard(Section):
    """The safe-state ladder and the rules for writes."""

    recover_s: float = Field(5.0, ge=0, le=3600, description="s of health before a safe state is left upwards")
    trip_margin_share: float = Field(
        0.05, ge=0, le=1, description="a limit that cuts off stays this part of the rating above the draw"
    )
    lowest_limit_w: float = Field(
        10.0,
        ge=0,
        le=10_000,
        description="W, lowest limit written, or one step of the device where that is more; zero means no threshold on some devices",
    )


class Actuator(Section):
    """Write economy: many PDUs keep thresholds in flash."""

    deadband: float = Field(0.03, ge=0, le=1, description="part of the rating; a smaller change is not worth a write")
    lower_hold_s: float = Field(
        60.0, ge=0, le=86_400, description="s that a limit stays above what is wanted before it is lowered"
    )
    raise_reserve: float = Field(0.25, ge=0, le=1, description="part of the day's writes that lowering may not use")
    lease_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="s without a tick after which nothing but STATIC_SAFE is written (what stands stays), and without an "
        "answer after which a write is forgotten",
    )
    retry_s: float = Field(0.4, ge=0, le=60, description="s between two attempts on one outlet")
    attempts: int = Field(3, ge=1, le=100, description="attempts after which the outlet counts as uncontrolled")
    uncontrolled_s: float = Field(600.0, gt=0, le=86_400, description="s that it then stays so")
    foreign_changes: int = Field(
        3, ge=1, le=100, description="changes by somebody else on one PDU after which we stop there ..."
    )
    foreign_window_s: float = Field(60.0, gt=0, le=86_400, description="... within this time, s")
    step_w: float = Field(1.0, gt=0, le=10_000, description="W, step of a limit until the device has told its own")


class Schedule(Section):
    """Work that is known beforehand."""

    load: str = Field(min_length=1, description="load that it runs on", examples=["server-1"])
    at: str = Field(
        pattern=r"^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?$", description="local time of day", examples=["02:00"]
    )
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = Field(
        ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], min_length=1, description="days of the week"
    )
    delta_w: float = Field(ge=-1_000_000, le=1_000_000, description="W by which the draw changes", examples=[150.0])
    for_s: float = Field(3600.0, gt=0, le=86_400, description="s that it lasts")


class OutletRow(BaseModel):
    """One outlet after expansion of its group."""

    model_config = ConfigDict(frozen=True)
    id: str
    pdu: str
    number: int
    load: str
    phases: tuple[str, ...]
    rating_w: float
    static_safe_w: float
    closed_loop: bool
    meter: str  # 'PDU/NUMBER' whose own reading stands for the outlet where no board measures it
    group: int  # which [[outlet]] table it comes from


class Config(Section):
    """The whole file."""

    rack: Rack = Rack()
    daemon: Daemon = Daemon()
    sampling: Sampling = Sampling()
    history: History = History()
    audit: Audit = Audit()
    board: list[Board] = Field([], description="sensor boards; outlets that none measures go by a slow meter")
    pdu: list[Pdu] = Field(min_length=1, description="power distribution units")
    outlet: list[Outlet] = Field(min_length=1, description="outlets")
    load: list[Load] = []
    cap: list[Cap] = []
    telemetry: list[Telemetry] = []
    constraint: list[Constraint] = Field(min_length=1, description="breakers, phases, feeds, the rack")
    forecast: Forecasting = Forecasting()
    retrain: Retrain = Retrain()
    corrector: Corrector = Corrector()
    allocator: Allocator = Allocator()
    guard: Guard = Guard()
    actuator: Actuator = Actuator()
    schedule: list[Schedule] = []
    traps: Traps = Traps()
    trap_sink: list[TrapSink] = []
    # these are set by the loader; a file that names them has an unknown key
    base_dir: str = Field("", exclude=True, description="folder that relative paths are taken from")
    file: str = Field("", exclude=True, description="where it was read from; empty: from a text")
    sha256: str = Field("", exclude=True, description="of its bytes")

    def outlets(self) -> list[OutletRow]:
        """Every outlet, in file order: the rack's outlet order."""
        return [
            OutletRow(
                id=f"{group.pdu}/{number}",
                pdu=group.pdu,
                number=number,
                load=group.load.replace("{n}", str(number)),
                phases=tuple(group.phases),
                rating_w=group.rating_w,
                static_safe_w=group.static_safe_w,
                closed_loop=group.closed_loop,
                meter=(group.meter or f"{group.pdu}/{{n}}").replace("{n}", str(number)),
                group=i,
            )
            for i, group in enumerate(self.outlet)
            for number in expand_numbers(group.numbers)
        ]

    def match_outlets(self, pattern: str) -> list[str]:
        """Ids that a pattern such as 'a/1-12', 'a/*' or '*' names; raises ValueError if it is none of these."""
        ids = [outlet.id for outlet in self.outlets()]
        if pattern == "*":
            return ids
        pdu, slash, numbers = pattern.partition("/")
        if not slash:
            raise ValueError(f"{pattern!r} is not 'PDU/NUMBERS', 'PDU/*' or '*'")
        if numbers == "*":
            return [name for name in ids if name.startswith(f"{pdu}/")]
        wanted = {f"{pdu}/{number}" for number in expand_numbers(numbers)}
        unknown = wanted - set(ids)
        if unknown:
            raise ValueError(f"{pattern!r}: no outlet {', '.join(sorted(unknown))}")
        return [name for name in ids if name in wanted]

    def path(self, text: str) -> Path:
        """A path of the file, relative ones taken from the file's own folder."""
        return Path(self.base_dir) / text

    def secret(self, section: Pdu | Cap | Telemetry | TrapSink, name: str) -> str:
        """One of `SECRETS`, from its file or environment; never logged."""
        return secret_of(section, name, Path(self.base_dir))


def secret_of(section: Pdu | Cap | Telemetry | TrapSink, name: str, base_dir: Path) -> str:
    """As `Config.secret`, of a section without a configuration around it."""
    variable = getattr(section, f"{name}_env")
    if variable is not None:
        return os.environ.get(variable, "")
    return secret_path(getattr(section, f"{name}_file"), base_dir).read_text(encoding="utf-8").strip()


def secret_path(text: str, base_dir: Path, env: Mapping[str, str] = os.environ) -> Path:
    """The file that a `..._file` option names; `credential:NAME` is one that systemd hands over (systemd.exec(5), Credentials).

    Within a service: its credential `rpi-daemon_NAME` (of the folder that the unit loads), or `NAME` (of a `LoadCredential=`
    of its own). At a terminal: the file in the folder `credentials` beside the configuration.
    """
    if not text.startswith(CREDENTIAL):
        return base_dir / text
    name = text.removeprefix(CREDENTIAL)
    handed_over = env.get("CREDENTIALS_DIRECTORY")
    if handed_over is None:
        return base_dir / "credentials" / name
    own = Path(handed_over) / name
    return own if own.exists() else Path(handed_over) / f"rpi-daemon_{name}"
