"""The training process: an order on standard input, progress and one result as JSON lines on standard output.

It reads the history, writes one model directory, and ends, at once where standard input does; what it says is data to
the daemon, never code.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rpi_daemon.retrain.confine import confine, end_with

STAGES: Final = {"reading": 0.35, "training": 0.5, "judging": 0.15}  # typical parts of the time
SAY_S: Final = 0.2  # between two words on progress


def main() -> int:
    """One order, one result."""
    order = json.loads(sys.stdin.readline())
    refused = confine(order["parent"], order["network"], order["memory_mb"], 60.0 * order["minutes"])
    end_with(sys.stdin.fileno())
    progress = Progress()
    progress.of("reading")(0.0)  # whom the kernel names for this word is who trains
    try:
        from rpi_daemon.retrain.training import carry_out

        result = carry_out(order, progress)
    except MemoryError:
        progress.say({"error": f"the memory limit of {order['memory_mb']:g} MB was reached"})
        return 1
    except Exception as error:  # noqa: BLE001  whatever it was: the parent logs it and goes on without a candidate
        progress.say({"error": f"{type(error).__name__}: {error}"})
        return 1
    progress.say({"result": {**result, "not_confined": refused}})
    return 0


class Progress:
    """Says how far it is, now and then."""

    def __init__(self) -> None:
        self._said_s = 0.0

    def say(self, document: dict[str, Any]) -> None:
        print(json.dumps(document, separators=(",", ":")), flush=True)

    def of(self, stage: str) -> Callable[[float], None]:
        """Hears the part of a stage that is done, 0 to 1."""
        names = list(STAGES)
        before = sum(STAGES[name] for name in names[: names.index(stage)])

        def done(part: float) -> None:
            now_s = time.monotonic()
            if now_s - self._said_s >= SAY_S or part >= 1.0:
                self._said_s = now_s
                self.say({"stage": stage, "done": round(before + STAGES[stage] * min(1.0, part), 4)})

        return done


def order_of(**fields: Any) -> bytes:
    """An order as the line that `main` reads; paths become text."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return json.dumps(plain).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
