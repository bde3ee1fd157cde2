"""Learning at night: the history becomes a candidate, a gate judges it, and what stands is watched."""
