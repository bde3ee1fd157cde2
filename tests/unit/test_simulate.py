"""The simulated rack that a configuration describes: the demo's configuration of any size, faults by the control line."""

import asyncio
import socket
from pathlib import Path

import numpy as np
import pytest

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.examples.demo import demo_toml
from rpi_daemon.config.load import load_config, read_config
from rpi_daemon.devices import cap_driver
from rpi_daemon.drivers.sensors.board_sim import PtyPort
from rpi_daemon.errors import ConfigError
from rpi_daemon.simulate import SimulatedRack, _answer, make_keys


def written(folder: Path, outlets: int) -> Path:
    path = folder / "demo.toml"
    path.write_text(demo_toml(outlets, 20_000), encoding="utf-8")
    assert sorted(made.name for made in make_keys(read_config(path))) == ["auth.key", "priv.key"]
    assert make_keys(read_config(path)) == []  # what is there stays
    return path


@pytest.mark.parametrize(("outlets", "units"), [(24, 1), (48, 1), (49, 2), (96, 2)])
def test_the_demo_of_any_size_is_a_good_configuration(tmp_path: Path, outlets: int, units: int) -> None:
    config = load_config(written(tmp_path, outlets), env={})
    rows = config.outlets()
    assert len(rows) == outlets
    assert len({row.load for row in rows}) == outlets
    assert [pdu.port for pdu in config.pdu] == [20_000 + k for k in range(units)]
    assert [board.board_id for board in config.board] == list(range(1, units + 1))
    assert {constraint.id for constraint in config.constraint} == {"L1", "L2", "L3", "rack"}


def test_a_fault_named_on_the_control_line_reaches_its_board(tmp_path: Path) -> None:
    rack = SimulatedRack(read_config(written(tmp_path, 49)))
    rack.boards[1].port = port = PtyPort()
    device = rack.boards[1].device
    device.start(0)
    assert _answer(rack, {"board": "board-2", "fault": "drop_frames", "frames": 3})["fault"] == "drop_frames"
    for ms in range(100):
        device.step(ms * 1_000_000, len)
    assert device.counters.scans_lost == 30
    assert rack.boards[0].device.counters.scans_lost == 0
    port.unplug()


def test_what_the_control_line_does_not_know_is_an_answer(tmp_path: Path) -> None:
    rack = SimulatedRack(read_config(written(tmp_path, 24)))
    assert "board-1" in str(_answer(rack, {"board": "board-9", "fault": "drop_frames"})["error"])
    assert "pdu-a" in str(_answer(rack, None)["error"])


def with_bmcs(folder: Path, *tables: str) -> Path:
    """The demo with a cap per table; each gets a free port of its own."""
    path = folder / "demo.toml"
    text = demo_toml(24, 20_000)
    for k, table in enumerate(tables):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        text += f"""
[[cap]]
load = "server-{k + 1}"
host = "127.0.0.1"
port = {port}
user = "rpi"
password_file = "bmc.key"
{table}
"""
    path.write_text(text, encoding="utf-8")
    make_keys(read_config(path))
    return path


def test_the_bmc_of_every_cap_is_served_and_throttles_its_server(tmp_path: Path) -> None:
    path = with_bmcs(tmp_path, 'tls_ca_file = "ca.pem"', 'tls_ca_file = "ca.pem"')
    rack = SimulatedRack(read_config(path))
    config = load_config(path, env={})  # the certificate that it names is there now

    async def scene() -> None:
        driver = cap_driver(config, config.cap[1], SystemClock())
        try:
            for bmc in rack.bmcs.values():
                await bmc.start()
            await driver.open()
            identity = await driver.identify()
            assert identity.lowest_w is not None
            assert (await driver.apply(identity.lowest_w)).verified
            plant = rack.boards[0].plant
            (row,) = (i for i, row in enumerate(config.outlets()) if row.load == "server-2")
            place = rack.boards[0].outlets.index(row)
            assert [k for k, throttle in enumerate(plant.throttles) if throttle is not None] == [place]
            throttle = plant.throttles[place]
            assert throttle is not None
            assert throttle.cap_w == identity.lowest_w
            for _ in range(30):
                plant.advance(100)
            reading = await driver.read()
            assert reading.power_w == pytest.approx(float(plant.true_power_w[place]), abs=0.06)
            state = _answer(rack, {"state": True})
            assert state["caps_w"] == {"server-1": None, "server-2": identity.lowest_w}
            assert state["throttled"] == {"server-1": False, "server-2": throttle.throttled}
            answer = _answer(rack, {"bmc": "server-2", "faults": {"unlicensed": True}})
            assert (answer["ok"], answer["cap_w"], answer["sessions"]) == (True, identity.lowest_w, 1)
            refused = (await driver.apply(None)).refused
            assert refused is not None
            assert "licence" in refused
            wrong = _answer(rack, {"bmc": "server-2", "faults": {"unlicenced": True}})
            assert "unknown fault ['unlicenced']: use ['settle_s'" in str(wrong["error"])
            assert "unknown command ['fault']" in str(_answer(rack, {"bmc": "server-2", "fault": 1})["error"])
            for faults in (
                {"settle_s": "8"},
                {"drop": True},
                {"unlicensed": 1},
                {"garbled": "xml"},
                {"task_s": "x"},
                3,
            ):
                answer = _answer(rack, {"bmc": "server-2", "faults": faults})
                assert (answer["ok"], "settle_s" in str(answer["error"]) or "allowed" in str(answer["error"])) == (
                    False,
                    True,
                )
            for name in ("server-3", ["server-2"], 2):
                assert "BMCs: server-1, server-2" in str(_answer(rack, {"bmc": name})["error"])
        finally:
            await driver.close()
            for bmc in rack.bmcs.values():
                await bmc.stop()

    asyncio.run(asyncio.wait_for(scene(), 20.0))


