"""Stage `preprocess`: raw files into checked uint8 splits and their statistics."""

from digits import stage

if __name__ == "__main__":
    stage.begin()

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from digits.data import dataset, description, folder, raw
from digits.data.dataset import Facts, Labels, PixelFacts, Split, label_type
from digits.data.description import Description
from digits.data.folder import SPLITS
from digits.data.formats import CURE
from digits.data.picture import Fit, forget, read_resumably
from digits.data.raw import TEST_SEED, Bytes, Raw
from digits.data.split import (
    Indices,
    count_shared,
    image_digest,
    keep_in_place,
    pixel_counts,
    statistics,
    stratified,
)
from digits.data.storage import write_document
from digits.errors import DataError
from digits.params import FOLDER, Folder, Params, Preprocess
from digits.paths import Paths, State
from splice import Join
from splice.command_line import progress
from splice.files import digest, md5, written_whole

NAMED = 3  # unreadable pictures, of however many


# Images by split and class, facts of the pixels, and how many images of test are also in train.
Made = tuple[dict[str, list[int]], PixelFacts, int]


def main(params: Params, paths: Paths, state: State, _join: Join) -> None:
    """Check, split, measure and write.

    Raises:
        DataError: a raw file is missing, damaged, or not what it should be.
    """
    known = description.read(paths.raw)
    kept = state.pictures / _identity(params, paths)
    if known.name == FOLDER:
        counts, pixels, shared = _from_pictures(known, params, paths, kept)
    else:
        counts, pixels, shared = _from_files(known, params, paths)
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
    forget(kept)
    sizes = ", ".join(f"{name} {sum(values):,}" for name, values in counts.items())
    stage.say("preprocess", f"{known.name}: {sizes} images; {shared} of test also in train")


def _identity(params: Params, paths: Paths) -> str:
    """The hash of all that decides what is read of pictures, and in which order."""
    fields = params.flat("folder", "preprocess")
    del fields["folder.skip_unreadable"]
    raw = md5(paths.raw / description.NAME)
    return digest([raw, fields, stage.code(), PIL.__version__])[:32]


def _from_files(known: Description, params: Params, paths: Paths) -> Made:
    training, test = raw.read(known, paths.raw)
    shared = count_shared(test.images, training.images)
    kept, held_out = stratified(
        training.labels, params.preprocess.validation, params.preprocess.seed
    )
    validation = Raw(training.images[held_out], training.labels[held_out])
    train = Raw(keep_in_place(training.images, kept), training.labels[kept])
    _refuse_empty_classes(train.labels, known)

    facts = Facts(known.name, known.classes)
    pixels = _pixels(statistics(pixel_counts(train.images)), params.preprocess, facts)
    counts = {}
    for name, part, carried in (
        ("train", train, pixels),
        ("validation", validation, facts),
        ("test", test, facts),
    ):
        dataset.write(paths.split(name), Split(part.images[:, None], part.labels, carried))
        counts[name] = np.bincount(part.labels, minlength=len(known.classes)).tolist()
    return counts, pixels, shared


def _refuse_empty_classes(labels: Bytes, known: Description) -> None:
    counts = np.bincount(labels, minlength=len(known.classes))
    missing = [name for name, count in zip(known.classes, counts, strict=True) if not count]
    if missing:
        raise DataError(f"no training images of class {', '.join(missing)}; {CURE}")


def _pixels(measured: tuple[float, float], params: Preprocess, facts: Facts) -> PixelFacts:
    mean = measured[0] if params.mean is None else params.mean
    std = measured[1] if params.std is None else params.std
    if std <= 0:
        cure = "look at the pictures" if facts.dataset == FOLDER else CURE
        raise DataError(f"all training pixels are alike (standard deviation 0); {cure}")
    return PixelFacts(facts.dataset, facts.classes, mean, std)


def _from_pictures(known: Description, params: Params, paths: Paths, kept: Path) -> Made:
    """The pictures pass through memory once, so there may be more than fit into it."""
    if kept.exists():
        stage.say("preprocess", "going on with the pictures that were not read yet")
    number = {name: label for label, name in enumerate(known.classes)}
    classes = [number[folder.class_of(name)] for name in known.files]
    labels = np.array(classes, label_type(len(number)))
    facts = Facts(known.name, known.classes)
    drawn = _drawn(known, labels, params)
    _refuse_small_classes({name: labels[drawn[name]] for name in SPLITS}, known)

    readers = {}
    with ExitStack() as stack:  # all three splits are written, or none
        show = stack.enter_context(progress(len(labels), "preprocess", "pictures read"))
        for name in SPLITS:
            files = _listed(known, drawn[name], paths.root / params.folder.path)
            reader = _Reader(files, labels[drawn[name]], params.folder, kept / name, show)
            readers[name] = reader
            rest = partial(reader.rest, facts, params.preprocess if name == "train" else None)
            aside = stack.enter_context(written_whole(paths.split(name)))
            dataset.write_growing(aside, reader.blocks(), facts, rest)
        _report_unreadable(readers, params.folder.skip_unreadable)
        read = {name: reader.read_labels for name, reader in readers.items()}
        _refuse_small_classes(read, known)
    pixels = _pixels(statistics(readers["train"].histogram), params.preprocess, facts)
    others = {*readers["train"].digests, *readers["validation"].digests}
    shared = sum(digest in others for digest in readers["test"].digests)
    counts = {name: _count(found, known) for name, found in read.items()}
    _report_balance(np.sum(list(counts.values()), 0), known)
    return {name: found.tolist() for name, found in counts.items()}, pixels, shared


