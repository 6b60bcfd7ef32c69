"""The history of a training: its two tables on disk, and the same numbers as MLflow's metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from digits import tables

Row = Sequence[float | None]
Metric = tuple[str, float, int]  # key, value, step

STEP_COLUMNS = ("step", "samples", "train_loss", "learning_rate")
EPOCH_COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
)
STEP_METRICS = {"train_loss": "train/loss", "learning_rate": "train/learning_rate"}
EPOCH_METRICS = {
    "train_loss": "train/epoch_loss",
    "train_accuracy": "train/accuracy",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
}


@dataclass
class History:
    """Rows of STEP_COLUMNS and EPOCH_COLUMNS; losses in nats, accuracies 0..1."""

    steps: list[Row] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)

    def write(self, steps: Path, epochs: Path) -> None:
        """Write both tables."""
        tables.write(steps, STEP_COLUMNS, self.steps)
        tables.write(epochs, EPOCH_COLUMNS, self.epochs)

    @staticmethod
    def read(steps: Path, epochs: Path) -> "History":
        """Read both tables.

        Raises:
            DataError: one is missing or isn't such a table.
        """
        return History(
            [*tables.read(steps, STEP_COLUMNS)],
            [*tables.read(epochs, EPOCH_COLUMNS)],
        )

    def metrics(self) -> list[Metric]:
        """Every point of every curve."""
        points = [point for row in self.steps for point in step_metrics(row)]
        return points + [point for row in self.epochs for point in epoch_metrics(row)]


def step_metrics(row: Row) -> list[Metric]:
    """The points of one row of STEP_COLUMNS, by step."""
    return _metrics(dict(zip(STEP_COLUMNS, row, strict=True)), STEP_METRICS, "step")


def epoch_metrics(row: Row) -> list[Metric]:
    """The points of one row of EPOCH_COLUMNS, by epoch."""
    return _metrics(dict(zip(EPOCH_COLUMNS, row, strict=True)), EPOCH_METRICS, "epoch")


def _metrics(
    cells: Mapping[str, float | None], names: Mapping[str, str], index: str
) -> list[Metric]:
    at = int(cells[index] or 0)
    values = {name: cells[column] for column, name in names.items()}
    return [(name, value, at) for name, value in values.items() if value is not None]
