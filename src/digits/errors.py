"""The one family of exceptions for what a user can cause and cure."""

from splice.errors import EXIT_INTERRUPTED, DataError, ParameterError, Stopped, UserError

__all__ = [
    "DataError",
    "DeviceError",
    "DivergedError",
    "DownloadError",
    "InterruptedSweep",
    "ParameterError",
    "Stopped",
    "UserError",
]


class DownloadError(UserError):
    """No source could give a file whole and with the right checksum."""


class DeviceError(UserError):
    """The device that was asked for is not there, or its memory is too small."""


class InterruptedSweep(UserError):
    """A sweep was interrupted: it can go on."""

    exit_code = EXIT_INTERRUPTED


class DivergedError(UserError):
    """The loss became NaN or infinite."""


class NetError(UserError):
    """The Net can't compute the images, or gives something else than log-probabilities."""


class EngineError(UserError):
    """The engine that was asked for doesn't compute this Net."""
