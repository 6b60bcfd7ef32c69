"""Which engine computes a Net: never one that computes another, whatever the Net is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from digits.errors import EngineError, NetError
from digits.model.net import Net, initialize
from digits.params import Train, load
from digits.training.cpu_kernels import engine as kernels
from digits.training.device import prepare
from digits.training.engine import SCALES, Engine, for_answers, for_training
from trainings import SMALL, first_net, run, some

RECIPE = load(Path(__file__).resolve().parents[2] / "params.yaml").train
DATA = some(200)
SHIPPED = 20, 50, 500

Function = Callable[[Tensor], Tensor]


def chosen(net: nn.Module, recipe: Train = RECIPE) -> Engine:
    recipe = replace(recipe, device="cpu")
    return for_training(net, *DATA, recipe, prepare(recipe))


ACTIVATIONS: dict[str, Function] = {
    "relu": F.relu,
    "leaky": lambda x: F.leaky_relu(x, 0.01),
    "nearly": lambda x: F.leaky_relu(x, 0.0005),
    "relu6": F.relu6,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "squared": lambda x: F.relu(x).square(),
    "clipped": lambda x: F.relu(x).clamp(max=20.0),
    "none": lambda x: x,
}
POOLS: dict[str, Function] = {
    "max": lambda x: F.max_pool2d(x, 2),
    "average": lambda x: F.avg_pool2d(x, 2),
}
EXTRAS: dict[str, Function] = {
    "nothing": lambda x: x,
    "capped": lambda x: 30 * torch.tanh(x / 30),
    "detached": lambda x: x.detach() + 0 * x,
    "straight through": lambda x: x.sign() + x - x.detach() - x.sign() + x.detach(),
    "halved": lambda x: x / 2,
}


@dataclass(frozen=True)
class Plan:
    """A Net of the shipped one's kind."""

    widths: tuple[int, int, int] = SHIPPED
    activations: tuple[str, str, str] = ("relu", "relu", "relu")
    pools: tuple[str, str] = ("max", "max")
    pool_first: bool = True
    extra: str = "nothing"
    third: bool = False
    dropout: float = 0.0
    classes: int = 10

    @property
    def is_shipped(self) -> bool:
        """Whether it computes what the shipped Net does, in whatever order."""
        other = Plan(pool_first=self.pool_first, classes=self.classes)
        return replace(self, extra=other.extra) == other and self.extra in SAME


SAME = ("nothing", "straight through")  # the latter's gradient is that of doing nothing


