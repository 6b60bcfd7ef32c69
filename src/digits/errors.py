"""The one family of exceptions for what a user can cause and cure."""

from splice.errors import DataError, ParameterError, Stopped, UserError, did_you_mean

__all__ = [
    "DataError",
    "DeviceError",
    "DivergedError",
    "DownloadError",
    "ParameterError",
    "Stopped",
    "UserError",
    "did_you_mean",
]


class DownloadError(UserError):
    """No source could give a file whole and with the right checksum."""


class DeviceError(UserError):
    """The device that was asked for is not there, or not for each process."""


class DivergedError(UserError):
    """The loss became NaN or infinite."""


class NetError(UserError):
    """The Net can't compute the images, or gives something else than log-probabilities."""


class EngineError(UserError):
    """The engine that was asked for doesn't compute this Net."""
