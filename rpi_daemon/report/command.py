"""`rpi-daemon report`: the document, its page on disk, and what a terminal shows of it."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from rpi_daemon.errors import RpiError
from rpi_daemon.look_back import Question
from rpi_daemon.report import figures
from rpi_daemon.report.page import page_of
from rpi_daemon.report.words import headline, same_risk


def report(asked: Question, output: Path | None, *, page: bool) -> tuple[dict[str, Any], str]:
    """The document and a few lines of it; with `page` written as HTML. Raises RpiError."""
    with Progress(
        *Progress.get_default_columns()[:2], TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task("reading the history", total=1.0)
        document = figures.report(asked, lambda done: bar.update(task, completed=done))
    document["headline"] = headline(document)
    text = [document["headline"], *([same_risk(document)] if same_risk(document) else [])]
    if page:
        path = output or Path(f"report-{asked.config.rack.id}.html")
        try:
            path.write_text(page_of(document, asked.now.tzinfo), encoding="utf-8")
        except OSError as error:
            raise RpiError(f"{path}: {error.strerror}") from None
        document["output"] = str(path)
        text.append(f"written: {path}")
    return document, "\n".join(text)
