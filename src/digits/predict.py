"""The model's answers to pictures from anywhere, brought into the form it was trained on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from digits import params
from digits.data.folder import PICTURES
from digits.data.picture import opened, read_picture
from digits.errors import DataError
from digits.source import BATCH, Bytes, Source

Read = Callable[[Path | BinaryIO], list[Bytes]]


class Guess(NamedTuple):
    """The most probable class and the next one, with their probabilities 0..1."""

    name: str
    probability: float
    runner_up: str
    runner_up_probability: float


class Answer(NamedTuple):
    """What is on a picture, from left to right; nothing, or several digits; or why it isn't known.

    `error` is '' for a picture that could be read.
    """

    path: Path
    guesses: list[Guess]
    error: str


def files(given: Sequence[Path]) -> list[Path]:
    """The pictures that are meant: of a folder, all in it and below, in the order of their names.

    Raises:
        DataError: a folder holds none.
    """
    found = []
    for path in given:
        inside = [path]
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in PICTURES)
            if not inside:
                raise DataError(f"{path} holds no picture ({', '.join(PICTURES)})")
        found += inside
    return found


def predict(model: Source, pictures: Sequence[Path]) -> Iterator[Answer]:
    """What a model takes pictures for, in their order and within bounded memory."""
    names, read = list(map(str, model.description["classes"])), reader_for(model.description)
    for start in range(0, len(pictures), BATCH):
        images: list[Bytes] = []
        counts: list[int] = []
        errors: list[str] = []
        for path in pictures[start : start + BATCH]:
            found, error = [], ""
            try:
                found = read(path)
            except DataError as problem:
                error = str(problem)
            images += found
            counts.append(len(found))
            errors.append(error)
        guesses = _guesses(model, images, names)
        for path, count, error in zip(pictures[start:], counts, errors, strict=False):
            yield Answer(path, [next(guesses) for _ in range(count)], error)


def _guesses(model: Source, images: list[Bytes], names: list[str]) -> Iterator[Guess]:
    for row in model.probabilities(images):
        *_, second, first = np.argsort(row, kind="stable")
        yield Guess(names[first], float(row[first]), names[second], float(row[second]))


def reader_for(description: Mapping[str, Any]) -> Read:
    """How pictures are read that a model is to know: as it was trained on them."""
    shape = tuple(description["shape"])
    match description:
        case {"dataset": params.FOLDER, "params": {"folder.fit": "pad" | "crop" as fit}}:
            return lambda path: [read_picture(path, shape, fit)]
    return partial(_drawn, shape=shape)


def _drawn(path: Path | BinaryIO, shape: tuple[int, int, int]) -> list[Bytes]:
    """Light drawings on black, as MNIST's are, of dark ones on paper or light ones on dark ground.

    One of the very size is the image itself; on another, what is drawn is looked for.
    """
    channels, height, width = shape
    if channels != 1 or height != width:
        return [read_picture(path, shape)]
    from digits import ink

    grey = np.asarray(opened(path, channels))
    if grey.shape == (height, width):
        return [ink.light_on_dark(grey)[None]]
    return [image[None] for image in ink.find(grey, height)]
