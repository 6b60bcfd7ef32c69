"""Where things are: every path starts at the project's root, never at the current folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Paths:
    """The files that the stages hand to one another, below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = root / "params.yaml"
        self.pipeline = root / "dvc.yaml"
        self.lock = root / "dvc.lock"
        self.raw = root / "data" / "raw"  # the data set's own files, and dataset.json on them
        self.processed = root / "data" / "processed"  # a file for each split, and the statistics
        self.model = root / "models" / "net.safetensors"
        self.reports = root / "reports"
        self.steps = self.reports / "history" / "steps.csv"
        self.epochs = self.reports / "history" / "epochs.csv"

    def figure(self, name: str) -> Path:
        """A figure."""
        return self.reports / "figures" / f"{name}.png"

    def split(self, name: str) -> Path:
        """The file of one split: train, validation or test."""
        return self.processed / f"{name}.safetensors"


class State:
    """What outlives a stage and is nobody's output: below the main checkout, never in a clone.

    So checkpoints of an experiment survive the clone that DVC ran it in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / ".digits" / "checkpoints"
        self.sweeps = root / ".digits" / "sweeps"  # Optuna's database, and the workers' logs
        self.pictures = root / ".digits" / "pictures"  # read by a preprocess that isn't done
