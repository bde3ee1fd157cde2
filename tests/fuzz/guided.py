"""One target under libFuzzer (by atheris), its compiled part with AddressSanitizer and UndefinedBehaviorSanitizer.

`python -m fuzz.guided TARGET CORE MODULES CORPUS RESULT INPUTS SEED`, started by run.py. CORE: the sanitized build, or empty where no compiled
code is under attack; it and the Python MODULES guide the fuzzer.
"""

import atexit
import base64
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import atheris
import structlog
from fuzz.replay import load_core

HANG_S = 1.0
KEPT_FINDINGS = 20

name, core, modules, corpus, result, inputs, seed = sys.argv[1:8]


if core:
    load_core(core)
with atheris.instrument_imports(include=modules.split() or ["none"]):  # an empty list would mean all modules
    from fuzz.target import WrongAccept
    from fuzz.targets import target as target_of

    target = target_of(name)
# what is refused need not be told
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
counts: Counter[str] = Counter()
findings: dict[str, dict[str, str]] = {}
slowest_s, slowest = 0.0, b""
began_s = time.monotonic()


def note(kind: str, what: str, data: bytes) -> None:
    counts[kind] += 1
    if what not in findings and len(findings) < KEPT_FINDINGS:
        findings[what] = {"kind": kind, "what": what, "input": base64.b64encode(data).decode()}


def one_input(data: bytes) -> None:
    global slowest_s, slowest
    started_s = (
        time.process_time()
    )  # of the processor: others use the machine too; what waits for ever ends by libFuzzer's own time-out
    try:
        counts["taken" if target.check(data) else "refused"] += 1
    except WrongAccept as error:
        note("wrong_accepts", f"{traceback.extract_tb(error.__traceback__)[-2].line} {error!s:.200}", data)
    except Exception as error:  # noqa: BLE001  whatever escapes is a crash
        note("crashes", f"{traceback.extract_tb(error.__traceback__)[-1]} {type(error).__name__}", data)
    took_s = time.process_time() - started_s
    if took_s > slowest_s:
        slowest_s, slowest = took_s, data
    if took_s > HANG_S:
        note("hangs", f"{took_s:.1f} s", data)
    counts["inputs"] += 1
    if counts["inputs"] == int(inputs):
        end()


def end() -> None:
    """Write what was seen, and leave: libFuzzer has its corpus on disk."""
    document = {
        "inputs": counts["inputs"],
        **{kind: counts[kind] for kind in ("crashes", "hangs", "wrong_accepts", "taken", "refused")},
        "slowest_ms": round(1e3 * slowest_s, 2),
        "slowest_input": base64.b64encode(slowest).decode(),
        "findings": list(findings.values()),
        "duration_s": round(time.monotonic() - began_s, 1),
        "seed": int(seed),
    }
    Path(result).write_text(json.dumps(document))
    atexit._run_exitfuncs()
    os._exit(0)


for number, data in enumerate(target.seeds()):
    (Path(corpus) / f"seed-{number}").write_bytes(data)
options = [
    f"-seed={seed}",
    "-timeout=20",
    "-rss_limit_mb=4096",
    f"-max_len={target.longest}",
    "-verbosity=0",
    f"-artifact_prefix={corpus}/../",
]
atheris.Setup([sys.argv[0], *options, corpus], one_input)
atheris.Fuzz()
