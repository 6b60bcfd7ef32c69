"""The join of DVC and MLflow by content hash, for any DVC project; see docs/splice.md."""

from splice.config import Config
from splice.errors import DataError, UserError, run
from splice.join import Data, Evaluation, Join, Run, Trained, here

__all__ = [
    "Config",
    "Data",
    "DataError",
    "Evaluation",
    "Join",
    "Run",
    "Trained",
    "UserError",
    "here",
    "run",
]
