"""`rpi-daemon discover` on simulated PDUs over real UDP: every recording gives a configuration that the daemon runs with."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rpi_daemon._fastpath.core import Varbind, decode_v2c, encode_v2c
from rpi_daemon.cli import main
from rpi_daemon.devices import load_checked
from rpi_daemon.discover import look
from rpi_daemon.drivers.pdu.snmp import SYS_DESCR, SYS_OBJECT_ID
from rpi_daemon.drivers.pdu.snmp_session import OCTETS, OID, SnmpEndpoint
from rpi_daemon.errors import DeviceError

GET, RESPONSE = 0xA0, 0xA2
KEY = "authentication-of-it"
FAST = ["--rate", "200", "--timeout", "0.3"]

# recording: (profile, model, what is numbered, how many are metered, W in all, feeds, V)
EXPECTED: dict[str, tuple[str, str, str, int, float, int, float]] = {
    "apc_ap8853": ("apc_rpdu2_phases", "AP8853", "phases", 1, 1140.0, 1, 240.0),
    "apc_apdu9959eu3": ("apc_rpdu2_phases", "APDU9959EU3", "phases", 1, 1160.0, 1, 230.0),
    "cyberpower_pdu81005": ("cyberpower_epdu2", "PDU81005", "outlets", 8, 220.0, 1, 230.0),
    "eatonpdu_2": ("eaton_epdu", "EMA114-10", "outlets", 24, 1568.0, 1, 120.0),
    "raritan-pdu_px2": ("raritan_px", "PX2", "outlets", 12, 138.0, 1, 230.0),
    "raritan-pdu_px3": ("raritan_px", "PX3-5493U-K2", "outlets", 24, 1671.0, 1, 230.0),
    "sentry3_switched": ("sentry3", "CWG-30VDE455/CB", "outlets", 30, 1403.6, 3, 208.0),
    "sentry4": ("sentry4_cords", "C2S42CE-YCMFAM00", "cords", 2, 2966.0, 2, 208.0),
    "vertiv-pdu_mn03edr1": ("vertiv_v5_phases", "MN03EDR1-15P3B8-6PS15D0H10-S", "phases", 3, 4399.0, 3, 208.0),
}


@contextmanager
def simulated(*arguments: str) -> Iterator[int]:
    """A simulated PDU in a process of its own; its port."""
    line = [sys.executable, "-P", "-m", "rpi_daemon.drivers.pdu.sim", *arguments]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(json.loads(process.stdout.readline())["port"])
        finally:
            process.stdin.close()
            process.wait(10.0)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the secrets, of mode 0600."""
    for name, text in (("community", "public"), ("key", KEY), ("other", "another-pass-phrase")):
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_text(text + "\n")
    return tmp_path


def discover(port: int, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["discover", "127.0.0.1", "--port", str(port), *FAST, *arguments])


def with_2c(keys: Path) -> list[str]:
    return ["--version", "2c", "--community-file", str(keys / "community")]


def with_v3(keys: Path, user: str = "rack", auth: str = "key", priv: str = "key") -> list[str]:
    return ["--user", user, "--auth-key-file", str(keys / auth), "--priv-key-file", str(keys / priv)]


def served_v3(keys: Path) -> list[str]:
    key = str(keys / "key")
    return ["--community", "", "--user", "rack", "--auth-key-file", key, "--priv-key-file", key]


