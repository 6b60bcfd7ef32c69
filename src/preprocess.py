"""Stage `preprocess`: raw files into checked uint8 splits and their statistics."""

from digits import stage

if __name__ == "__main__":
    stage.begin()

import numpy as np

from digits.data import dataset, description, raw
from digits.data.dataset import Facts, PixelFacts, Split
from digits.data.description import Description
from digits.data.formats import CURE
from digits.data.raw import Bytes, Raw
from digits.data.split import count_shared, keep_in_place, pixel_statistics, stratified
from digits.data.storage import write_document
from digits.errors import DataError
from digits.params import Params, Preprocess
from digits.paths import Paths, State
from splice import Join


def main(params: Params, paths: Paths, _state: State, _join: Join) -> None:
    """Check, split, measure and write.

    Raises:
        DataError: a raw file is missing, damaged, or not what it should be.
    """
    known = description.read(paths.raw)
    training, test = raw.read(known, paths.raw)
    shared = count_shared(test.images, training.images)
    kept, held_out = stratified(
        training.labels, params.preprocess.validation, params.preprocess.seed
    )
    validation = Raw(training.images[held_out], training.labels[held_out])
    train = Raw(keep_in_place(training.images, kept), training.labels[kept])
    _refuse_empty_classes(train.labels, known)

    facts = Facts(known.name, known.classes)
    pixels = _pixels(train.images, params.preprocess, facts)
    counts = {}
    for name, part, carried in (
        ("train", train, pixels),
        ("validation", validation, facts),
        ("test", test, facts),
    ):
        dataset.write(paths.split(name), Split(part.images[:, None], part.labels, carried))
        counts[name] = np.bincount(part.labels, minlength=len(known.classes)).tolist()
    write_document(
        paths.processed / "statistics.json",
        {
            "dataset": known.name,
            "title": known.title,
            "mean": pixels.mean,
            "std": pixels.std,
            "classes": list(known.classes),
            "images": {name: sum(values) for name, values in counts.items()},
            "images_per_class": counts,
            "test_images_also_in_train": shared,
        },
    )
    sizes = ", ".join(f"{name} {sum(values):,}" for name, values in counts.items())
    stage.say("preprocess", f"{known.name}: {sizes} images; {shared} of test also in train")


def _refuse_empty_classes(labels: Bytes, known: Description) -> None:
    counts = np.bincount(labels, minlength=len(known.classes))
    missing = [name for name, count in zip(known.classes, counts, strict=True) if not count]
    if missing:
        raise DataError(f"no training images of class {', '.join(missing)}; {CURE}")


def _pixels(images: Bytes, params: Preprocess, facts: Facts) -> PixelFacts:
    mean, std = pixel_statistics(images)
    mean = mean if params.mean is None else params.mean
    std = std if params.std is None else params.std
    if std <= 0:
        raise DataError(f"all training pixels are alike (standard deviation 0); {CURE}")
    return PixelFacts(facts.dataset, facts.classes, mean, std)


if __name__ == "__main__":
    stage.run("preprocess", main)