def test_a_simulated_bmc_keeps_its_certificate_so_that_it_can_be_pinned(tmp_path: Path) -> None:
    path = with_bmcs(tmp_path, "allow_insecure = true")
    first, again = (SimulatedRack(read_config(path)).bmcs["server-1"].fingerprint for _ in range(2))
    assert first == again
    assert len(first) == 95
    path.write_text(path.read_text().replace("allow_insecure = true", f'tls_fingerprint = "{first}"'))
    assert load_config(path, env={}).cap[0].tls_fingerprint == first
    assert (tmp_path / "bmc-sim.pem.key").stat().st_mode & 0o777 == 0o600


def test_a_certificate_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("somebody's")
    path = with_bmcs(tmp_path, 'tls_ca_file = "ca.pem"')
    with pytest.raises(ConfigError, match=r"keeps its certificate in .*ca\.pem and its key in .*ca\.pem\.key: No such"):
        SimulatedRack(read_config(path))
    assert (tmp_path / "ca.pem").read_text() == "somebody's"


def test_two_ways_to_know_a_certificate_are_one_too_many(tmp_path: Path) -> None:
    path = with_bmcs(tmp_path, f'allow_insecure = true\ntls_fingerprint = "{"00" * 32}"')
    with pytest.raises(ConfigError, match=r"one of tls_fingerprint and allow_insecure"):
        load_config(path, env={})


def test_two_caps_at_one_place_of_a_bmc_are_a_mistake(tmp_path: Path) -> None:
    path = with_bmcs(tmp_path, "allow_insecure = true", "allow_insecure = true")
    text = path.read_text()
    ports = [line for line in text.splitlines() if line.startswith("port = ")][-2:]
    path.write_text(text.replace(ports[1], ports[0]))
    with pytest.raises(ConfigError, match=r"cap 1 is at 127\.0\.0\.1:\d+ too; set resource where a BMC has several"):
        load_config(path, env={})
    path.write_text(text.replace(ports[1], f'{ports[0]}\nresource = "/redfish/v1/Chassis/Node2"'))
    assert load_config(path, env={}).cap[1].resource == "/redfish/v1/Chassis/Node2"


def test_a_plain_host_is_simulated_as_busy_as_its_server_draws(tmp_path: Path) -> None:
    path = tmp_path / "demo.toml"
    hosts = '[[telemetry]]\nload = "server-1"\nurl = "http://127.0.0.1:9100/metrics"\nallow_insecure = true\n'
    hosts += '[[telemetry]]\nload = "server-2"\ndriver = "feed"\n'
    path.write_text(demo_toml(24, 20_000) + hosts, encoding="utf-8")
    make_keys(read_config(path))
    rack = SimulatedRack(read_config(path))
    host = rack.hosts["server-1"]
    assert (list(rack.hosts), host.port) == (["server-1"], 9100)
    plant, k = rack._place[0]
    shown: list[tuple[float, float]] = []
    for _ in range(600):
        plant.advance(100)
        host.page()
        shown.append((float(plant.true_power_w[k]), host._busy()))
    drawn_w, busy = np.array(shown).T
    assert np.corrcoef(drawn_w, busy)[0, 1] == pytest.approx(1.0)
    assert -0.2 < busy.min() < busy.max() < 1.4
