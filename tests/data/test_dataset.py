"""Processed splits: read as written, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits.data import dataset, storage
from digits.data.dataset import Facts, PixelFacts, Split
from digits.errors import DataError

CLASSES = ("0", "1", "2")
IMAGES = np.arange(4 * 784, dtype=np.int64).astype(np.uint8).reshape(4, 1, 28, 28)
LABELS = np.array([0, 1, 2, 0], np.uint8)
FACTS = {"dataset": "mnist", "classes": list(CLASSES), "mean": 0.1, "std": 0.3}


@pytest.mark.parametrize("facts", [Facts("mnist", CLASSES), PixelFacts("mnist", CLASSES, 0.1, 0.3)])
@pytest.mark.parametrize("count", [0, 4])
def test_a_split_is_read_as_it_was_written(tmp_path: Path, facts: Facts, count: int) -> None:
    path = tmp_path / "train.safetensors"
    dataset.write(path, Split(IMAGES[:count], LABELS[:count], facts))
    split = dataset.read(path)
    assert split.facts == facts
    assert np.array_equal(split.images, IMAGES[:count])
    assert np.array_equal(split.labels, LABELS[:count])
    assert len(split) == count


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, r"holds \['images'\]"),
        ({"images": IMAGES, "labels": LABELS, "more": LABELS}, "it holds"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "images are float32"),
        ({"images": IMAGES[:, 0], "labels": LABELS}, r"images are uint8 \[4, 28, 28\]"),
        ({"images": IMAGES[..., :0], "labels": LABELS}, r"images are uint8 \[4, 1, 28, 0\]"),
        ({"images": np.zeros((), np.uint8), "labels": LABELS}, r"images are uint8 \[\]"),
        ({"images": IMAGES, "labels": LABELS[:3]}, r"labels are uint8 \[3\]"),
        ({"images": IMAGES, "labels": LABELS.astype(np.int64)}, "labels are int64"),
        ({"images": IMAGES, "labels": LABELS.reshape(2, 2)}, r"labels are uint8 \[2, 2\]"),
        ({"images": IMAGES, "labels": LABELS + 1}, "label 3 with 3 classes"),
    ],
)
def test_wrong_tensors_are_refused_by_what_is_wrong(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    path = tmp_path / "train.safetensors"
    storage.write_arrays(path, arrays, FACTS)
    with pytest.raises(DataError, match=rf"{words}.*; delete it and run `dvc repro`"):
        dataset.read(path)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"dataset": "mnist"},
        FACTS | {"dataset": 3},
        FACTS | {"classes": "012"},
        FACTS | {"classes": ["0"]},
        FACTS | {"classes": ["0", 1, "2"]},
        FACTS | {"classes": ["0", "1", 2]},
        FACTS | {"std": 0.0},
        FACTS | {"std": -1.0},
        FACTS | {"std": float("nan")},
        FACTS | {"std": float("inf")},
        FACTS | {"mean": float("nan")},
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    path = tmp_path / "train.safetensors"
    storage.write_arrays(path, {"images": IMAGES, "labels": LABELS}, facts)
    with pytest.raises(DataError, match="is not a split of uint8 images"):
        dataset.read(path)
