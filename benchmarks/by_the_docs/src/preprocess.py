"""Turn the raw MNIST files into tensors."""

from pathlib import Path

import torch
from torchvision import datasets  # type: ignore[import-untyped]

import timings

imports = timings.since_start()


def main() -> None:
    """Save images and labels as ``training.pt`` and ``test.pt`` in ``data/processed``."""
    processed = Path("data/processed")
    processed.mkdir(parents=True, exist_ok=True)
    for name, train in (("training.pt", True), ("test.pt", False)):
        dataset = datasets.MNIST("data/raw", train=train)
        torch.save((dataset.data, dataset.targets), processed / name)


if __name__ == "__main__":
    main()
    timings.record("preprocess", imports=imports)
