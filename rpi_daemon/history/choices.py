"""What a user may ask the history for, and in which form; apart, so that the command line starts without NumPy."""

from typing import Final

QUANTITIES: Final = {  # what a user calls it -> how it is stored
    "power": "power_w",
    "forecast": "forecast_w/mean",
    "forecast-max": "forecast_max_w/max",
    "residual": "residual_w/mean",
    "request": "request_w/max",
    "current": "rms_a/mean",
    "peak": "peak_a/max",
    "apparent": "apparent_va/mean",
    "power-factor": "power_factor/mean",
    "voltage": "voltage_v/mean",
    "cpu": "cpu/mean",
    "memory": "memory/mean",
    "network": "network/mean",
    "disk": "disk/mean",
}
LIMIT: Final = "limit"
ESCAPES: Final = "escapes"
WHAT: Final = (*QUANTITIES, LIMIT, ESCAPES)
FORMATS: Final = ("table", "csv", "npz", "png")
