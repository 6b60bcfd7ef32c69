"""Download the MNIST data set."""

import os

from torchvision import datasets  # type: ignore[import-untyped]

import timings

imports = timings.since_start()


def main() -> None:
    """Download MNIST into ``data/raw``, from the HTTP mirror in ``$DATA_MIRROR`` if set."""
    if mirror := os.environ.get("DATA_MIRROR"):
        datasets.MNIST.mirrors = [mirror.rstrip("/") + "/"]
    datasets.MNIST("data/raw", train=True, download=True)


if __name__ == "__main__":
    main()
    timings.record("download", imports=imports)
