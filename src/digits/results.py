"""What lies in models/ and reports/, and what a registered model is measured at, as evaluations.

All of the former comes from files, so it makes no difference whether the stages ran here or DVC
restored their results.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digits import processed, tensorfile
from digits.errors import DataError
from digits.history import History
from digits.params import load
from digits.processed import arrays
from digits.project import Paths, join
from digits.scores import DECIMALS, class_scores, confusion, scores
from splice import Evaluation, Trained
from splice.files import read_json

FIGURES = ("loss.png", "confusion.png", "mistakes.png")
BATCH = 1000  # images that a registered model is asked about at once


def results(root: Path) -> Evaluation:
    """The evaluation that lies in models/ and reports/.

    Raises:
        DataError: a file is missing, or the reports are of another model or test split.
    """
    paths = Paths(root)
    if read_json(paths.reports / "evaluation.json") != join(root).identity():
        raise DataError(
            f"{paths.reports} was not written for this model, test split and parameters; "
            "run `dvc repro`"
        )
    test = processed.read(paths.split("test"))
    return Evaluation(
        metrics=_metrics(paths),
        params=load(paths.params).flat("evaluate"),
        files=_artifacts(paths),
        dataset=f"{test.facts.dataset}-test",
        arrays=arrays(test.images.shape),
        example=test.images[:2].tolist(),
        trained=_trained(paths),
    )


def measure(predict: Callable[[Any], Any], test: Path, settings: Mapping[str, Any]) -> Evaluation:
    """The evaluation of a model that is there as a function of images alone.

    Args:
        predict: uint8 images `[N, channels, height, width]` to log-probabilities `[N, classes]`.
        test: a processed split.
        settings: `evaluate.calibration_bins`.

    Raises:
        DataError: the split is missing or damaged, or has other classes than the model.
    """
    split = processed.read(test)
    names = split.facts.classes
    batches = range(0, len(split), BATCH)
    output = np.concatenate([predict(split.images[i : i + BATCH]) for i in batches]).astype(float)
    if output.shape != (len(split), len(names)):
        raise DataError(f"the model doesn't know the classes of {test}; train it again")
    values = scores(output, split.labels, settings["evaluate.calibration_bins"])
    columns = class_scores(confusion(split.labels, output.argmax(1), len(names)))
    of_class = {
        label: {name: round(float(column[i]), DECIMALS) for name, column in columns.items()}
        for i, label in enumerate(names)
    }
    return Evaluation(
        metrics=_flat(values, of_class),
        dataset=f"{split.facts.dataset}-test",
        arrays=arrays(split.images.shape),
    )


def _artifacts(paths: Paths) -> dict[str, Path]:
    names = ("metrics.json", "classes.json", "confusion.csv", "mistakes.csv")
    reports = {name: paths.reports / name for name in names}
    figures = {f"figures/{name}": paths.reports / "figures" / name for name in FIGURES}
    return reports | figures


def _metrics(paths: Paths) -> dict[str, float]:
    try:
        test = read_json(paths.reports / "metrics.json")["test"]
        return _flat(test, read_json(paths.reports / "classes.json"))
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{paths.reports}/metrics.json or classes.json holds no such numbers as evaluate "
            "writes; run `dvc repro --force --single-item evaluate`"
        ) from error


def _flat(
    values: Mapping[str, float], of_class: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    flat = {f"test/{name}": float(value) for name, value in values.items()}
    for label, columns in of_class.items():
        flat |= {f"test/{name}/{label}": float(value) for name, value in columns.items()}
    return flat


def _trained(paths: Paths) -> Trained:
    """What the model file and the history beside it say of the training."""
    _, description = tensorfile.read(paths.model)
    if not {"data", "dataset", "images", "params", "shape"} <= set(description):
        raise DataError(
            f"{paths.model} doesn't say what it was made from; delete it and run `dvc repro`"
        )
    dataset, counts = description["dataset"], description["images"]
    return Trained(
        params=description["params"],
        data={
            name: processed.data(name, dataset, md5, (counts[name], *description["shape"]))
            for name, md5 in description["data"].items()
        },
        points=History.read(paths.steps, paths.epochs).metrics(),
        tags={"dataset": dataset},
    )
