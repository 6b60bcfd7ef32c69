"""The full MNIST for the benchmarks, as the pipeline would have it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from digits.data import formats  # noqa: E402
from digits.data.split import pixel_counts, statistics, stratified  # noqa: E402
from digits.params import Params, load, overrides  # noqa: E402
from digits.training.loop import Images  # noqa: E402


class Data(NamedTuple):
    """Splits on the CPU, and the training split's pixel statistics."""

    train: Images
    validation: Images
    test: Images
    mean: float
    std: float
    classes: int = 10


def folder() -> Path:
    """The folder that holds MNIST's four files: DATA_MIRROR, or data/raw after `make repro`."""
    for place in (os.environ.get("DATA_MIRROR", ""), ROOT / "data" / "raw"):
        if place and all((Path(place) / name).exists() for name in formats.IDX_NAMES):
            return Path(place).resolve()
    sys.exit("no full MNIST here: run `make repro`, or set DATA_MIRROR to a folder that has it")


def read(validation: float, seed: int = 1) -> Data:
    """Read MNIST and hold out a share of the training images for validation."""
    images, labels, test_images, test_labels = (
        formats.read_idx(folder() / name, 3 - 2 * (i % 2))
        for i, name in enumerate(formats.IDX_NAMES)
    )
    kept, held_out = stratified(labels, validation, seed)
    mean, std = statistics(pixel_counts(images[kept]))

    def split(images: torch.Tensor, labels: torch.Tensor) -> Images:
        return Images(images.unsqueeze(1), labels.long())

    whole = split(torch.from_numpy(images), torch.from_numpy(labels))
    return Data(
        Images(whole.images[kept], whole.labels[kept]),
        Images(whole.images[held_out], whole.labels[held_out]),
        split(torch.from_numpy(test_images), torch.from_numpy(test_labels)),
        mean,
        std,
    )


def params(changes: tuple[str, ...] = ()) -> Params:
    """params.yaml with `section.key=value` overrides, as `dvc exp run -S` takes them."""
    import yaml

    from splice.settings import checked

    path = ROOT / "params.yaml"
    load(path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for change in changes:
        key, _, value = change.partition("=")
        section, _, name = key.partition(".")
        document[section][name] = yaml.safe_load(value)
    return checked(Params, document, path)


def recipe(name: str) -> tuple[str, ...]:
    """The overrides of a recipe in `recipes/`."""
    return tuple(overrides(ROOT / "recipes" / f"{name}.yaml", ROOT / "params.yaml"))


@contextmanager
def project() -> Iterator[Path]:
    """A clone of this checkout as it stands, with nothing made in it yet."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        for name in names.split("\0"):
            source, target = ROOT / name, Path(folder, "project", name)
            if source.is_file() and name != "dvc.lock":
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        yield Path(folder, "project")
