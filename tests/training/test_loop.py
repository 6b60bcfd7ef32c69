"""The training loop: right gradients, exact resume, the original curve."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from digits.errors import DeviceError, DivergedError, ParameterError
from digits.model.net import Net
from digits.params import Train
from digits.training import optim, torch_engine
from digits.training.device import choose_device, cpu_quota
from digits.training.loop import Epoch, Snapshot, Step
from digits.training.optim import learning_rate
from trainings import RECIPE, SMALL, first_net, run


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
    optimizer: Any, keep: Any, engine: Any
) -> None:
    recipe = replace(SMALL, optimizer=optimizer, keep=keep, learning_rate=0.01, engine=engine)
    net, events = run(recipe)
    snapshots = [event for event in events if isinstance(event, Snapshot)]
    assert len(snapshots) > 4
    for snapshot in snapshots:
        again, rest = run(recipe, snapshot.tensors)
        for name, value in net.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (snapshot.step, name)
        tail = [e for e in events if isinstance(e, Step) and e.step >= snapshot.step]
        assert [e for e in rest if isinstance(e, Step)] == tail
        assert [e for e in rest if isinstance(e, Epoch)] == [
            e for e in events if isinstance(e, Epoch) and (e.step > snapshot.step)
        ]


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
    def slower_first_layer(net: Net, recipe: Train) -> torch.optim.Optimizer:
        rest = [p for name, p in net.named_parameters() if not name.startswith("conv1")]
        groups: list[dict[str, Any]] = [
            {"params": [*net.conv1.parameters()], "lr": 0.0},
            {"params": rest},
        ]
        return torch.optim.SGD(groups, recipe.learning_rate)

    monkeypatch.setattr(optim, "optimizer", slower_first_layer)
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


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried"])
def test_running_out_of_memory_names_the_parameter_to_lower(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch_engine.Steps, "__call__", fail)
    with pytest.raises(DeviceError, match=r"lower train\.batch_size"):
        run(replace(SMALL, engine="torch"))
