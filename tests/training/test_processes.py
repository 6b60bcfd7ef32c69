"""Several processes train what one does: the same images at each step, the same losses."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import forked  # noqa: F401  # whose fork server has imported what takes long
from digits.errors import DeviceError, EngineError
from digits.model.net import Net
from digits.training import torch_engine
from digits.training.device import prepare, processes
from digits.training.engine import for_training
from digits.training.group import Group
from digits.training.loop import Epoch, Snapshot, Step
from trainings import SMALL, first_net, run, some

TOGETHER = replace(SMALL, engine="torch", epochs=2, threads=1)
CASES = {
    "an uneven last batch": (203, {}),
    "a last batch of fewer images than processes": (131, {"optimizer": "sgd", "momentum": 0.5}),
    "an average of the weights and a norm cut down": (
        150,
        {"optimizer": "nesterov", "clip_norm": 1.0, "ema_decay": 0.9, "schedule": "cosine"},
    ),
}


class Seen(NamedTuple):
    """What one process saw of a training.

    Attributes:
        points: each Step and Epoch.
        images: the images that it computed, by step.
        weights: in the end.
    """

    points: list[list[float | None]]
    images: list[list[int]]
    weights: dict[str, Tensor]


def train_all() -> dict[str, Seen]:
    """All cases, in this process or its group; and one of them resumed in mid-epoch."""
    group = Group.found()
    with group.joined(torch.device("cpu")):
        seen = {name: train_one(group, *case) for name, case in CASES.items()}
        seen["resumed"] = resumed(group)
    return seen


def train_one(group: Group, count: int, changes: dict[str, Any]) -> Seen:
    images: list[list[int]] = []
    original = torch_engine.Steps._backward

    def noted(steps: torch_engine.Steps, own: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        images.append(own.tolist())
        return original(steps, own, *rest)

    with patch.object(torch_engine.Steps, "_backward", noted):
        net, events = run(replace(TOGETHER, **changes), count=count, group=group)
    points = [list(event) for event in events if isinstance(event, Step | Epoch)]
    return Seen(points, images, dict(net.state_dict()))


def resumed(group: Group) -> Seen:
    """A training that went on from its second snapshot; weights: how far from the whole one's."""
    whole, events = run(TOGETHER, group=group, snapshot_every=1)
    snapshot = [event for event in events if isinstance(event, Snapshot)][1]
    net, rest = run(TOGETHER, snapshot.tensors, group=group, snapshot_every=3)
    apart = {name: value - whole.state_dict()[name] for name, value in net.state_dict().items()}
    again = [list(event) for event in rest if isinstance(event, Step | Epoch)]
    first = [list(event) for event in events if isinstance(event, Step | Epoch)]
    assert again == first[-len(again) :]
    return Seen([], [], apart)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of signals, which torchrun changes."""
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(kind) for kind in kinds]
    yield
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)


@pytest.fixture(scope="module")
def alone() -> dict[str, Seen]:
    return train_all()


@pytest.mark.parametrize("size", [2, 4])
def test_losses_are_those_of_one_process_step_by_step_on_the_same_images(
    size: int, alone: dict[str, Seen], handlers: None
) -> None:
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=size, run_id="test", rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", start_method="forkserver",
        max_restarts=0,
    )  # fmt: skip
    group: dict[int, dict[str, Seen]] = elastic_launch(config, train_all)()
    for name in CASES:
        expected, each = alone[name], [group[rank][name] for rank in range(size)]
        assert len(each[0].points) == len(expected.points)
        for found, point in zip(each[0].points, expected.points, strict=True):
            assert found == pytest.approx(point, rel=1e-4), name
        for other in each[1:]:  # which don't validate
            assert [row[:4] for row in other.points] == [row[:4] for row in each[0].points]
            assert all(map(torch.equal, other.weights.values(), each[0].weights.values()))
        shares = zip(*(seen.images for seen in each), strict=True)
        assert [[*chain(*share)] for share in shares] == expected.images
    for value in group[0]["resumed"].weights.values():
        assert not value.any()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 3, 64, 1003])
def test_shares_follow_one_another_and_are_as_even_as_can_be(size: int, count: int) -> None:
    shares = [Group(rank, size).share(count) for rank in range(size)]
    assert (shares[0].start, shares[-1].stop) == (0, count)
    assert all(one.stop == after.start for one, after in pairwise(shares))
    sizes = [share.stop - share.start for share in shares]
    assert sorted(sizes, reverse=True) == sizes
    assert sizes[0] - sizes[-1] <= 1


def test_no_two_steps_or_processes_draw_the_same_random_numbers() -> None:
    seeds = {Group(rank, 3).seed(5, step) for rank in range(3) for step in range(100)}
    assert len(seeds) == 300
    assert Group().seed(5, 7) == (5 << 32) + 7


def test_the_kernels_are_for_one_process_and_torch_says_why_it_computes() -> None:
    recipe, data = replace(SMALL, engine="auto"), some(30)
    machine = prepare(recipe, Group(0, 2, 0, 2, is_alone=False))
    engine = for_training(first_net(recipe), *data, recipe, machine)
    assert (engine.name, engine.why) == (
        "torch",
        "the kernels don't train in a process group (of 2)",
    )
    with pytest.raises(EngineError, match=r"train\.engine is compiled, but the kernels don't"):
        for_training(Net(), *data, replace(recipe, engine="compiled"), machine)


def test_the_cores_are_shared_out_and_what_is_asked_for_is_given() -> None:
    recipe = replace(SMALL, threads=0)
    cores = prepare(recipe).threads
    for size in (2, 3, 64):
        machine = prepare(recipe, Group(0, size, 0, size, is_alone=False))
        assert machine.threads == max(1, cores // size)
    assert prepare(replace(SMALL, threads=3), Group(0, 2, 0, 2, is_alone=False)).threads == 3
    prepare(SMALL)


def test_each_process_has_a_gpu_of_its_own_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes(replace(SMALL, device="auto", processes="auto")) == 2
    assert processes(replace(SMALL, device="cuda:1", processes="auto")) == 1
    assert processes(replace(SMALL, device="cpu", processes="auto")) == 1
    assert processes(replace(SMALL, device="cpu", processes=3)) == 3
    with pytest.raises(DeviceError, match=r"train\.device is cuda:1, which processes"):
        prepare(replace(SMALL, device="cuda:1"), Group(0, 2, 0, 2, is_alone=False))
    with pytest.raises(DeviceError, match=r"4 processes on a machine of 2 GPUs; lower train\.pro"):
        prepare(replace(SMALL, device="auto"), Group(0, 4, 0, 4, is_alone=False))
    monkeypatch.undo()
    prepare(SMALL)


def test_one_process_is_given_the_net_itself() -> None:
    net: nn.Module = first_net(SMALL)
    recipe = replace(SMALL, engine="torch")
    assert torch_engine.Steps(net, *some(30), recipe, prepare(recipe)).shared is net


def test_where_processes_left_the_others_take_over_what_they_had_counted() -> None:
    each = torch.tensor([1, 20, 300, 4000])
    parts = [int(Group(rank, 2).part(each)) for rank in range(2)]
    assert parts == [301, 4020]
    assert [int(Group(rank, 4).part(each)) for rank in range(4)] == each.tolist()
