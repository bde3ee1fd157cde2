"""Sensor sources: serial board, replay, simulated; and the simulated board."""
