"""Makes docs/demo.svg, the README's picture: the live view of a real demo run, as its user sees it. Takes a minute."""

import io
import sys
import time
from pathlib import Path

from rich.console import Console

from rpi_daemon.demo import demo_config, demo_folder, pass_on_hints, running_daemon, simulated_rack
from rpi_daemon.top import View

SECONDS = 60.0
OUTLETS = 24
VIEW_PERIOD_S = 0.25
WIDTH = 118  # columns of the terminal in the picture
PICTURE = Path(__file__).with_name("demo.svg")


def main() -> None:
    view = View()
    with demo_folder(None) as folder:
        config = demo_config(folder, OUTLETS)
        with simulated_rack(config) as rack, running_daemon(config) as (_, client):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                pass_on_hints(rack, client)
                screen = view.table(client.ask("status"))
                time.sleep(VIEW_PERIOD_S)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(screen)
    PICTURE.write_text(console.export_svg(title="rpi-daemon demo"), encoding="utf-8")
    print(f"{PICTURE} written", file=sys.stderr)


if __name__ == "__main__":
    main()
