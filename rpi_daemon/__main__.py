"""`python -m rpi_daemon` is the command line."""

from rpi_daemon.cli import main

main()
