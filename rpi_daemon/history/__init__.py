"""What happened: measurements, forecasts, limits and events on disk."""
