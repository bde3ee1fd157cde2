"""Some inputs without a fuzzer: for CI, and for a first look. `PYTHONPATH=tests python -P -m fuzz.short [TARGET ...] [--inputs N]`."""

import argparse
import logging
import random
import time
import traceback
from collections import Counter

import structlog
from damage import mutated
from fuzz.target import Target
from fuzz.targets import PLACES, kept
from fuzz.targets import target as target_of


def fresh(known: list[bytes], rng: random.Random) -> bytes:
    """An input made of known ones."""
    data = rng.choice(known)
    if rng.random() < 0.2:
        other = rng.choice(known)
        data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
    return mutated(data, rng) if rng.random() < 0.9 else data + rng.randbytes(rng.randrange(30))


def run(target: Target, inputs: int, seed: int) -> Counter[str]:
    """All kept inputs and `inputs` fresh ones; raises what the target raises, with the input that did it."""
    rng = random.Random(seed)
    known = [*target.seeds(), *kept(target.name)]
    counts: Counter[str] = Counter()
    for data in [*known, *(fresh(known, rng) for _ in range(inputs))]:
        try:
            counts["taken" if target.check(data) else "refused"] += 1
        except Exception as error:
            error.add_note(f"{target.name}: input {data.hex()}")
            raise
    return counts


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("targets", nargs="*")
    options.add_argument("--inputs", type=int, default=3000)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for name in given.targets or PLACES:
        began_s = time.perf_counter()
        try:
            counts = run(target_of(name), given.inputs, given.seed)
        except Exception:  # noqa: BLE001  every target has its turn
            traceback.print_exc()
            continue
        print(f"{name}: {dict(counts)} in {time.perf_counter() - began_s:.2f} s")


if __name__ == "__main__":
    main()
