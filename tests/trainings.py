"""Small trainings in this process."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from digits.model.net import Net
from digits.params import Train, load
from digits.training.device import prepare
from digits.training.engine import for_training
from digits.training.group import Group
from digits.training.loop import Event, Images, Snapshot, new_net, train

RECIPE = load(Path(__file__).resolve().parents[1] / "params.yaml").train
SMALL = replace(RECIPE, epochs=2, batch_size=64, log_every=1, threads=2, precision="float32")


def some(count: int, classes: int = 10, seed: int = 0) -> Images:
    """Images whose brightest square tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 5)
        image[0, 4 + 8 * row : 12 + 8 * row, 5 * column : 5 * column + 6] = 220
    return Images(images, labels)


def first_net(recipe: Train) -> Net:
    return new_net(recipe.seed, 10, (1, 28, 28), 0.13, 0.31)


def run(
    recipe: Train,
    resume: dict[str, Tensor] | None = None,
    snapshot_every: int = 2,
    count: int = 300,
    group: Group = Group(),  # noqa: B008
) -> tuple[Net, list[Event]]:
    net, machine, data = first_net(recipe), prepare(recipe, group), some(count)
    engine = for_training(net, *data, recipe, machine)
    events = train(net, data, some(80, seed=1), recipe, machine, engine, snapshot_every, resume)
    seen: list[Event] = []
    for event in events:
        if isinstance(event, Snapshot):
            event = Snapshot(event.step, {k: v.clone() for k, v in event.tensors.items()})
        seen.append(event)
    return net, seen
