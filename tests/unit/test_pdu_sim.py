"""The simulated PDU as a process and across restarts; what it answers is in the contract tests."""

import asyncio
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rpi_daemon.drivers.pdu.profile import load_profile
from rpi_daemon.drivers.pdu.sim import PduSimulator, SimUser, main
from rpi_daemon.drivers.pdu.snmp import SnmpPdu, SnmpPduOptions
from rpi_daemon.drivers.pdu.snmp_session import SnmpEndpoint, SnmpSession
from rpi_daemon.errors import ConfigError
from rpi_daemon.records import LimitWrite


class Process:
    """The simulator in its own process, spoken to by JSON lines."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-W", "error", "-m", "rpi_daemon.drivers.pdu.sim", *arguments]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.line()

    def line(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], 20.0)
        assert ready, "the simulator says nothing"
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer

    def ask(self, request: object) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write((request if isinstance(request, str) else json.dumps(request)) + "\n")
        self._child.stdin.flush()
        return self.line()

    def end(self) -> int:
        _, _ = self._child.communicate(timeout=20.0)
        return self._child.returncode


def test_process_is_steered_by_json_lines_and_ends_with_its_input(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("some-long-key\n")
    keys = ["--user", "rack", "--auth-key-file", str(key), "--priv-key-file", str(key)]
    process = Process("--profile", "apc_rpdu2", "--outlets", "3", "--state-dir", str(tmp_path / "state"), *keys)
    try:
        assert process.hello["host"] == "127.0.0.1"
        assert process.ask({"power_w": {"2": 81.0}})["ok"] is True
        endpoint = SnmpEndpoint(
            "127.0.0.1", process.hello["port"], user="rack", auth_key="some-long-key", priv_key="some-long-key"
        )

        async def use() -> None:
            pdu = SnmpPdu(SnmpPduOptions(endpoint, load_profile("apc_rpdu2"), (1, 2, 3)))
            await pdu.open()
            try:
                assert (await pdu.read()).power_w == {1: 100.0, 2: 81.0, 3: 100.0}
                assert (await pdu.apply([LimitWrite(3, 90.0)])).outcomes[0].verified
            finally:
                await pdu.close()

        asyncio.run(use())
        answer = process.ask({"state": True, "faults": {"drop": 3, "refuse": [2]}})
        assert answer["limit_w"] == {"1": 2300.0, "2": 2300.0, "3": 90.0}
        assert answer["counters"]["sets"] == 1
        assert process.ask({"faults": {"explode": 1}})["error"].startswith("unknown fault ['explode']: use ['delay_s'")
        assert process.ask("not json")["ok"] is False
        assert process.ask({"reboot": True, "state": True})["limit_w"]["3"] == 2300.0
        assert (tmp_path / "state" / "SIM0000001.boots").read_text() == "2"
    finally:
        assert process.end() == 0


def test_mistakes_at_start_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", "nonsense"]) == 3
    assert main(["--snmprec", str(tmp_path / "absent")]) == 7
    assert main(["--user", "rack", "--auth-key-file", str(tmp_path / "absent")]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "choose one of apc_rpdu1" in lines[0]
    assert "cannot read the recording" in lines[1]
    assert "cannot read the key file" in lines[2]


def test_a_port_in_use_is_named() -> None:
    async def scene() -> None:
        profile = load_profile("raritan_px")
        async with PduSimulator(profile, 1) as first:
            second = PduSimulator(profile, 1, port=first.port)
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {first.port}"):
                await second.start()
            await second.stop()

    asyncio.run(scene())


def test_engine_boots_grow_over_restarts_and_pysnmp_keeps_no_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    user = SimUser("rack", auth="SHA-512", auth_key="authentication", priv_key="privacy-of-it")

    async def boots(state_dir: Path | None) -> int:
        async with PduSimulator(load_profile("raritan_px"), 1, user=user, state_dir=state_dir) as simulator:
            session = SnmpSession(
                SnmpEndpoint("127.0.0.1", simulator.port, user="rack", auth="SHA-512", auth_key=user.auth_key,
                             priv_key=user.priv_key)
            )  # fmt: skip
            await session.open()
            try:
                await session.get(["1.3.6.1.2.1.1.1.0"])
                return session.engine_boots
            finally:
                session.close()

    assert [asyncio.run(boots(tmp_path / "state")) for _ in range(3)] == [1, 2, 3]
    assert asyncio.run(boots(None)) == 1
    assert os.listdir(temporary) == []


def test_energy_is_the_integral_of_the_draw() -> None:
    now = [0.0]
    simulator = PduSimulator(load_profile("apc_rpdu2"), 2, power_w=lambda outlet: 500.0 * outlet, clock=lambda: now[0])
    column = "1.3.6.1.4.1.318.1.1.26.9.4.3.1.11.{}"
    assert simulator.peek(column.format(1)) == 0
    now[0] = 3600.0
    assert [simulator.peek(column.format(outlet)) for outlet in (1, 2)] == [5, 10]  # counts of 0.1 kWh
    now[0] = 5400.0
    assert simulator.peek(column.format(2)) == 15
