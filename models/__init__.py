"""Forecasters: the streamed LSTM, its baselines, its training."""
