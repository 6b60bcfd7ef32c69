"""What `data/raw/dataset.json` says: what the raw files are, and nothing of how they came here."""

from dataclasses import asdict, dataclass
from pathlib import Path

from digits.data.storage import write_document
from digits.errors import DataError
from splice.files import read_json

NAME = "dataset.json"


@dataclass(frozen=True)
class Description:
    """A data set in words.

    Attributes:
        name: its name in params.yaml.
        title: what it is, in one line.
        source: who made it, and where they describe it.
        licence: its licence.
        classes: the classes' names in the order of their labels.
        files: the MD5 of each raw file by its name.
        split: which of the data sets in the files, where they hold several.
    """

    name: str
    title: str
    source: str
    licence: str
    classes: tuple[str, ...]
    files: dict[str, str]
    split: str | None = None


def write(folder: Path, description: Description) -> None:
    """Write `dataset.json`; the same bytes on every machine."""
    said = {name: value for name, value in asdict(description).items() if value is not None}
    write_document(folder / NAME, said)


def read(folder: Path) -> Description:
    """Read and check `dataset.json`.

    Raises:
        DataError: missing, unreadable, or not such a description.
    """
    path = folder / NAME
    document = read_json(path)
    match document:
        case {
            "name": str(name),
            "title": str(title),
            "source": str(source),
            "licence": str(licence),
            "classes": [_, _, *_] as classes,
            "files": dict(files),
        } if all(isinstance(text, str) for text in [*classes, *files.values()]):
            match document.get("split"):
                case None | str() as split:
                    return Description(name, title, source, licence, tuple(classes), files, split)
    raise DataError(
        f"{path} doesn't describe a data set; run `dvc repro --force --single-item download`"
    )