def _drawn(known: Description, labels: Labels, params: Params) -> dict[str, Indices]:
    """Which images are of which split: as their folders say, or drawn where those say nothing."""
    said = np.array([folder.split_of(name) or "train" for name in known.files])
    train, validation, test = (np.flatnonzero(said == name) for name in SPLITS)
    if not len(test):
        rest, taken = stratified(labels[train], params.folder.test, TEST_SEED)
        train, test = train[rest], train[taken]
    if not len(validation):
        share, seed = params.preprocess.validation, params.preprocess.seed
        rest, taken = stratified(labels[train], share, seed)
        train, validation = train[rest], train[taken]
    return dict(zip(SPLITS, (train, validation, test), strict=True))


def _listed(known: Description, drawn: Indices, images: Path) -> list[tuple[Path, str]]:
    """The paths of images, and the MD5 of each."""
    files = list(known.files.items())
    return [(images / files[i][0], files[i][1]) for i in drawn]


def _count(labels: Labels, known: Description) -> Indices:
    return np.bincount(labels, minlength=len(known.classes))


def _refuse_small_classes(labels: Mapping[str, Labels], known: Description) -> None:
    train, validation, test = (_count(labels[name], known) for name in SPLITS)
    for label, name in enumerate(known.classes):
        if not train[label] or not test[label]:
            images = train[label] + validation[label] + test[label]
            raise DataError(
                f"the class {name} has too few images, {images}: {train[label]} to train and "
                f"{test[label]} to test; add some, or remove its folder"
            )


class _Reader:
    """Reads the pictures of one split, and keeps what is to be known of them."""

    def __init__(
        self,
        files: list[tuple[Path, str]],
        labels: Labels,
        folder: Folder,
        kept: Path,
        show: Callable[[int], object],
    ) -> None:
        self.files, self.labels, self.kept, self.show = files, labels, kept, show
        self.shape = folder.channels, folder.size, folder.size
        self.fit: Fit = folder.fit
        self.readable: list[bool] = []
        self.reasons: list[str] = []
        self.digests: list[bytes] = []
        self.histogram = np.zeros(256, np.int64)

    def blocks(self) -> Iterator[Bytes]:
        """The images that can be read, uint8 `[n, channels, height, width]`."""
        yield np.empty((0, *self.shape), np.uint8)
        for block in read_resumably(self.files, self.shape, self.fit, self.kept):
            stage.stop_if_orphaned()
            self.readable += block.readable
            self.reasons += block.reasons
            self.digests += map(image_digest, block.images)
            self.histogram += pixel_counts(block.images)
            self.show(len(block.readable))
            yield block.images

    @property
    def read_labels(self) -> Labels:
        return self.labels[np.flatnonzero(self.readable)]

    def rest(self, facts: Facts, measured: Preprocess | None) -> tuple[Labels, Facts]:
        """What a split holds beside its images, once they are read."""
        if measured is not None:
            facts = _pixels(statistics(self.histogram), measured, facts)
        return self.read_labels, facts


def _report_unreadable(readers: Mapping[str, _Reader], skip: bool) -> None:
    missing = [
        str(path)
        for reader in readers.values()
        for (path, _), readable in zip(reader.files, reader.readable, strict=True)
        if not readable
    ]
    if not missing:
        return
    reason = next(reason for reader in readers.values() for reason in reader.reasons)
    also = f"; so are {', '.join(missing[1:NAMED])}" if missing[1:] else ""
    more = f" and {len(missing) - NAMED:,} more" if missing[NAMED:] else ""
    count = f"{len(missing):,} of the pictures can't be read: {reason}{also}{more}"
    if not skip:
        raise DataError(f"{count}. folder.skip_unreadable: true leaves them out")
    stage.say("preprocess", f"LEFT OUT, as folder.skip_unreadable says: {count}")


def _report_balance(images: Indices, known: Description) -> None:
    few, most = int(images.argmin()), int(images.argmax())
    said = f"every class has {images[few]:,} images"
    if few != most:
        said = (
            f"classes have {images[few]:,} ({known.classes[few]}) to {images[most]:,} "
            f"({known.classes[most]}) images: {images[most] / images[few]:.1f} times as many"
        )
    stage.say("preprocess", said)


if __name__ == "__main__":
    stage.run("preprocess", main)
