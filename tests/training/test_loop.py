"""The training loop: right gradients, exact resume, the original curve."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conftest import HERE
from digits.errors import DeviceError, DivergedError, ParameterError
from digits.model.net import Net
from digits.params import Train
from digits.training import optim, torch_engine
from digits.training.checkpoint import Checkpoint
from digits.training.device import choose_device, cpu_quota
from digits.training.loop import Epoch, Kept, Snapshot, Step
from digits.training.optim import learning_rate
from trainings import RECIPE, SMALL, first_net, run, some


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/elsewhere\n", {"cpu.max": "50000 100000"}, 0.5),
        (
            "5:cpuset:/x\n4:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "1"}, math.inf),
        ("0::/\n", {}, math.inf),
    ],
)
def test_a_containers_quota_of_cpus_is_known(
    tmp_path: Path, groups: str, files: dict[str, str], cpus: float
) -> None:
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "mounted") == cpus


def test_the_net_is_the_one_of_the_original() -> None:
    net = Net()
    assert sum(p.numel() for p in net.parameters()) == 431_080
    assert [name for name, _ in net.named_children()] == ["conv1", "conv2", "fc1", "fc2"]
    assert Net(62).fc2.out_features == 62


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_training_resumed_from_any_snapshot_ends_with_the_same_bytes(
    optimizer: Any, keep: Any, engine: Any, tmp_path: Path
) -> None:
    recipe = replace(SMALL, optimizer=optimizer, keep=keep, learning_rate=0.01, engine=engine)
    resumes_to_the_same_bytes(recipe, tmp_path)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "muon", "clip_norm": 1, "ema_decay": 0.9, "schedule": "cosine"},
        {"optimizer": "lion", "learning_rate": 1e-3, "schedule": "step", "warm_up": 0.2},
        {"optimizer": "nesterov", "ema_decay": 0.8, "keep": "best"},
        {"ema_decay": 0.9, "engine": "compiled"},
    ],
)
def test_so_does_one_by_whatever_else_a_recipe_may_ask_for(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    resumes_to_the_same_bytes(replace(SMALL, **recipe), tmp_path, every=3)


def resumes_to_the_same_bytes(recipe: Train, folder: Path, every: int = 1) -> None:
    net, events = run(recipe)
    snapshots = [event for event in events if isinstance(event, Snapshot)]
    assert len(snapshots) > 4
    for snapshot in snapshots[::every]:
        checkpoint = Checkpoint(folder / "checkpoint.safetensors", "key")
        checkpoint.write(snapshot.tensors, [])
        again, rest = run(recipe, (checkpoint.read() or ({}, None))[0])
        for name, value in net.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (snapshot.step, name)
        tail = [e for e in events if isinstance(e, Step) and e.step >= snapshot.step]
        assert [e for e in rest if isinstance(e, Step)] == tail
        assert rest[-1] == events[-1]
        assert [e for e in rest if isinstance(e, Epoch)] == [
            e for e in events if isinstance(e, Epoch) and (e.step > snapshot.step)
        ]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_last_event_says_of_which_step_the_net_is(keep: Any) -> None:
    _, events = run(
        replace(SMALL, keep=keep, epochs=3, learning_rate=0.1, schedule="constant", warm_up=1.0)
    )
    epochs = [event for event in events if isinstance(event, Epoch)]
    scores = [(event.validation_accuracy, -(event.validation_loss or 0)) for event in epochs]
    best = epochs[scores.index(max(scores))]
    assert best != epochs[-1]
    expected = best if keep == "best" else epochs[-1]
    assert events[-1] == Kept(expected.step)


def test_the_seed_changes_the_model_and_nothing_else_does() -> None:
    first, second, other = run(SMALL)[0], run(SMALL)[0], run(replace(SMALL, seed=2))[0]
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_a_loss_that_is_not_finite_stops_the_training(engine: Any) -> None:
    recipe = replace(
        SMALL, engine=engine, optimizer="sgd", schedule="constant", learning_rate=100.0, epochs=5
    )
    with pytest.raises(DivergedError, match=r"diverged; lower train\.learning_rate"):
        run(recipe)


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "sgd", "schedule": "constant"}])
def test_both_engines_train_the_same_net_but_for_rounding(recipe: dict[str, Any]) -> None:
    compiled, expected = (
        run(replace(SMALL, **recipe, engine=engine, learning_rate=1e-3))
        for engine in ("compiled", "torch")
    )
    for ours, theirs in zip(compiled[1], expected[1], strict=True):
        match ours, theirs:
            case Step() | Epoch(), Step() | Epoch():
                assert ours == pytest.approx(theirs, rel=1e-3)
    for one, other in zip(compiled[0].parameters(), expected[0].parameters(), strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm()


def test_what_the_optimizer_keeps_apart_keeps_its_own_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slower_first_layer(net: Net, recipe: Train) -> list[torch.optim.Optimizer]:
        rest = [p for name, p in net.named_parameters() if not name.startswith("conv1")]
        groups: list[dict[str, Any]] = [
            {"params": [*net.conv1.parameters()], "lr": 0.0},
            {"params": rest},
        ]
        return [torch.optim.SGD(groups, recipe.learning_rate)]

    monkeypatch.setattr(optim, "optimizers", slower_first_layer)
    recipe = replace(SMALL, engine="torch", optimizer="sgd")
    first, (net, _) = first_net(recipe), run(recipe)
    assert torch.equal(net.conv1.weight, first.conv1.weight)
    assert not torch.equal(net.conv2.weight, first.conv2.weight)


@pytest.mark.parametrize(
    "recipe", [{"optimizer": "adam"}, {"schedule": "one_cycle"}], ids=["optimizer", "schedule"]
)
def test_an_unknown_name_is_refused_and_falls_through_to_nothing(recipe: dict[str, str]) -> None:
    strange: Any = SimpleNamespace(**{**vars(SMALL), "engine": "torch", **recipe})
    with pytest.raises(ParameterError, match=f"train.{next(iter(recipe))} is "):
        run(strange)


def test_points_of_the_curve_count_samples_as_the_original_does() -> None:
    _, events = run(replace(SMALL, log_every=2))
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.samples for step in steps] == [0, 128, 256, 300 + 64, 300 + 192]


STEPS, RATE, BETAS, DECAY = 3, 0.05, (0.8, 0.95), 0.1


def moved(optimizer: Any) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """Where each parameter of a small Net is after a few steps, and the gradients that led there:
    weights `[4, 3]`, a bias `[4]` and a filter `[2, 1, 3, 3]`, all from 1 on."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(1, 2, 3, bias=False))
    recipe = replace(
        RECIPE, optimizer=optimizer, learning_rate=RATE, momentum=BETAS[0], beta2=BETAS[1],
        weight_decay=DECAY,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    gradients = {
        name: [torch.randn(value.shape, generator=generator) for _ in range(STEPS)]
        for name, value in net.named_parameters()
    }
    for value in net.parameters():
        value.data.fill_(1.0)
    optimizers = optim.optimizers(net, recipe)
    for step in range(STEPS):
        for name, value in net.named_parameters():
            value.grad = gradients[name][step].clone()
        for one in optimizers:
            one.step()
    return {name: (value.detach(), gradients[name]) for name, value in net.named_parameters()}


def test_nesterov_is_the_formula_of_torch() -> None:
    for found, gradients in moved("nesterov").values():
        value, velocity = torch.ones_like(found), torch.zeros_like(found)
        for gradient in gradients:
            slope = gradient + DECAY * value
            velocity = BETAS[0] * velocity + slope
            value = value - RATE * (slope + BETAS[0] * velocity)
        assert torch.allclose(found, value, rtol=1e-5)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Muon"])
def test_an_optimizer_gives_the_bytes_of_torchs(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(SMALL, epochs=1, optimizer=name.lower(), engine="torch")
    net, _ = run(recipe)
    monkeypatch.setattr(optim, name, getattr(torch.optim, name))
    expected, _ = run(recipe)
    for found, weights in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, weights)


def test_a_training_imports_nothing_of_torchs_compiler() -> None:
    script = """
import sys, trainings
from dataclasses import replace
for name in ("adamw", "lion", "muon", "sgd"):
    trainings.run(replace(trainings.SMALL, epochs=1, optimizer=name, engine="torch"))
trainings.run(trainings.SMALL)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE / "src"), str(HERE / "tests")])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_lion_is_the_algorithm_of_its_paper() -> None:
    for found, gradients in moved("lion").values():
        value, average = torch.ones_like(found), torch.zeros_like(found)
        for gradient in gradients:
            update = torch.sign(BETAS[0] * average + (1 - BETAS[0]) * gradient)
            average = BETAS[1] * average + (1 - BETAS[1]) * gradient
            value = value - RATE * (update + DECAY * value)
        assert torch.allclose(found, value, rtol=1e-5)


def test_muon_orthogonalizes_the_steps_of_matrices_and_leaves_the_rest_to_adamw() -> None:
    found, adamw = moved("muon"), moved("adamw")
    for name in ("0.bias", "1.weight"):
        assert torch.equal(found[name][0], adamw[name][0])
    matrix, gradients = found["0.weight"]
    value, velocity = torch.ones_like(matrix), torch.zeros_like(matrix)
    for gradient in gradients:
        velocity = BETAS[0] * velocity + gradient
        left, _, right = torch.linalg.svd(gradient + BETAS[0] * velocity, full_matrices=False)
        # As long, root mean square, as a step of AdamW is: 0.2.
        value = value * (1 - RATE * DECAY) - RATE * 0.2 * 4**0.5 * (left @ right)
    # Five rounds of Newton and Schulz bring singular values near 1, not to it.
    assert (matrix - value).norm() < 0.3 * (1 - value).norm()
    assert (matrix - adamw["0.weight"][0]).norm() > 0.3 * (1 - value).norm()


def test_gradients_together_are_cut_down_to_a_norm() -> None:
    recipe = replace(
        SMALL, epochs=1, batch_size=300, engine="torch", optimizer="sgd", momentum=0,
        weight_decay=0, schedule="constant", learning_rate=0.5, clip_norm=0.01,
    )  # fmt: skip
    first, (net, _) = first_net(recipe), run(recipe)
    steps = [a - b for a, b in zip(net.parameters(), first.parameters(), strict=True)]
    length = torch.stack([step.norm() for step in steps]).norm().item()
    assert length == pytest.approx(0.005, rel=1e-3)


def test_the_weights_average_is_that_of_torch_and_is_what_is_kept_and_validated() -> None:
    recipe = replace(SMALL, engine="torch", ema_decay=0.9)
    net, events = run(recipe, snapshot_every=1)
    averaging: Any = get_ema_multi_avg_fn
    averaged = AveragedModel(first_net(recipe), multi_avg_fn=averaging(0.9))
    for event in events:
        if isinstance(event, Snapshot):
            live = first_net(recipe)
            live.load_state_dict(
                {name[4:]: value for name, value in event.tensors.items() if name[:4] == "net."}
            )
            averaged.update_parameters(live)
    for ours, theirs, last in zip(
        net.parameters(), averaged.module.parameters(), live.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(ours, last, rtol=1e-4, atol=1e-6)
    (*_, epoch) = [event for event in events if isinstance(event, Epoch)]
    output = torch_engine.log_probabilities(net, some(80, seed=1).images, 80)
    assert torch_engine.loss(output, some(80, seed=1).labels).item() == pytest.approx(
        epoch.validation_loss, rel=1e-5
    )


@pytest.mark.parametrize("warm_up", [0, 0.1, 0.33])
@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_schedules_are_those_of_torch_after_a_straight_rise(schedule: Any, warm_up: float) -> None:
    recipe = replace(
        RECIPE, epochs=6, schedule=schedule, warm_up=warm_up, step_epochs=2, step_factor=0.3
    )
    batches, high = 20, recipe.learning_rate
    steps, warm = 6 * batches, round(warm_up * 6 * batches)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=high)
    after: dict[str, LRScheduler] = {
        "cosine": CosineAnnealingLR(optimizer, steps - warm),
        "step": StepLR(optimizer, 2 * batches, 0.3),
        "constant": ConstantLR(optimizer, 1.0),
    }
    for step in range(steps):
        theirs = optimizer.param_groups[0]["lr"]
        expected = high * (step + 1) / warm if step < warm else theirs
        assert learning_rate(step, steps, recipe) == pytest.approx(expected, rel=1e-9), step
        optimizer.step()
        if step >= warm or schedule == "step":  # whose epochs are counted from the first
            after[schedule].step()


@pytest.mark.parametrize("steps", [1, 2, 5, 64, 864])
def test_one_cycle_is_the_schedule_of_torch(steps: int) -> None:
    peak = RECIPE.learning_rate
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    if steps > 1:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
        for step in range(steps):
            expected = schedule.get_last_lr()[0]
            assert learning_rate(step, steps, RECIPE) == pytest.approx(expected, rel=1e-9)
            optimizer.step()
            if step + 1 < steps:
                schedule.step()
    assert 0 < learning_rate(0, steps, RECIPE) <= peak


def test_a_device_that_is_not_there_is_refused_by_the_name_of_its_parameter() -> None:
    with pytest.raises(DeviceError, match=r"train\.device is cuda:99"):
        choose_device("cuda:99", "train.device")
