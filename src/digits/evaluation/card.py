"""The model card: what the model is, for whoever is handed it.

Its form is Hugging Face's (github.com/huggingface/hub-docs, modelcard.md), its text beside this
file. It holds what the files of the project say, and nothing of when or where: same files, same
bytes.
"""

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from digits.data import description
from digits.data.description import Description
from digits.errors import DataError
from digits.evaluation.metrics import accuracy_interval
from digits.evaluation.plots import WORST
from digits.evaluation.report import CARD, figures
from digits.params import FOLDER
from digits.paths import Paths
from digits.training.history import EPOCH_COLUMNS, History
from splice.files import md5, read_bytes, read_json, write_text

# Hugging Face's identifiers of licences that data sets come under, as they are written here in
# lower case with dashes; what is none of them is `unknown` (hf.co/docs/hub/repositories-licenses).
LICENCES = (
    *("apache-2.0", "bsd-3-clause", "cc0-1.0", "mit", "odbl"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
)
SCORES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1"}
NAMED = 20  # classes, before the rest is counted
MARKS = re.compile(r"([\\`*_\[\]<>|~#])")  # what Markdown takes for more than a character


class Origin(NamedTuple):
    """What the card says of the data and of the packages.

    Attributes:
        data: what the raw files are.
        images: of each class in each split.
        shared: how many test images are also in the training data.
        packages: MD5 of requirements.lock.
    """

    data: Description
    images: dict[str, list[int]]
    shared: int
    packages: str


def origin(paths: Paths) -> Origin:
    """What the stages before have written of the data.

    Raises:
        DataError: a file is missing or damaged.
    """
    path = paths.processed / "statistics.json"
    packages = md5(paths.root / "requirements.lock")
    match read_json(path):
        case {"images_per_class": dict(images), "test_images_also_in_train": int(shared)}:
            return Origin(description.read(paths.raw), images, shared, packages)
    raise DataError(f"{path} holds no counts; run `dvc repro --force --single-item preprocess`")


def write(paths: Paths, made: Origin, model: Mapping[str, Any], history: History) -> None:
    """Write the card of the evaluation that lies in reports/.

    Args:
        paths: where to.
        made: what the model was made from.
        model: what its file says of itself.
        history: of its training.
    """
    metrics = read_json(paths.reports / "metrics.json")["test"]
    scores = read_json(paths.reports / "classes.json")
    hashes = {**model["data"], "test": read_json(paths.reports / "evaluation.json")["test"]}
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  Markdown, not HTML; `plain` escapes it
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"plain": plain, "value": _value, "percent": "{:.2%}".format}
    text = templates.get_template("card.md.jinja").render(
        metadata=_metadata(made.data, metrics),
        data=made.data,
        is_own=made.data.name == FOLDER,
        shared=made.shared,
        images=made.images,
        model=model,
        model_hash=read_json(paths.reports / "evaluation.json")["model"],
        hashes=hashes,
        packages=made.packages,
        metrics=metrics,
        interval=accuracy_interval(metrics["accuracy"], sum(made.images["test"])),
        last=dict(zip(EPOCH_COLUMNS, history.epochs[-1], strict=True)),
        figures=figures(paths),
        classes=_by_class(made, scores, _mistaken_for(paths)),
        worst=WORST,
        named=NAMED,
    )
    write_text(paths.reports / CARD, text)


def _metadata(data: Description, metrics: Mapping[str, float]) -> str:
    """The YAML that Hugging Face reads."""
    known = data.licence.lower().replace(" ", "-")
    results = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"type": data.name, "name": data.title, "split": "test"},
        "metrics": [
            {"type": name, "value": metrics[name], "name": title}
            for name, title in {**SCORES, "loss": "loss (nats)"}.items()
        ],
    }
    said = {
        "license": known if known in LICENCES else "unknown",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "dvc", "mlflow"],
        **({} if data.name == FOLDER else {"datasets": [data.name]}),
        "metrics": list(SCORES),
        "model-index": [{"name": f"net-{data.name}", "results": [results]}],
    }
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


class _Class(NamedTuple):
    name: str
    images: dict[str, int]  # by split
    scores: dict[str, float]
    mistaken: tuple[str, int]  # for which class most often, and how often


def _by_class(
    made: Origin, scores: Mapping[str, dict[str, float]], mistaken: Mapping[str, tuple[str, int]]
) -> list[_Class]:
    """All classes in their order; of very many the worst ones, worst first."""
    found = [
        _Class(
            name,
            {split: counts[label] for split, counts in made.images.items()},
            scores[name],
            mistaken.get(name, ("", 0)),
        )
        for label, name in enumerate(made.data.classes)
    ]
    worst_first = sorted(found, key=lambda each: each.scores["f1"])
    return found if len(found) <= WORST else worst_first[:WORST]


def _mistaken_for(paths: Paths) -> dict[str, tuple[str, int]]:
    """What each class is most often mistaken for, and how often."""
    answers = read_bytes(paths.reports / "confusion.csv").decode("utf-8").splitlines()
    found: dict[str, tuple[str, int]] = {}
    for row in csv.DictReader(answers):
        actual, predicted, images = row["actual"], row["predicted"], int(row["images"])
        if actual != predicted and images > found.get(actual, ("", 0))[1]:
            found[actual] = predicted, images
    return found


def plain(text: str) -> str:
    """A text from elsewhere, such that Markdown shows its characters as they are."""
    return MARKS.sub(r"\\\1", text)


def _value(value: Any) -> str:
    """A parameter as params.yaml has it."""
    return value if isinstance(value, str) else json.dumps(value)
