"""The table of fuzzing in SECURITY.md, from bench/results/fuzz.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuzz.targets import PLACES

PAGE = Path(__file__).parents[2] / "SECURITY.md"
BEGIN, END = "<!-- fuzz -->\n", "<!-- end of fuzz -->\n"
KINDS = ("crashes", "hangs", "wrong_accepts")


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each target."""
    lines = [
        "| target | inputs | taken | crashes | hangs | wrong accepts | slowest, ms | branches | measured |",
        "|" + "---|" * 9,
    ]
    for name in PLACES:
        seen = figures.get(name)
        if seen is None or "died" in seen:
            lines.append(f"| `{name}` | not measured yet | | | | | | | |")
            continue
        parts = seen["branches"].values()
        taken, total = (sum(part[key] for part in parts) for key in ("taken", "branches"))
        counted = " | ".join(f"{seen[kind]:,}" for kind in KINDS)
        lines.append(
            f"| `{name}` | {seen['inputs']:,} | {seen['taken']:,} | {counted} | {seen['slowest_ms']:g} | {100.0 * taken / total:.0f} % of {total} |"
            f" {seen['measured']}, seed {seen['seed']} |"
        )
    return "\n".join(lines) + "\n"


def with_table(text: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, its table made anew."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}{table(figures)}{END}{rest.split(END)[1]}"


def write_page(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Bring SECURITY.md up to date."""
    PAGE.write_text(with_table(PAGE.read_text(), figures))
