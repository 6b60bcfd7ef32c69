"""Raw files into checked uint8 splits and their statistics."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from digits import datasets, formats, processed, stage
from digits.datasets import Dataset
from digits.errors import DataError
from digits.params import Preprocess
from digits.processed import Facts, PixelFacts, Split
from digits.project import Paths
from digits.splitting import count_shared, keep_in_place, pixel_statistics, stratified
from splice.files import read_json, write_json

Bytes = npt.NDArray[np.uint8]

TEST_SHARE, TEST_SEED = 0.2, 0  # of mnist-5k, which has no test set of its own


class Raw(NamedTuple):
    """Images uint8 `[N, height, width]` and labels uint8 `[N]`."""

    images: Bytes
    labels: Bytes


def preprocess(params: Preprocess, paths: Paths) -> None:
    """Split, measure, check and write.

    Raises:
        DataError: a raw file is missing, damaged, or not what it should be.
    """
    dataset = _dataset(paths.raw)
    training, test = _read(dataset, paths.raw)
    shared = count_shared(test.images, training.images)
    kept, held_out = stratified(training.labels, params.validation, params.seed)
    validation = Raw(training.images[held_out], training.labels[held_out])
    train = Raw(keep_in_place(training.images, kept), training.labels[kept])
    _refuse_empty_classes(train.labels, dataset)
    facts = _facts(train.images, params, dataset)
    plain = Facts(dataset.name, dataset.classes)
    counts = {}
    for name, raw, known in (
        ("train", train, facts),
        ("validation", validation, plain),
        ("test", test, plain),
    ):
        processed.write(paths.split(name), Split(raw.images[:, None], raw.labels, known))
        counts[name] = np.bincount(raw.labels, minlength=len(dataset.classes)).tolist()
    _report(dataset, facts, counts, shared, paths)


def _dataset(raw: Path) -> Dataset:
    description = read_json(raw / "dataset.json")
    name = description.get("name") if isinstance(description, dict) else None
    if name in datasets.ALL and description == datasets.ALL[name].description():
        return datasets.ALL[name]
    raise DataError(
        f"{raw / 'dataset.json'} doesn't describe a known data set; "
        "run `dvc repro --force --single-item download`"
    )


def _read(dataset: Dataset, raw: Path) -> tuple[Raw, Raw]:
    if dataset is datasets.MNIST_5K:
        return _read_5k(dataset, raw)
    names = [file.name for file in dataset.files]
    parts = []
    for images_name, labels_name in (names[:2], names[2:]):
        images = formats.read_idx(raw / images_name, 3)
        labels = formats.read_idx(raw / labels_name, 1)
        parts.append(_checked(Raw(images, labels), raw / images_name, raw / labels_name, dataset))
    return parts[0], parts[1]


def _read_5k(dataset: Dataset, raw: Path) -> tuple[Raw, Raw]:
    path = raw / dataset.files[0].name
    height, width = dataset.size
    pixels, labels = formats.read_csv(path, height * width)
    whole = _checked(Raw(pixels.reshape(-1, height, width), labels), path, path, dataset)
    rest, test = stratified(labels, TEST_SHARE, TEST_SEED)
    return Raw(whole.images[rest], labels[rest]), Raw(whole.images[test], labels[test])


def _checked(part: Raw, images_path: Path, labels_path: Path, dataset: Dataset) -> Raw:
    images, labels = part
    if images.shape[1:] != dataset.size:
        raise DataError(
            f"{images_path} holds images of {'x'.join(map(str, images.shape[1:]))}, "
            f"expected {'x'.join(map(str, dataset.size))}; {formats.CURE}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images):,} images but {labels_path} "
            f"{len(labels):,} labels; {formats.CURE}"
        )
    if labels.max() >= len(dataset.classes):
        raise DataError(
            f"{labels_path} holds label {labels.max()}, allowed 0 to {len(dataset.classes) - 1}; "
            f"{formats.CURE}"
        )
    return part


def _refuse_empty_classes(labels: Bytes, dataset: Dataset) -> None:
    counts = np.bincount(labels, minlength=len(dataset.classes))
    missing = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if missing:
        raise DataError(f"no training images of class {', '.join(missing)}; {formats.CURE}")


def _facts(images: Bytes, params: Preprocess, dataset: Dataset) -> PixelFacts:
    mean, std = pixel_statistics(images)
    mean = mean if params.mean is None else params.mean
    std = std if params.std is None else params.std
    if std <= 0:
        raise DataError(f"all training pixels are alike (standard deviation 0); {formats.CURE}")
    return PixelFacts(dataset.name, dataset.classes, mean, std)


def _report(
    dataset: Dataset, facts: PixelFacts, counts: dict[str, list[int]], shared: int, paths: Paths
) -> None:
    statistics = {
        "dataset": dataset.name,
        "title": dataset.title,
        "mean": facts.mean,
        "std": facts.std,
        "classes": list(dataset.classes),
        "images": {name: sum(values) for name, values in counts.items()},
        "images_per_class": counts,
        "test_images_also_in_train": shared,
    }
    write_json(paths.processed / "statistics.json", statistics)
    sizes = ", ".join(f"{name} {sum(values):,}" for name, values in counts.items())
    stage.say("preprocess", f"{dataset.name}: {sizes} images; {shared} of test also in train")
