"""What a forecaster is, and where the shipped model lies."""

from pathlib import Path
from typing import Final, Protocol

from rpi_daemon.records import BoolArray, Forecast, ForecastInput

SHIPPED: Final = Path(__file__).parent / "shipped"
NO_FORECAST: Final = "none"


class Forecaster(Protocol):
    """Called once per tick with every outlet; a row it has no answer for is NaN."""

    name: str

    def step(self, x: ForecastInput) -> Forecast:
        """Take one tick in and forecast. Raises ModelError when it cannot go on."""

    def reset(self, outlets: BoolArray | None = None) -> None:
        """Forget what was seen of these outlets (all by default)."""