class Planned(nn.Module):
    """The Net of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        first, second, hidden = plan.widths
        self.plan = plan
        self.conv1, self.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, 5)
        if plan.third:
            self.conv3 = nn.Conv2d(second, second, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(second * 16, hidden), nn.Linear(hidden, plan.classes)
        self.register_buffer("mean", torch.tensor(0.13))
        self.register_buffer("std", torch.tensor(0.31))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        plan = self.plan
        hidden = (images.float() / 255 - 0.13) / 0.31
        for layer, name, pool in zip(
            (self.conv1, self.conv2), plan.activations, plan.pools, strict=False
        ):
            steps = [POOLS[pool], ACTIVATIONS[name]]
            hidden = layer(hidden)
            for step in steps if plan.pool_first else reversed(steps):
                hidden = step(hidden)
        if plan.third:
            hidden = F.relu(self.conv3(hidden))
        hidden = ACTIVATIONS[plan.activations[2]](self.fc1(hidden.flatten(1)))
        hidden = F.dropout(hidden, plan.dropout, self.training)
        return F.log_softmax(EXTRAS[plan.extra](self.fc2(hidden)), dim=1)


def mostly(usual: object, *others: object) -> st.SearchStrategy[object]:
    """As the shipped Net has it three times of four, so that what differs stands alone."""
    return st.one_of(*3 * [st.just(usual)], st.sampled_from(others))


PLANS = st.builds(
    Plan,
    widths=mostly(SHIPPED, (20, 32, 500), (32, 64, 500), (20, 50, 128), (1, 1, 1), (50, 20, 500)),
    activations=st.tuples(*3 * [mostly("relu", *ACTIVATIONS)]),
    pools=st.tuples(*2 * [mostly("max", *POOLS)]),
    pool_first=st.booleans(),
    extra=mostly("nothing", *EXTRAS),
    third=mostly(False, True),
    dropout=mostly(0.0, 0.5, 0.001),
    classes=mostly(10, 11, 26, 62),
)


@settings(max_examples=200, deadline=None)
@given(PLANS)
def test_the_kernels_are_chosen_for_what_they_compute_and_nothing_else(plan: Plan) -> None:
    torch.manual_seed(1)
    found = chosen(Planned(plan))
    assert (found.name == "compiled") == plan.is_shipped, found.why


def test_the_shipped_net_is_computed_by_the_kernels_whatever_its_seed() -> None:
    for seed in range(12):
        recipe = replace(RECIPE, seed=seed, optimizer=("adamw", "sgd")[seed % 2])
        assert chosen(first_net(recipe), recipe).name == "compiled"


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"optimizer": "muon"}, "the kernels have no muon"),
        ({"optimizer": "lion"}, "the kernels have no lion"),
        ({"optimizer": "nesterov"}, "the kernels have no nesterov"),
        ({"clip_norm": 1}, "the kernels don't clip gradients"),
        ({"ema_decay": 0.9, "schedule": "cosine"}, "train.engine is auto, and the kernels agree"),
    ],
)
def test_what_the_kernels_do_not_know_of_a_recipe_is_left_to_torch_by_name(
    recipe: dict[str, Any], why: str
) -> None:
    assert chosen(first_net(RECIPE), replace(RECIPE, **recipe)).why.startswith(why)


def with_buffer(net: Net) -> None:
    net.register_buffer("seen", torch.zeros(()))


def with_a_frozen_layer(net: Net) -> None:
    net.conv1.weight.requires_grad_(False)


def with_a_hook(net: Net) -> None:
    net.fc1.register_forward_hook(lambda _module, _input, output: output * 1.01)


def with_normalized_weights(net: Net) -> None:
    nn.utils.parametrizations.weight_norm(net.fc1)


@pytest.mark.parametrize(
    "change", [with_buffer, with_a_frozen_layer, with_a_hook, with_normalized_weights]
)
def test_what_is_added_to_the_net_from_outside_is_noticed(change: Callable[[Net], None]) -> None:
    net = first_net(RECIPE)
    change(net)
    assert chosen(net).name == "torch"
    with pytest.raises(EngineError, match=r"train\.engine is compiled, but .*; set it to auto"):
        chosen(net, replace(RECIPE, engine="compiled"))


class Counting(Net):
    """Computes what the Net does, for now."""

    passes = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(pixels) * (1 if self.passes < 10_000 else 2)


def test_a_net_that_counts_its_passes_is_left_to_torch() -> None:
    net = Counting()
    net.load_state_dict(first_net(RECIPE).state_dict())
    assert chosen(net).why == "the Net counts its passes, or keeps something of them"


def test_a_trained_net_that_the_kernels_do_not_compute_is_evaluated_by_torch() -> None:
    torch.manual_seed(1)
    net = Planned(Plan(activations=("relu", "relu", "clipped"))).eval()
    assert for_answers(net, DATA.images).name == "compiled"  # none of the values is large yet
    with torch.no_grad():
        net.fc1.weight *= 40
    assert for_answers(net, DATA.images).name == "torch"


def test_kernels_that_part_from_the_net_while_it_is_trained_are_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = kernels.log_probabilities
    calls = 0

    def drifting(net: nn.Module, images: Tensor, batch_size: int) -> Tensor:
        nonlocal calls
        calls += 1
        output: Tensor = true(net, images, batch_size)
        return output + 0.01 if calls > len(SCALES) else output

    monkeypatch.setattr(kernels, "log_probabilities", drifting)
    with pytest.raises(EngineError, match=r"now that the Net is trained; set train\.engine to"):
        run(SMALL)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x[:, :, 0], "must give log-probabilities"),
        (lambda x: x.flatten(1)[:, :10].float(), "must give log-probabilities"),
        (lambda x: x.float(), r"gives \[24, 1, 28, 28\]"),
        (lambda x: F.log_softmax(x.flatten(1)[:3, :10].float(), 1), r"gives \[3, 10\]"),
        (lambda x: x.missing, "has no attribute 'missing'"),
        (lambda x: x @ torch.zeros(3, 3), r"can't compute images \[1, 28, 28\]"),
    ],
)
def test_a_net_that_gives_no_log_probabilities_is_refused_in_one_line(
    answer: Function, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Net, "forward", lambda _self, images: answer(images))
    with pytest.raises(NetError, match=words) as caught:
        chosen(Net())
    assert "\n" not in str(caught.value)


def test_the_probe_leaves_torch_and_the_net_as_they_were() -> None:
    net = first_net(RECIPE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    chosen(net, replace(RECIPE, threads=2))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
