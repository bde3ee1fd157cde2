"""`rpi-daemon failsafe` after `kill -9`: from exec to STATIC_SAFE verified on 48 outlets of two PDUs, all of which held other limits.

Absolute figures: real processes against `rpi-daemon sim` over loopback UDP; program files are in the page cache.
"""

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from common import parse_arguments, report

from rpi_daemon.clock import SystemClock
from rpi_daemon.config.examples.demo import demo_toml
from rpi_daemon.config.load import load_config
from rpi_daemon.config.schema import Config
from rpi_daemon.demo import demo_folder, free_ports, running_daemon, simulated_rack
from rpi_daemon.devices import numbers_of, pdu_driver
from rpi_daemon.records import LimitWrite

OUTLETS, PER_PDU = 48, 24
ROUNDS, QUICK_ROUNDS = 20, 3
PATIENCE_S = "30"
ELSEWHERE = 0.7  # of STATIC_SAFE: what the loop might have left


async def set_elsewhere(config: Config) -> None:
    """Another limit on every outlet."""
    static_safe_w = {row.id: row.static_safe_w for row in config.outlets()}
    for pdu in config.pdu:
        driver = pdu_driver(config, pdu, SystemClock())
        await driver.open()
        try:
            writes = [LimitWrite(n, ELSEWHERE * static_safe_w[f"{pdu.id}/{n}"]) for n in numbers_of(config, pdu.id)]
            result = await driver.apply(writes)
            assert all(outcome.verified for outcome in result.outcomes)
        finally:
            await driver.close()


def failsafe(path: Path) -> Mapping[str, float]:
    """One run: its own account, and the whole process as its parent sees it."""
    command = [sys.executable, "-P", "-m", "rpi_daemon", "failsafe", "--for", PATIENCE_S, "--json", "-c", str(path)]
    began_s, used_s = time.monotonic(), _cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole_s = time.monotonic() - began_s
    document = json.loads(done.stdout.splitlines()[-1])
    written = sum(pdu["written"] for pdu in document["pdus"])
    assert document["ok"]
    assert written == OUTLETS, document
    return {"after_s": document["after_s"], "whole_s": whole_s, "cpu_s": _cpu_s() - used_s}


def _cpu_s() -> float:
    """Of children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    arguments = parse_arguments(__doc__)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    with demo_folder(None) as folder:
        path = folder / "demo.toml"
        path.write_text(demo_toml(OUTLETS, free_ports(2), per_pdu=PER_PDU), encoding="utf-8")
        with simulated_rack(path):  # it makes the secrets
            config = load_config(path)
            with running_daemon(path) as (daemon, _):
                daemon.kill()
                daemon.wait()
            runs = []
            for _ in range(rounds):
                asyncio.run(set_elsewhere(config))
                runs.append(failsafe(path))
    after_s, whole_s, cpu_s = ([run[name] for run in runs] for name in ("after_s", "whole_s", "cpu_s"))
    row = {
        "outlets": OUTLETS,
        "pdus": len(config.pdu),
        "rounds": rounds,
        "verified_s_p50": statistics.median(after_s),
        "verified_s_max": max(after_s),
        "process_s_p50": statistics.median(whole_s),
        "process_s_max": max(whole_s),
        "cpu_s_p50": statistics.median(cpu_s),
    }
    report("failsafe", [row], {"verified_s_max": max(after_s)}, arguments.json)


if __name__ == "__main__":
    main()
