"""The history of a training: its two tables on disk, and the same numbers as MLflow's metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from digits.data.storage import read_table, write_document, write_table
from digits.paths import Paths

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
STEP_METRICS = {
    "train_loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "samples": "train/samples",
}
EPOCH_METRICS = {
    "train_loss": "train/epoch_loss",
    "train_accuracy": "train/accuracy",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
}
DIGITS = 6  # significant ones, of what goes to MLflow


@dataclass
class History:
    """Rows of STEP_COLUMNS and EPOCH_COLUMNS; losses in nats, accuracies 0..1.

    And how many processes trained together, first so many, then so many, where some left; in which
    of torchrun's jobs.
    """

    steps: list[Row] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    job: str = ""

    def write(self, paths: Paths) -> None:
        """Write both tables, and the last epoch's numbers by themselves for DVC to compare."""
        write_table(paths.steps, STEP_COLUMNS, self.steps)
        write_table(paths.epochs, EPOCH_COLUMNS, self.epochs)
        last = dict(zip(EPOCH_COLUMNS, self.epochs[-1], strict=True))
        write_document(
            paths.reports / "training.json",
            {
                split: {name: last[f"{split}_{name}"] for name in ("loss", "accuracy")}
                for split in ("train", "validation")
                if last[f"{split}_loss"] is not None
            },
        )

    @classmethod
    def read(cls, paths: Paths) -> Self:
        """Read both tables.

        Raises:
            DataError: one is missing or isn't such a table.
        """
        return cls(
            [*read_table(paths.steps, STEP_COLUMNS)],
            [*read_table(paths.epochs, EPOCH_COLUMNS)],
        )

    def kept(self, keep: str) -> Mapping[str, float | None]:
        """The row of the epoch whose weights are kept, by EPOCH_COLUMNS."""
        rows = [dict(zip(EPOCH_COLUMNS, row, strict=True)) for row in self.epochs]
        return max(rows, key=_rank) if keep == "best" else rows[-1]

    def metrics(self) -> list[Metric]:
        """Every point of every curve."""
        points = [point for row in self.steps for point in step_metrics(row)]
        return points + [point for row in self.epochs for point in epoch_metrics(row)]


def _rank(epoch: Mapping[str, float | None]) -> tuple[float, float]:
    """What the training loop finds the best weights by."""
    return epoch["validation_accuracy"] or 0.0, -(epoch["validation_loss"] or 0.0)


def step_metrics(row: Row) -> list[Metric]:
    """The points of one row of STEP_COLUMNS, by step."""
    return _metrics(dict(zip(STEP_COLUMNS, row, strict=True)), STEP_METRICS)


def epoch_metrics(row: Row) -> list[Metric]:
    """The points of one row of EPOCH_COLUMNS, by step too, as those of a step are."""
    return _metrics(dict(zip(EPOCH_COLUMNS, row, strict=True)), EPOCH_METRICS)


def _metrics(cells: Mapping[str, float | None], names: Mapping[str, str]) -> list[Metric]:
    step = int(cells["step"] or 0)
    values = {name: cells[column] for column, name in names.items()}
    return [
        (name, float(f"{value:.{DIGITS}g}"), step)
        for name, value in values.items()
        if value is not None
    ]
