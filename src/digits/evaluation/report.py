"""What an evaluation leaves in reports/, and what of it goes to MLflow.

An Evaluation comes from files alone, so it makes no difference whether the stages
ran here or DVC restored their results.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from digits.data import dataset
from digits.data.dataset import Split
from digits.data.storage import read_arrays, write_document, write_table
from digits.errors import DataError
from digits.evaluation import plots
from digits.evaluation.metrics import (
    DECIMALS,
    Floats,
    class_scores,
    confidence_bins,
    confusion,
    scores,
    worst_mistakes,
)
from digits.params import Evaluate, load
from digits.paths import Paths
from digits.training.history import History
from splice import Evaluation, Trained
from splice.files import read_json

FIGURES = (
    "loss",
    "accuracy",
    "learning_rate",
    "confusion",
    "classes",
    "reliability",
    "mistakes",
)
FILTERS = "filters"  # of the first convolution, if the Net has one
CARD = "model_card.md"
BATCH = 1000  # images that a registered model is asked about at once

OfClass = dict[str, dict[str, float]]  # by class name, then by score


def write(
    paths: Paths,
    test: Split,
    log_probabilities: Floats,
    history: History,
    filters: Floats | None,
    params: Evaluate,
    of: Mapping[str, Any],
) -> dict[str, float]:
    """Write metrics, tables and figures; give the metrics.

    Args:
        paths: where to.
        test: what was asked.
        log_probabilities: what was answered, `[N, classes]`.
        history: of the training, for its figures.
        filters: weights of the first convolution `[filters, channels, height, width]`, if any.
        params: section `evaluate` of params.yaml.
        of: what was evaluated, on what, and how: `Join.identity`.
    """
    names, labels = test.facts.classes, test.labels
    predicted = log_probabilities.argmax(1)
    metrics, of_class = _numbers(log_probabilities, test, of["how"])
    worst = worst_mistakes(log_probabilities, labels, params.mistakes)
    shutil.rmtree(paths.reports / "figures", ignore_errors=True)  # one may be left that isn't made
    write_document(paths.reports / "metrics.json", {"test": metrics})
    write_document(paths.reports / "classes.json", of_class)
    matrix = confusion(labels, predicted, len(names))
    write_table(
        paths.reports / "confusion.csv",
        ("actual", "predicted", "images"),
        [(names[a], names[p], matrix[a, p]) for a, p in np.argwhere(matrix)],
    )
    probabilities = np.exp(log_probabilities[worst, labels[worst]])
    write_table(
        paths.reports / "mistakes.csv",
        ("index", "actual", "predicted", "probability_of_actual"),
        [
            (int(i), names[labels[i]], names[predicted[i]], f"{probability:.6f}")
            for i, probability in zip(worst, probabilities, strict=True)
        ],
    )
    sure = np.exp(log_probabilities[worst, predicted[worst]])
    short = list(map(plots.short, names))
    titles = [
        f"image {i}\n{short[labels[i]]} taken for\n{short[predicted[i]]}, {confidence:.1%} sure"
        for i, confidence in zip(worst, sure, strict=True)
    ]
    plots.loss_curves(paths.figure("loss"), history)
    plots.accuracy_curves(paths.figure("accuracy"), history)
    plots.learning_rate(paths.figure("learning_rate"), history)
    plots.confusion(paths.figure("confusion"), matrix, names)
    plots.classes(paths.figure("classes"), class_scores(matrix), names)
    bins = confidence_bins(log_probabilities, labels, params.calibration_bins)
    plots.reliability(paths.figure("reliability"), bins, metrics["calibration_error"])
    errors, asked = int(metrics["errors"]), len(test)
    plots.mistakes(paths.figure("mistakes"), test.images[worst], titles, errors, asked)
    if filters is not None:
        plots.filters(paths.figure(FILTERS), filters)
    write_document(paths.reports / "evaluation.json", dict(of))
    return metrics


def results(root: Path) -> Evaluation:
    """The evaluation that lies in models/ and reports/.

    Raises:
        DataError: a file is missing or damaged.
    """
    paths, params = Paths(root), load(Paths(root).params)
    test = dataset.read(paths.split("test"))
    listed, files = dataset.data("test", test, ""), _artifacts(paths)
    return Evaluation(
        metrics=_written_numbers(paths),
        of=read_json(paths.reports / "evaluation.json"),
        params=params.flat("evaluate"),
        files=files,
        note=_note(_written_numbers(paths), len(test), files),
        dataset=listed.name,
        arrays=listed.arrays,
        example=test.images[:2].tolist(),
        trained=_trained(paths),
    )


def measure(predict: Callable[[Any], Any], test: Path, settings: Mapping[str, Any]) -> Evaluation:
    """The evaluation of a model that is there as a function of images alone.

    Args:
        predict: uint8 images `[N, channels, height, width]` to log-probabilities `[N, classes]`.
        test: a processed split.
        settings: what `test_params` in pyproject.toml names.

    Raises:
        DataError: the split is missing or damaged, or has other classes than the model.
    """
    split = dataset.read(test)
    batches = range(0, len(split), BATCH)
    output = np.concatenate([predict(split.images[i : i + BATCH]) for i in batches]).astype(float)
    if output.shape != (len(split), len(split.facts.classes)):
        raise DataError(f"the model doesn't know the classes of {test}; train it again")
    listed = dataset.data("test", split, "")
    return Evaluation(
        metrics=_flat(*_numbers(output, split, settings)),
        dataset=listed.name,
        arrays=listed.arrays,
    )


def _numbers(
    output: Floats, test: Split, settings: Mapping[str, Any]
) -> tuple[dict[str, float], OfClass]:
    """Every number of an evaluation: of all classes together, and of each."""
    names = test.facts.classes
    columns = class_scores(confusion(test.labels, output.argmax(1), len(names)))
    of_class = {
        label: {name: round(float(column[i]), DECIMALS) for name, column in columns.items()}
        for i, label in enumerate(names)
    }
    chosen = {name.removeprefix("evaluate."): value for name, value in settings.items()}
    return scores(output, test.labels, **chosen), of_class


def _written_numbers(paths: Paths) -> dict[str, float]:
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
    """As MLflow's metrics: of a class the recall alone, by which a champion is promoted."""
    flat = {f"test/{name}": float(value) for name, value in values.items()}
    recalls = {f"test/recall/{label}": float(of["recall"]) for label, of in of_class.items()}
    return flat | recalls


