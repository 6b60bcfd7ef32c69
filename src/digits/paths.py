"""Where things are: every path starts at the project's root, never at the current folder."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Paths:
    """The files that the stages hand to one another, below one root."""

    root: Path

    @property
    def params(self) -> Path:
        """Every parameter."""
        return self.root / "params.yaml"

    @property
    def pipeline(self) -> Path:
        """Every stage."""
        return self.root / "dvc.yaml"

    @property
    def lock(self) -> Path:
        """What DVC has recorded."""
        return self.root / "dvc.lock"

    @property
    def raw(self) -> Path:
        """The data set's own files, and `dataset.json` which says what they are."""
        return self.root / "data" / "raw"

    @property
    def processed(self) -> Path:
        """One safetensors file a split, and the statistics."""
        return self.root / "data" / "processed"

    @property
    def model(self) -> Path:
        """The weights."""
        return self.root / "models" / "net.safetensors"

    @property
    def reports(self) -> Path:
        """Histories, metrics and figures."""
        return self.root / "reports"

    @property
    def steps(self) -> Path:
        """Training loss by step."""
        return self.reports / "history" / "steps.csv"

    @property
    def epochs(self) -> Path:
        """Losses and accuracies by epoch."""
        return self.reports / "history" / "epochs.csv"

    def figure(self, name: str) -> Path:
        """A figure."""
        return self.reports / "figures" / f"{name}.png"

    def split(self, name: str) -> Path:
        """The file of one split: train, validation or test."""
        return self.processed / f"{name}.safetensors"


@dataclass(frozen=True)
class State:
    """What outlives a stage and is nobody's output: below the main checkout, never in a clone.

    So checkpoints of an experiment survive the clone that DVC ran it in.
    """

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted training left off."""
        return self.root / ".digits" / "checkpoints"

    @property
    def sweeps(self) -> Path:
        """Optuna's database, and what the workers of sweeps say."""
        return self.root / ".digits" / "sweeps"

    @property
    def pictures(self) -> Path:
        """What an interrupted preprocess has read of a folder of images."""
        return self.root / ".digits" / "pictures"
