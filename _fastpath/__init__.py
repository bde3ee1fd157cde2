"""Compiled hot path; import from `rpi_daemon._fastpath.core`."""