def test_every_recording_at_hand_is_discovered(snmprec_folder: Path) -> None:
    assert {path.stem for path in snmprec_folder.glob("*.snmprec")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recording_gives_a_configuration_that_is_checked_and_run(snmprec_folder: Path, keys: Path, name: str) -> None:
    profile, model, counts, n, watts, feeds, volts = EXPECTED[name]
    output = keys / "rack.toml"
    with simulated("--snmprec", str(snmprec_folder / f"{name}.snmprec")) as port:
        found = discover(port, *with_2c(keys), "--output", str(output), "--json")
        assert found.exit_code == 0, found.output
        told = json.loads(found.stdout.splitlines()[-1])
        assert (told["profile"], told["model"], told["counts"]) == (profile, model, counts)
        assert len(told["outlets"]) == n
        assert told["total_w"] == pytest.approx(watts, abs=1.0)
        assert told["nominal_v"] == volts
        assert told["config"] == output.read_text()

        config = load_checked(output)
        assert sorted(row.number for row in config.outlets()) == [row["number"] for row in told["outlets"]]
        assert (config.daemon.mode, config.pdu[0].allow_insecure) == ("advisory", True)
        assert not any(row.closed_loop for row in config.outlets())
        assert len(config.constraint) == feeds
        assert command("check-config", output)["outlets"] == n
        run = command("dry-run", output, "--seconds", "2")
        assert run["outlets"] == n
        assert run["writes_proposed"] is None
    assert "EDIT" in told["config"]


def command(name: str, config: Path, *options: str) -> dict[str, Any]:
    """The answer of a command in a process of its own, as the owner runs it next."""
    line = [sys.executable, "-P", "-m", "rpi_daemon", name, "-c", str(config), *options, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60.0, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_credentials_stay_names_that_the_service_understands(snmprec_folder: Path, keys: Path) -> None:
    (keys / "credentials").mkdir()
    (keys / "key").rename(keys / "credentials" / "a.key")
    recording = str(snmprec_folder / "eatonpdu_2.snmprec")
    way_in = ["--user", "rack", "--auth-key-file", "credential:a.key", "--priv-key-file", "credential:a.key"]
    served = [str(keys / "credentials" / "a.key") if word == str(keys / "key") else word for word in served_v3(keys)]
    with simulated("--snmprec", recording, "--profile", "eaton_epdu", *served) as port:
        found = discover(port, *way_in, "-o", str(keys / "rack.toml"))
    assert found.exit_code == 0, found.output
    pdu = load_checked(keys / "rack.toml").pdu[0]
    assert (pdu.auth_key_file, pdu.priv_key_file) == ("credential:a.key", "credential:a.key")


def test_by_v3_it_says_what_the_limit_is_and_who_proves_the_profile(snmprec_folder: Path, keys: Path) -> None:
    recording = str(snmprec_folder / "eatonpdu_2.snmprec")
    with simulated("--snmprec", recording, "--profile", "eaton_epdu", *served_v3(keys)) as port:
        found = discover(port, *with_v3(keys), "--id", "left")
    assert found.exit_code == 0, found.output
    for words in (
        "Eaton EMA114-10, firmware 05.01.0002, serial H619P44058",
        "eaton_epdu: proven on a recording of a real device",
        "24 outlets: power, current, energy, state; 1568 W in all, its inlet shows 1589 W",
        "upper critical in A of outlets 1-24: alarm, it tells when it is passed, holds nothing back",
        "wrote nothing",
        'id = "left"',
        "rating_a = 16.0                 # as the device says",
        "EDIT: an even share of what the weakest part before it carries; 1-3,10-12,16-18,23 draw more now",
    ):
        assert words in found.stdout
    assert KEY not in found.output


def test_ratings_of_outlets_inlet_and_breakers_are_the_devices_own(snmprec_folder: Path, keys: Path) -> None:
    output = keys / "rack.toml"
    with simulated("--snmprec", str(snmprec_folder / "raritan-pdu_px3.snmprec")) as port:
        found = discover(port, *with_2c(keys), "-o", str(output))
    assert found.exit_code == 0, found.output
    config = load_checked(output)
    ratings = {row.number: row.rating_w for row in config.outlets()}
    assert {n: w for n, w in ratings.items() if w != 2300.0} == dict.fromkeys((6, 12, 18, 24), 3680.0)  # C13 and C19
    assert config.constraint[0].rating_a == 32.0
    assert {row.static_safe_w for row in config.outlets()} == {110.0}  # of a breaker of 16 A, should it carry all 24
    assert "it has 2 breakers of 16 A: give each a constraint" in output.read_text()


def test_switched_outlets_without_metering_are_named(snmprec_folder: Path, keys: Path) -> None:
    with simulated("--snmprec", str(snmprec_folder / "apc_apdu9959eu3.snmprec")) as port:
        found = discover(port, *with_2c(keys))
    assert "24 outlets can be seen with profile 'apc_spdu', but the device does not meter them" in found.stdout


def test_outlets_that_all_read_zero_are_said_to(keys: Path) -> None:
    with simulated("--profile", "raritan_px", "--outlets", "4", "--power-w", "0") as port:
        found = discover(port, *with_2c(keys))
    assert "all 4 outlets read zero: nothing draws power, or this model does not meter outlets" in found.stdout


def test_an_unproven_profile_says_so(keys: Path) -> None:
    with simulated("--profile", "panduit_g5", "--outlets", "4") as port:
        found = discover(port, *with_2c(keys))
    assert found.exit_code == 0, found.output
    assert "panduit_g5: shaped after the vendor's MIB, not seen on hardware: it meters only, until" in found.stdout


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output


def test_a_family_that_no_profile_knows(keys: Path) -> None:
    recording = keys / "other.snmprec"
    recording.write_text("1.3.6.1.2.1.1.1.0|4|A PDU of tomorrow\n1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.13742.9\n")
    output = keys / "rack.toml"
    with simulated("--snmprec", str(recording)) as port:
        result = discover(port, *with_2c(keys), "-o", str(output))
    refused(
        result, 4, "'A PDU of tomorrow' with sysObjectID 1.3.6.1.4.1.13742.9: no profile knows it", "nearest is 'rari"
    )
    assert not output.exists()


def test_a_known_family_that_shows_no_reading(keys: Path) -> None:
    recording = keys / "bare.snmprec"
    recording.write_text("1.3.6.1.2.1.1.1.0|4|PX3\n1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.13742.6\n")
    with simulated("--snmprec", str(recording)) as port:
        result = discover(port, *with_2c(keys))
    refused(result, 4, "of a known family (raritan_px)", "no outlet, phase or inlet with a reading")


def test_nobody_is_there(keys: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        refused(
            discover(port, *with_2c(keys), "--retries", "0"), 4, "did not answer 1 tries of 0.3 s; check host and port"
        )
        refused(
            discover(port, *with_v3(keys), "--retries", "0"), 4, "check host, port and that SNMPv3 is enabled on it"
        )
    refused(discover(port, *with_2c(keys)), 4, "nothing listens at SNMP agent")


def test_a_wrong_community_is_told_from_a_silent_host_and_nothing_weaker_is_tried(keys: Path) -> None:
    with simulated("--profile", "raritan_px", "--outlets", "2", "--community", "another") as port:
        refused(discover(port, *with_2c(keys), "--retries", "0"), 5, "is there, but does not answer to this community")


@pytest.mark.parametrize(
    ("user", "auth", "priv", "says"),
    [
        ("nobody", "key", "key", "user 'nobody' is unknown to it"),
        ("rack", "other", "key", "the authentication key or algorithm (SHA-256) is wrong"),
        ("rack", "key", "other", "privacy key"),
    ],
)
def test_wrong_v3_credentials_are_told_apart(keys: Path, user: str, auth: str, priv: str, says: str) -> None:
    with simulated("--profile", "raritan_px", "--outlets", "2", *served_v3(keys)) as port:
        result = discover(port, *with_v3(keys, user, auth, priv), "--retries", "0")
    assert result.exit_code in (4, 5), result.output  # an agent may meet a wrong privacy key with silence
    assert says in result.stderr
    assert result.stdout == ""


def test_options_that_do_not_fit_are_told_all_at_once(keys: Path) -> None:
    (keys / "key").chmod(0o644)
    result = CliRunner().invoke(main, ["discover", "127.0.0.1", "--auth-key-file", str(keys / "key"), "--id", "a b"])
    assert result.exit_code == 3
    assert result.stderr.splitlines()[0].startswith("--id: ")
    result = CliRunner().invoke(main, ["discover", "127.0.0.1", "--auth-key-file", str(keys / "key")])
    assert result.exit_code == 3
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == [
        "--user",
        "--auth-key-file",
        "--priv-key-file",
    ]


def test_a_file_that_is_there_is_not_written_over(keys: Path) -> None:
    output = keys / "rack.toml"
    output.write_text("mine")
    refused(discover(1, *with_2c(keys), "-o", str(output)), 3, "is there already; name a new file")
    assert output.read_text() == "mine"


class Taciturn(asyncio.DatagramProtocol):
    """An agent that says who it is, and nothing else."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        pdu = decode_v2c(data)[1]
        if pdu.tag == GET:
            known = {SYS_DESCR: (OCTETS, b"PX3 of the back row"), SYS_OBJECT_ID: (OID, "1.3.6.1.4.1.13742.6")}
            values = [Varbind(v.oid, *known[v.oid]) for v in pdu.varbinds]
            self._transport.sendto(encode_v2c(b"public", RESPONSE, pdu.request_id, values), address)


def test_an_agent_that_falls_silent_is_told_with_what_it_had_said() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Taciturn, ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        try:
            endpoint = SnmpEndpoint(
                "127.0.0.1", port, "2c", community="public", timeout_s=0.05, retries=0, requests_per_s=200.0
            )
            said = r"did not answer .*it had said before that it is 'PX3 of the back row' \(sysObjectID 1\.3\.6\.1\.4\.1\.13742\.6\)"
            with pytest.raises(DeviceError, match=said):
                await look(endpoint)
        finally:
            transport.close()
            await asyncio.sleep(0)

    asyncio.run(scene())
