"""Rack Power Interface: sense at 1 kHz, forecast 5 s ahead, allocate PDU limits before the power is drawn."""

__version__ = "0.1.0"
