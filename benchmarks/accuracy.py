"""Accuracy of a recipe over several seeds, beside its training time.

    python benchmarks/accuracy.py --recipe best --seeds 5 -S train.epochs=3

The recipe's data set is brought and split as the pipeline does it, in a temporary folder; what
data/raw has of it isn't downloaded again.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import torch
from torch import Tensor

import download
import mnist
import preprocess
import splice.errors
from digits.data import dataset
from digits.data.dataset import PixelFacts, Split
from digits.params import Params
from digits.paths import Paths, State
from digits.training.device import prepare
from digits.training.engine import for_training
from digits.training.loop import Images, new_net, train


def read(params: Params) -> mnist.Data:
    """The splits of the data set that the parameters name.

    Raises:
        UserError: it can't be brought.
    """
    own = replace(params, download=replace(params.download, fallback=False))
    with tempfile.TemporaryDirectory() as root:
        paths = Paths(Path(root))
        if Paths(mnist.ROOT).raw.exists():
            shutil.copytree(Paths(mnist.ROOT).raw, paths.raw)
        for stage in (download.main, preprocess.main):
            stage(own, paths, State(mnist.ROOT), Mock())
        train, validation, test = (
            dataset.read(paths.split(name)) for name in ("train", "validation", "test")
        )
    facts = train.facts
    assert isinstance(facts, PixelFacts)
    images = _images(train), _images(validation), _images(test)
    return mnist.Data(*images, facts.mean, facts.std, len(facts.classes))


def _images(split: Split) -> Images:
    return Images(torch.from_numpy(split.images), torch.from_numpy(split.labels).long())


def measure(params: Params, data: mnist.Data, seed: int) -> tuple[float, float, float]:
    """Train with one seed; give validation accuracy, test accuracy and seconds."""
    recipe = replace(params.train, seed=seed)
    machine = prepare(recipe)
    splits = [split.to(machine.device) for split in data[:3]]
    mean = data.mean if params.preprocess.mean is None else params.preprocess.mean
    std = data.std if params.preprocess.std is None else params.preprocess.std
    channels, height, width = data.train.images.shape[1:]
    net = new_net(recipe.seed, data.classes, (channels, height, width), mean, std)
    net = net.to(machine.device)
    engine = for_training(net, *splits[0], recipe, machine)
    began = time.perf_counter()
    for _ in train(net, splits[0], splits[1], recipe, machine, engine):
        pass
    seconds = time.perf_counter() - began
    scores = [
        accuracy(engine.log_probabilities(net, split.images, 500), split.labels)
        if len(split.labels)
        else float("nan")
        for split in splits[1:]
    ]
    return scores[0], scores[1], seconds


def accuracy(output: Tensor, labels: Tensor) -> float:
    """Share of right answers, 0..1."""
    return (output.argmax(1) == labels).double().mean().item()


def main() -> None:
    """Print a line a seed, then the mean and the least."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="default", help="of recipes/")
    parser.add_argument("-S", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    params = mnist.params((*mnist.recipe(arguments.recipe), *arguments.overrides))
    data = read(params)
    rows = []
    for seed in range(1, arguments.seeds + 1):
        rows.append(measure(params, data, seed))
        validation, test, seconds = rows[-1]
        print(f"seed {seed}: validation {validation:.2%}, test {test:.2%}, {seconds:.1f} s")
    tests = [row[1] for row in rows]
    print(
        f"test mean {sum(tests) / len(tests):.3%}, least {min(tests):.2%}, "
        f"validation mean {sum(row[0] for row in rows) / len(rows):.3%}, "
        f"seconds {sorted(row[2] for row in rows)[len(rows) // 2]:.1f} (median)"
    )


if __name__ == "__main__":
    splice.errors.run("accuracy", main)
