"""The compiled kernels: right, and the same bits whatever shares or holds the work."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from ctypes import CDLL
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits.errors import EngineError
from digits.model.net import Net
from digits.params import Train, load
from digits.training.cpu_kernels import engine as kernels
from digits.training.device import prepare
from digits.training.engine import for_training
from digits.training.loop import Images
from trainings import SMALL, first_net, run, some

RECIPE = load(Path(__file__).resolve().parents[2] / "params.yaml").train
PLAIN = replace(RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0, shift=0)
MACHINE = prepare(replace(RECIPE, device="cpu"))


def predict(net: Net, images: Tensor, threads: int) -> Tensor:
    torch.set_num_threads(threads)
    return kernels.log_probabilities(net, images, 1)


def engine_of(recipe: Train, net: Net | None = None) -> str:
    chosen = replace(recipe, device="cpu")
    return for_training(net or Net(), *some(30), chosen, prepare(chosen)).name


def gradients(net: Net, data: Images, threads: int, times: int = 1) -> tuple[float, float, int]:
    """The last batch's loss, all losses' sum and right answers; the gradients go into `grad`."""
    count = len(data.labels)
    recipe = replace(PLAIN, batch_size=count)
    loss_sum, right = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    order, places = torch.arange(count), torch.zeros(2, count, dtype=torch.uint8)
    machine = MACHINE._replace(threads=threads)
    with closing(kernels.Steps(net, data.images, data.labels, recipe, machine)) as steps:
        for _ in range(times):
            loss = steps(order, places, 0, [0.0], loss_sum, right)
        for name, parameter in net.named_parameters():
            parameter.grad = steps.state()[f"momentum_buffer.{name}"]
    return loss, loss_sum.item(), int(right)


def exact_output(net: Net, images: Tensor) -> tuple[Net, Tensor]:
    """A copy in double precision, and its log-probabilities."""
    exact = Net(net.fc2.out_features).double()
    exact.load_state_dict(net.state_dict())
    pixels = (images.double() / 255 - net.mean.double()) / net.std.double()
    hidden = F.max_pool2d(F.relu(exact.conv1(pixels)), 2)
    hidden = F.max_pool2d(F.relu(exact.conv2(hidden)), 2)
    return exact, F.log_softmax(exact.fc2(F.relu(exact.fc1(hidden.flatten(1)))), 1)


def assert_gradients_are_exact(net: Net, data: Images, tolerance: float = 1e-5) -> None:
    exact, output = exact_output(net, data.images)
    F.nll_loss(output, data.labels).backward()  # type: ignore[no-untyped-call]
    for parameter, other in zip(net.parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert (parameter.grad - other.grad).norm() <= tolerance * other.grad.norm()


@pytest.mark.parametrize("batch", [1, 16, 31, 64, 77, 300])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("classes", [10, 62])
def test_gradients_are_those_of_autograd_in_double_precision(
    batch: int, threads: int, classes: int
) -> None:
    torch.manual_seed(batch)
    net = Net(classes, mean=0.2, std=0.4)
    data = some(batch, seed=batch)
    # the second time must not see what the first left behind
    loss, loss_sum, right = gradients(net, data, threads, times=2)
    _, output = exact_output(net, data.images)
    assert loss == pytest.approx(F.nll_loss(output, data.labels).item(), rel=1e-5)
    assert loss_sum == pytest.approx(2 * batch * loss)
    assert right == 2 * (output.argmax(1) == data.labels).sum().item()
    assert_gradients_are_exact(net, data)


def test_the_first_weights_are_those_of_torch_but_for_rounding() -> None:
    net = first_net(RECIPE)
    torch.manual_seed(RECIPE.seed)
    layers = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5), nn.Linear(800, 500), nn.Linear(500, 10)
    theirs = [parameter for layer in layers for parameter in layer.parameters()]
    for one, other in zip(net.parameters(), theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-7)


def test_equal_brightness_in_a_pooling_window_sends_the_gradient_where_max_pool_does() -> None:
    net = Net()
    data = Images(torch.full((8, 1, 28, 28), 7, dtype=torch.uint8), torch.arange(8))
    gradients(net, data, 1)
    assert_gradients_are_exact(net, data, 1e-4)


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 300.0])
def test_losses_are_right_also_of_a_net_that_is_sure_of_everything(sharpness: float) -> None:
    torch.manual_seed(0)
    net = Net()
    net.fc2.weight.data *= sharpness
    data = some(200)
    loss, _, _ = gradients(net, data, 2)
    _, output = exact_output(net, data.images)
    assert loss == pytest.approx(F.nll_loss(output, data.labels).item(), rel=2e-6, abs=1e-6)
    answers = predict(net, data.images, 2).double()
    assert (answers - output).abs().max() <= 2e-6 * output.abs().max()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 63, 64, 65, 500])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_predictions_are_the_nets_own(count: int, threads: int) -> None:
    net = Net(62)
    data = some(count)
    found = predict(net, data.images, threads)
    assert found.shape == (count, 62)
    with torch.inference_mode():
        assert torch.allclose(found, net(data.images), atol=1e-5)
    assert torch.equal(found, predict(net, data.images, 1))


def test_images_are_moved_as_told() -> None:
    data = some(20)
    padded = F.pad(data.images, (2, 2, 2, 2))
    places = torch.randint(
        5, (2, 20), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )
    order = torch.randperm(20)
    moved = [padded[i, :, places[0, i] :, places[1, i] :][:, :28, :28] for i in order]
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    gradients(nets[0], Images(torch.stack(moved), data.labels[order]), 1)
    sums = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    recipe = replace(PLAIN, batch_size=20, shift=2)
    with closing(kernels.Steps(nets[1], data.images, data.labels, recipe, MACHINE)) as steps:
        steps(order, places, 0, [0.0], *sums)
        for name, parameter in nets[0].named_parameters():
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, steps.state()[f"momentum_buffer.{name}"])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_any_number_of_threads_trains_the_same_bytes(optimizer: Any) -> None:
    recipe = replace(SMALL, optimizer=optimizer, batch_size=100)
    first, *others = (run(replace(recipe, threads=threads)) for threads in (1, 2, 3, 7))
    for net, events in others:
        assert all(map(torch.equal, first[0].parameters(), net.parameters()))
        assert [e for e in events if type(e).__name__ != "Snapshot"] == [
            e for e in first[1] if type(e).__name__ != "Snapshot"
        ]


def compiled(to: Path, *flags: str) -> Path:
    """The harness around the kernels, as a program."""
    source = Path(__file__).parents[1] / "harness" / "kernels.c"
    command = [sys.executable, "-m", "ziglang", "cc", "-ffp-contract=off", *flags]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(to.parent), "ZIG_LOCAL_CACHE_DIR": str(to.parent)}
    subprocess.run([*command, str(source), "-o", str(to)], env={**os.environ, **caches}, check=True)
    return to


@pytest.mark.long
def test_another_processor_and_another_optimization_compute_the_same_bits(tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("needs qemu-user")
    if platform.machine() != "x86_64":
        pytest.skip("compares x86-64 with the emulated aarch64")
    plain = compiled(tmp_path / "plain", "-O3", "-mcpu=x86_64_v3")
    timid = compiled(tmp_path / "timid", "-O1", "-mcpu=x86_64_v3")
    other = compiled(tmp_path / "other", "-O3", "--target=aarch64-linux-musl")
    for optimizer in ([], ["adamw"]):
        said = {
            subprocess.run([*command, *optimizer], check=True, capture_output=True).stdout
            for command in ([str(plain)], [str(timid)], [emulator, str(other)])
        }
        assert len(said) == 1


@pytest.fixture
def fresh_library() -> Iterator[Callable[[], CDLL | str]]:
    yield kernels.library
    kernels.library.cache_clear()


def test_a_processor_with_more_registers_trains_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_library: Callable[[], CDLL | str]
) -> None:
    expected, _ = run(SMALL)
    monkeypatch.setattr(kernels, "KEPT", tmp_path)
    monkeypatch.setattr(kernels, "FLAGS", (*kernels.FLAGS, "-DMANY_REGISTERS"))
    for age in range(kernels.KEPT_AT_MOST):
        (tmp_path / f"kernels-{age}.so").touch()
        os.utime(tmp_path / f"kernels-{age}.so", (1e9 - age, 1e9 - age))
    (tmp_path / ".kernels-a.so.999999999.tmp").mkdir()  # of a process that was killed
    kernels.library.cache_clear()
    found, _ = run(SMALL)
    left = {file.name for file in tmp_path.iterdir()}
    assert len(left) == kernels.KEPT_AT_MOST
    assert {f"kernels-{age}.so" for age in range(kernels.KEPT_AT_MOST - 1)} < left
    assert all(map(torch.equal, expected.parameters(), found.parameters()))
    data = some(100).images
    assert torch.equal(predict(expected, data, 2), predict(found, data, 1))


def test_where_nothing_can_be_compiled_torch_does_the_work_and_says_so_if_pinned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_library: Callable[[], CDLL | str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "cc", stderr=b"kernels.c:1: no such thing\nmore")

    monkeypatch.setattr(kernels, "KEPT", tmp_path)
    monkeypatch.setattr(subprocess, "run", fail)
    kernels.library.cache_clear()
    assert engine_of(SMALL) == "torch"
    net, _ = run(SMALL)
    assert bool(torch.isfinite(net.fc1.weight).all())
    with pytest.raises(EngineError, match=r"engine is compiled, but the compiler says: kern"):
        run(replace(SMALL, engine="compiled"))


def test_an_environment_that_cannot_be_written_to_still_gets_its_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_library: Callable[[], CDLL | str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(kernels, "KEPT", blocked / "below")
    kernels.library.cache_clear()
    assert not isinstance(kernels.library(), str)
    assert predict(Net(), some(3).images, 1).shape == (3, 10)


@pytest.mark.parametrize(
    "recipe", [{"engine": "torch"}, {"precision": "bfloat16"}, {"engine": "compiled"}]
)
def test_the_engine_can_be_pinned(recipe: dict[str, str]) -> None:
    chosen = replace(RECIPE, **recipe)  # type: ignore[arg-type]
    assert engine_of(chosen) == ("compiled" if "compiled" in recipe.values() else "torch")


def test_bfloat16_is_not_what_the_compiled_kernels_do() -> None:
    with pytest.raises(EngineError, match="the kernels compute in float32 only"):
        engine_of(replace(RECIPE, engine="compiled", precision="bfloat16"))


def test_threads_that_wait_for_one_that_never_comes_can_be_ended() -> None:
    data = some(64)
    recipe = replace(PLAIN, batch_size=64)
    machine = MACHINE._replace(threads=2)
    steps = kernels.Steps(Net(), data.images, data.labels, recipe, machine)
    steps.team.task.threads = 3
    sums = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    order, places = torch.arange(64), torch.zeros(2, 64, dtype=torch.uint8)
    caller = threading.Thread(target=steps, args=(order, places, 0, [0.0], *sums))
    caller.start()
    caller.join(timeout=0.5)
    assert caller.is_alive()
    steps.close()
    caller.join(timeout=30)
    assert not caller.is_alive()
