"""Typed errors; each carries the exit code that the command line ends with."""


class RpiError(Exception):
    """A mistake or fault that has a clear sentence for the user: what is wrong, and what to do."""

    exit_code = 1


class ConfigError(RpiError):
    """One or more mistakes in a configuration file; the message lists them all, a line each."""

    exit_code = 3


class DeviceError(RpiError):
    """A device is missing, silent or not what the configuration says."""

    exit_code = 4


class NotLeftError(DeviceError):
    """The daemon ended in good order, but a PDU or server did not take STATIC_SAFE."""

    exit_code = 10


class AuthError(DeviceError):
    """Wrong community, user or key."""

    exit_code = 5


class ModelError(RpiError):
    """A model directory is damaged, incomplete or refused."""

    exit_code = 6


class PoisonedError(ModelError):
    """A model that passed every check answers with what is no number."""


class TraceError(RpiError):
    """A recorded trace is missing, truncated or of an unknown shape."""

    exit_code = 7


class LockedError(RpiError):
    """Another daemon holds the lock of a PDU, a port or the socket."""

    exit_code = 8


class NotRunningError(RpiError):
    """No daemon answers on the control socket."""

    exit_code = 9


class RefusedError(RpiError):
    """A daemon runs, and this caller may not ask it that."""

    exit_code = 9
