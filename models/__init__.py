"""Forecasters: the streamed LSTM, the mixture it is part of, its training."""
