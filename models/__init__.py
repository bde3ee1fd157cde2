"""Forecasters: the streamed LSTM, the mixture it is part of, its training."""

import os

# onnxruntime 1.31 keeps events of its use in the home folder and sends them to its maker, also on Linux: not from a rack.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
