"""Stage `evaluate`: weights and the test split into metrics, figures and their MLflow run."""

from digits import stage

if __name__ == "__main__":
    stage.begin()

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from digits.data import dataset
from digits.data.dataset import Split
from digits.errors import DataError
from digits.evaluation import card, report
from digits.model.net import Net
from digits.model.weights import load_net
from digits.params import Params
from digits.paths import Paths, State
from digits.training.device import choose_device
from digits.training.engine import for_answers
from digits.training.history import History
from splice import Join


def main(params: Params, paths: Paths, _state: State, join: Join) -> None:
    """Measure the model on the test split, write how good it is, and hand that to MLflow.

    Raises:
        UserError: a file is missing or broken, or the device isn't there.
    """
    device = choose_device(params.evaluate.device, "evaluate.device")
    test = dataset.read(paths.split("test"))
    net, description = load_net(paths.model)
    _refuse_what_does_not_fit(test, description, paths)

    output = _answers(net, test, device, params.evaluate.batch_size)
    origin, history = card.origin(paths), History.read(paths)
    if not bool(torch.isfinite(output).all()):
        raise DataError(
            f"{paths.model} gives NaN or infinite answers; delete it and run `dvc repro`"
        )
    metrics = report.write(
        paths,
        test,
        output.cpu().double().numpy(),
        history,
        _first_filters(net),
        params.evaluate,
        join.identity(),
    )
    card.write(paths, origin, description, history)
    stage.say(
        "evaluate",
        f"{test.facts.dataset}: test accuracy {metrics['accuracy']:.2%}, "
        f"loss {metrics['loss']:.4f}",
    )

    if params.tracking.enabled:
        join.evaluation(report.results(paths.root))
        stage.say("evaluate", "delivering to MLflow")
        if reason := join.wait():
            stage.say("evaluate", f"not delivered to MLflow yet: {reason}; `splice sync` retries")
        else:
            stage.say("evaluate", "everything is delivered to MLflow; `make ui` shows it")
        stage.say("evaluate", "`splice compare` tells what has changed since the last commit")


def _refuse_what_does_not_fit(test: Split, description: dict[str, Any], paths: Paths) -> None:
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


def _answers(net: Net, test: Split, device: torch.device, batch_size: int) -> torch.Tensor:
    """Log-probabilities `[N, classes]`."""
    images = torch.from_numpy(test.images).to(device)
    engine = for_answers(net.to(device), images)
    stage.say("evaluate", f"computed by {engine.name}: {engine.why}")
    return engine.log_probabilities(net, images, batch_size)


def _first_filters(net: Net) -> npt.NDArray[np.float64] | None:
    """Weights of the first convolution `[filters, channels, height, width]`, if there is one."""
    convolutions = (layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d))
    first = next(convolutions, None)
    return None if first is None else first.weight.detach().cpu().double().numpy()


if __name__ == "__main__":
    stage.run("evaluate", main)
