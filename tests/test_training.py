"""The training loop: right gradients, exact resume, the original curve."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from digits.blocked import BlockedGradients
from digits.errors import DeviceError, DivergedError
from digits.net import Net
from digits.params import Train, load
from digits.training import (
    Epoch,
    Event,
    Images,
    Snapshot,
    Step,
    choose_device,
    learning_rate,
    new_net,
    prepare,
    train,
)

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


def run(recipe: Train, resume: dict[str, Tensor] | None = None) -> tuple[Net, list[Event]]:
    net = new_net(recipe, 10, 0.13, 0.31)
    events = train(net, some(300), some(80, seed=1), recipe, prepare(recipe), 2, resume)
    seen: list[Event] = []
    for event in events:
        if isinstance(event, Snapshot):
            event = Snapshot(event.step, {k: v.clone() for k, v in event.tensors.items()})
        seen.append(event)
    return net, seen


def computed(
    net: Net, data: Images, precision: torch.dtype, threads: int, times: int = 1
) -> tuple[Tensor, Tensor]:
    """Loss and right answers of all images as one batch, by the gradients made by hand."""
    images, labels = data
    count = len(labels)
    windows = images[:, :, None, None]
    with closing(BlockedGradients(net, windows, labels, precision, threads, count)) as gradients:
        for _ in range(times):
            found = gradients(torch.arange(count), torch.zeros(2, count, dtype=torch.int64))
    return found


def reference_gradients(net: Net, images: Tensor, labels: Tensor) -> list[Tensor]:
    exact = Net(net.fc2.out_features, float(net.mean), float(net.std)).double()
    exact.load_state_dict(net.state_dict())
    pixels = (images.double() / 255 - net.mean.double()) / net.std.double()
    hidden = F.max_pool2d(F.relu(exact.conv1(pixels)), 2)
    hidden = F.max_pool2d(F.relu(exact.conv2(hidden)), 2)
    hidden = F.relu(exact.fc1(hidden.flatten(1)))
    F.nll_loss(F.log_softmax(exact.fc2(hidden), 1), labels).backward()  # type: ignore[no-untyped-call]
    return [p.grad for p in exact.parameters() if p.grad is not None]


def test_the_net_is_the_one_of_the_original() -> None:
    net = Net()
    assert sum(p.numel() for p in net.parameters()) == 431_080
    assert [name for name, _ in net.named_children()] == ["conv1", "conv2", "fc1", "fc2"]
    assert Net(62).fc2.out_features == 62


@pytest.mark.parametrize("batch", [1, 31, 64, 77, 256])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("classes", [10, 62])
def test_hand_made_gradients_are_those_of_autograd_in_double_precision(
    batch: int, threads: int, classes: int
) -> None:
    torch.manual_seed(batch)
    net = Net(classes, 0.2, 0.4)
    images, labels = data = some(batch, classes=10, seed=batch)
    # the second time must not see what the first left behind
    loss, correct = computed(net, data, torch.float32, threads, times=2)
    output = net(images)
    assert loss.item() == pytest.approx(F.nll_loss(output, labels).item(), rel=1e-5)
    assert correct.item() == (output.argmax(1) == labels).sum().item()
    for parameter, exact in zip(
        net.parameters(), reference_gradients(net, images, labels), strict=True
    ):
        assert parameter.grad is not None
        assert (parameter.grad - exact).norm() <= 1e-5 * exact.norm()


def test_hand_made_gradients_in_bfloat16_point_the_same_way() -> None:
    net = Net()
    images, labels = data = some(256)
    computed(net, data, torch.bfloat16, 2)
    for parameter, exact in zip(
        net.parameters(), reference_gradients(net, images, labels), strict=True
    ):
        assert parameter.grad is not None
        cosine = F.cosine_similarity(parameter.grad.double().view(-1), exact.view(-1), dim=0)
        assert cosine > 0.99


def test_equal_brightness_in_a_pooling_window_sends_the_gradient_where_max_pool_does() -> None:
    net = Net()
    images, labels = torch.full((8, 1, 28, 28), 7, dtype=torch.uint8), torch.arange(8)
    computed(net, Images(images, labels), torch.float32, 1)
    exact = reference_gradients(net, images, labels)
    for parameter, other in zip(net.parameters(), exact, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_training_resumed_from_any_snapshot_ends_with_the_same_bytes(
    optimizer: str, keep: str
) -> None:
    recipe = replace(SMALL, optimizer=optimizer, keep=keep, learning_rate=0.01)
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


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    recipe = replace(SMALL, optimizer="sgd", schedule="constant", learning_rate=100.0, epochs=5)
    with pytest.raises(DivergedError, match=r"diverged; lower train\.learning_rate"):
        run(recipe)


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

    monkeypatch.setattr(BlockedGradients, "__call__", fail)
    with pytest.raises(DeviceError, match=r"lower train\.batch_size"):
        run(SMALL)
