"""A folder of one's own images: what is in it, and which image is of which class and split.

It holds `CLASS/PICTURE`, or `train/`, `test/` and maybe `validation/` above that. Names that begin
with a dot don't count, nor does what lies beside the folders, unless it is a picture.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from digits.data.description import Description
from digits.errors import DataError
from digits.params import FOLDER
from splice.files import md5

SPLITS = ("train", "validation", "test")
MOST_CLASSES = 1000
CLASS = re.compile(r"\w[\w .-]{0,99}")  # what MLflow takes in the name of a metric
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class _Names(NamedTuple):
    folders: list[str]
    files: list[str]


def describe(folder: Path) -> Description:
    """What is in the folder, with the MD5 of each file; no picture is opened.

    Raises:
        DataError: there is no such folder, it isn't laid out by classes, has fewer than 2 or more
            than 1,000 of them, names that can't be used, a link that leads out of it, or the same
            file in two classes.
    """
    places = _places(folder)
    names = [f"{place}/{name}" for place in places for name in _pictures(folder, place)]
    classes = sorted({place.rpartition("/")[2] for place in places})
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"{folder} holds {len(classes):,} folders of classes, allowed are 2 to "
            f"{MOST_CLASSES:,}; give each class a folder that holds its pictures"
        )
    for name in classes:
        if not CLASS.fullmatch(name):
            raise DataError(
                f"the class {name} in {folder} has a name of more than 100 characters or of others "
                "than letters, digits, blanks and . _ -; rename its folder"
            )
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(md5, [folder / name for name in names])
        files = dict(zip(names, hashes, strict=True))
    _refuse_doubles(files, folder)
    title = f"{folder.name}, {len(files):,} images of {len(classes):,} classes"
    return Description(FOLDER, title, "a folder of images", "not stated", tuple(classes), files)


def split_of(name: str) -> str:
    """The split that a file's name says it is of; empty if it is to be drawn."""
    return name.split("/")[0] if name.count("/") == 2 else ""


def class_of(name: str) -> str:
    """The class that a file's name says it is of."""
    return name.split("/")[-2]


def _places(folder: Path) -> list[str]:
    """The folder of each class, or of each class in each split."""
    if not folder.is_dir():
        raise DataError(f"folder.path is {folder}, which is no folder; give the path of one")
    top = _names(folder, folder)
    for name in top.files:
        if name.lower().endswith(PICTURES):
            raise DataError(f"{folder / name} lies in no class; move it into its class's folder")
    if "train" not in top.folders or not set(top.folders) <= set(SPLITS):
        return top.folders
    return [
        f"{split}/{name}" for split in top.folders for name in _names(folder, folder / split)[0]
    ]


def _pictures(folder: Path, place: str) -> list[str]:
    found = _names(folder, folder / place)
    if found.folders:
        raise DataError(
            f"{folder / place / found.folders[0]} is a folder within a class; allowed are "
            "CLASS/PICTURE, and train, test and validation alone above that: move its pictures"
        )
    return found.files


def _names(root: Path, folder: Path) -> _Names:
    """The names in a folder below `root`, in order; links lead to somewhere below `root`."""
    names = _Names([], [])
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if not entry.name.isprintable():  # nor is what isn't UTF-8
                raise DataError(
                    f"{folder} holds {entry.name!a}, a name that isn't printable UTF-8; rename it"
                )
            if entry.is_symlink() and not _leads_into(root, Path(entry.path)):
                raise DataError(
                    f"{entry.path} is a link to nowhere or out of {root}; put the file there itself"
                )
            (names.folders if entry.is_dir() else names.files).append(entry.name)
    return names


def _leads_into(root: Path, link: Path) -> bool:
    return link.exists() and link.resolve().is_relative_to(root.resolve())


def _refuse_doubles(files: dict[str, str], folder: Path) -> None:
    """One picture can't be of two classes."""
    first: dict[str, str] = {}
    for name, checksum in files.items():
        before = first.setdefault(checksum, name)
        if class_of(before) != class_of(name):
            raise DataError(
                f"{before} and {name} in {folder} are the same picture in two classes; "
                "delete the one that is wrong"
            )
