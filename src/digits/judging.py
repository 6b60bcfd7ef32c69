"""The evaluation from files to files."""

from typing import Any

import numpy as np
import torch

from digits import figures, processed, stage, tables
from digits.errors import DataError, DeviceError
from digits.history import History
from digits.params import Params
from digits.processed import Split
from digits.project import Paths
from digits.scores import class_scores, confusion, scores, worst_mistakes
from digits.training.device import choose_device, is_out_of_memory
from digits.training.engine import for_answers
from digits.weights import load_net
from splice.files import write_json


def judge(params: Params, paths: Paths) -> None:
    """Measure the model on the test split and write everything in reports/ that says how good.

    Raises:
        UserError: a file is missing or broken, or the device isn't there or too small.
    """
    device = choose_device(params.evaluate.device, "evaluate.device")
    test = processed.read(paths.split("test"))
    net, description = load_net(paths.model)
    _refuse_strange_classes(test, description, paths)
    images = torch.from_numpy(test.images).to(device)
    try:
        engine = for_answers(net.to(device), images)
        output = engine.log_probabilities(net, images, params.evaluate.batch_size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"out of memory on {device} with evaluate.batch_size {params.evaluate.batch_size}; "
            "lower evaluate.batch_size"
        ) from error
    if not bool(torch.isfinite(output).all()):
        raise DataError(
            f"{paths.model} gives NaN or infinite answers; delete it and run `dvc repro`"
        )
    stage.say("evaluate", f"computed by {engine.name}: {engine.why}")
    _write(params, paths, test, output.cpu().double().numpy())


def _refuse_strange_classes(test: Split, description: dict[str, Any], paths: Paths) -> None:
    if not len(test):
        raise DataError(f"{paths.split('test')} holds no images; run `dvc repro` again")
    if description["shape"] != list(test.shape):
        raise DataError(
            f"{paths.model} takes images {description['shape']}, but {paths.split('test')} has "
            f"{list(test.shape)}; run `dvc repro`"
        )
    if description["classes"] != list(test.facts.classes):
        raise DataError(
            f"{paths.model} knows the classes {description['classes']}, but "
            f"{paths.split('test')} has {list(test.facts.classes)}; run `dvc repro`"
        )


def _write(
    params: Params, paths: Paths, test: Split, log_probabilities: np.ndarray[Any, Any]
) -> None:
    history = History.read(paths.steps, paths.epochs)
    names = list(test.facts.classes)
    predicted = log_probabilities.argmax(1)
    matrix = confusion(test.labels, predicted, len(names))
    of_class = class_scores(matrix)
    values = scores(log_probabilities, test.labels, params.evaluate.calibration_bins)
    worst = worst_mistakes(log_probabilities, test.labels, params.evaluate.mistakes)
    write_json(paths.reports / "metrics.json", {"test": values})
    write_json(
        paths.reports / "classes.json",
        {
            name: {score: round(float(column[i]), 6) for score, column in of_class.items()}
            for i, name in enumerate(names)
        },
    )
    tables.write(
        paths.reports / "confusion.csv",
        ("actual", "predicted"),
        [(names[a], names[p]) for a, p in zip(test.labels, predicted, strict=True)],
    )
    tables.write(
        paths.reports / "mistakes.csv",
        ("index", "actual", "predicted", "probability_of_actual"),
        [
            (
                int(i),
                names[test.labels[i]],
                names[predicted[i]],
                f"{np.exp(log_probabilities[i, test.labels[i]]):.6f}",
            )
            for i in worst
        ],
    )
    figures.loss_curves(paths.figure("loss"), history)
    figures.confusion(paths.figure("confusion"), matrix, names)
    titles = [f"{names[test.labels[i]]} taken for {names[predicted[i]]}" for i in worst]
    figures.mistakes(paths.figure("mistakes"), test.images[worst], titles)
    stage.say(
        "evaluate",
        f"{test.facts.dataset}: test accuracy {values['accuracy']:.2%}, loss {values['loss']:.4f}",
    )
