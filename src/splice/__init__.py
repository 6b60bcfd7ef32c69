"""The join of DVC and MLflow by content hash, for any DVC project; see docs/splice.md."""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    sys.exit("Windows is not supported: use Linux, macOS or WSL (Windows Subsystem for Linux)")

if TYPE_CHECKING:
    from splice.config import Config
    from splice.errors import DataError, Stopped, UserError, run
    from splice.join import Data, Evaluation, Group, Join, Run, Trained, here

__all__ = [
    "Config",
    "Data",
    "DataError",
    "Evaluation",
    "Group",
    "Join",
    "Run",
    "Stopped",
    "Trained",
    "UserError",
    "here",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import it when it is asked for: `splice.errors` needs none of the packages of the rest."""
    if name not in __all__:
        raise AttributeError(f"module 'splice' has no attribute {name!r}")
    from splice import config, errors, join

    return next(getattr(room, name) for room in (config, errors, join) if hasattr(room, name))
