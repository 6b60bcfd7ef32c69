"""Data larger than memory: what `train` and `evaluate` hold of it, and how fast they read it.

    python benchmarks/larger.py [--images 8000000]

Splits of so many generated images are written to a temporary folder (784 bytes each; a twentieth
to validate, as many to test). Both stages run as processes of their own; their own memory is what
the system can't take back: anonymous pages, not those of files, looked at ten times a second. Then
the loop trains, in turns, on the images in their file and on a copy in memory.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import yaml

import mnist
from digits.data import dataset, description
from digits.data.dataset import Facts, Labels, PixelFacts, Split
from digits.data.description import Description
from digits.data.storage import write_document
from digits.params import load
from digits.paths import Paths
from digits.training.device import prepare
from digits.training.engine import for_training
from digits.training.group import Group
from digits.training.loop import Images, Step, new_net, train
from folder import LOOK_SECONDS

BLOCK = 4096  # images that are made at once
CLASSES = tuple("0123456789")
EVERY = 500  # steps between two points
TURNS = 5


class Held(NamedTuple):
    """Seconds that a stage took, and the most MB of memory of its own."""

    seconds: float
    megabytes: float


class Compared(NamedTuple):
    """Images a second, the median of turns."""

    in_file: float
    in_memory: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8_000_000)
    with generated(parser.parse_args().images) as root:
        for stage in ("train", "evaluate"):
            found = held(root, stage)
            print(
                f"{stage}: {found.seconds:.1f} s, {found.megabytes:.0f} MB of its own", flush=True
            )
        rates = compared(root)
        print(
            f"trained on from the file {rates.in_file:,.0f} images a second, "
            f"from memory {rates.in_memory:,.0f}: {rates.in_file / rates.in_memory:.2f}"
        )


@contextmanager
def generated(images: int) -> Iterator[Path]:
    """A project that has splits of so many images together, and is removed again."""
    with mnist.project() as root:
        paths = Paths(root)
        params = yaml.safe_load(paths.params.read_text(encoding="utf-8"))
        params["train"] |= {"epochs": 1, "log_every": EVERY}
        params["tracking"]["enabled"] = False
        paths.params.write_text(yaml.safe_dump(params), encoding="utf-8")
        paths.raw.mkdir(parents=True)
        described = Description("generated", "Noise", "no source", "no licence", CLASSES, {})
        description.write(paths.raw, described)
        part, counts = images // 20, {}
        for name, count in (("train", images - 2 * part), ("validation", part), ("test", part)):
            counts[name] = write(paths.split(name), count)
        document = {"images_per_class": counts, "test_images_also_in_train": 0}
        write_document(paths.processed / "statistics.json", document)
        yield root


def write(path: Path, count: int) -> list[int]:
    """Write a split of so many images; how many are of each class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.random.default_rng(0).integers(0, len(CLASSES), count, np.uint8)
    facts: Facts = PixelFacts("generated", CLASSES, 0.4, 0.3)
    if path.stem != "train":
        facts = Facts("generated", CLASSES)
    dataset.write_growing(path, blocks(labels), facts, lambda: (labels, facts))
    return [int(of_class) for of_class in np.bincount(labels)]


def blocks(labels: Labels) -> Iterator[npt.NDArray[np.uint8]]:
    """Images of noise, the brighter the higher their label is."""
    dice = np.random.default_rng(1)
    for start in range(0, len(labels), BLOCK):
        some = labels[start : start + BLOCK, None, None, None]
        yield dice.integers(0, 32, (len(some), 1, 28, 28), np.uint8) + 20 * some


def held(root: Path, stage: str) -> Held:
    """Run a stage of a project, and look at its memory meanwhile."""
    command = [sys.executable, f"src/{stage}.py"]
    began, most = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, own_memory(process.pid))
            time.sleep(LOOK_SECONDS)
        said = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise SystemExit(said)
    return Held(time.perf_counter() - began, most / 1e6)


def own_memory(pid: int) -> int:
    """Bytes of a process's memory that are of no file."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    sizes = (
        line.split()[1]
        for line in status.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )
    return 1024 * sum(map(int, sizes))


def compared(root: Path) -> Compared:
    """How fast the loop trains on a split in its file and on one in memory."""
    split = dataset.read(Paths(root).split("train"))
    copied = Split(split.images.copy(), split.labels, split.facts)
    runs = [steps(root, each) for each in (split, copied)]
    for run in runs:  # first steps, and the pages are read
        next(run)
    rates = [[next(run) for run in runs] for _ in range(TURNS)]
    return Compared(*(median(column) for column in zip(*rates, strict=True)))


def steps(root: Path, split: Split) -> Iterator[float]:
    """Train on a split: images a second, from one point of the loss curve to the next."""
    recipe = load(Paths(root).params).train
    machine = prepare(recipe, Group.found())
    images = Images(torch.from_numpy(split.images), torch.from_numpy(split.labels).long())
    net = new_net(recipe.seed, len(CLASSES), split.shape, 0.4, 0.3)
    engine = for_training(net, *images, recipe, machine)
    none = Images(images.images[:0], images.labels[:0])
    began = time.perf_counter()
    for event in train(net, images, none, recipe, machine, engine):
        if isinstance(event, Step) and event.step:
            yield EVERY * recipe.batch_size / (time.perf_counter() - began)
            began = time.perf_counter()


if __name__ == "__main__":
    main()