def _note(metrics: Mapping[str, float], asked: int, files: Mapping[str, Path]) -> str:
    """A run's result in Markdown: a table of what counts most, and the figures."""
    return (
        f"| on {asked:,} test images | |\n|---|---|\n"
        f"| accuracy | **{metrics['test/accuracy']:.2%}**: {metrics['test/errors']:,.0f} errors |\n"
        f"| loss | {metrics['test/loss']:.4f} nats |\n"
        f"| calibration error | {metrics['test/calibration_error']:.2%} |\n\n"
        "![Loss](figures/loss.png) ![Confusion](figures/confusion.png)\n\n"
        + " · ".join(
            f"[{Path(name).stem.replace('_', ' ')}]({name})"
            for name in files
            if not name.endswith((".csv", ".json"))
        )
    )


def _artifacts(paths: Paths) -> dict[str, Path]:
    names = ["metrics.json", "classes.json", "confusion.csv", "mistakes.csv"]
    if (paths.reports / CARD).exists():  # results of earlier code have none
        names.append(CARD)
    names += [f"figures/{name}.png" for name in figures(paths)]
    return {name: paths.reports / name for name in names}


def figures(paths: Paths) -> list[str]:
    """The names of the figures that an evaluation left."""
    return [*FIGURES, *([FILTERS] if paths.figure(FILTERS).exists() else [])]


def _trained(paths: Paths) -> Trained:
    """What the model file and the history beside it say of the training."""
    _, description = read_arrays(paths.model)
    if not {"classes", "data", "dataset", "images", "params", "shape"} <= set(description):
        raise DataError(
            f"{paths.model} doesn't say what it was made from; delete it and run `dvc repro`"
        )
    name, counts, shape = description["dataset"], description["images"], description["shape"]
    classes = len(description["classes"])
    return Trained(
        params=description["params"],
        data={
            split: dataset.listed(split, name, (counts[split], *shape), classes, md5)
            for split, md5 in description["data"].items()
        },
        points=History.read(paths).metrics(),
        tags={"dataset": name},
    )
