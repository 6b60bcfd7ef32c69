"""The training loop: it yields what happened, and knows nothing of files, DVC or MLflow.

It imports torch alone, so it can be run and checked on a bare GPU machine.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from digits import kernels
from digits.errors import DeviceError, DivergedError
from digits.kernels import CompiledSteps
from digits.net import Net

if TYPE_CHECKING:
    from digits.params import Train

EVALUATION_BATCH = 500
SIDE = 28


class Images(NamedTuple):
    """A split on a device: images uint8 `[N, 1, 28, 28]`, labels int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Images:
        """The same split on another device."""
        return Images(self.images.to(device), self.labels.to(device))


class Machine(NamedTuple):
    """What `auto` came to: part of what decides the weights' last bits."""

    device: torch.device
    precision: torch.dtype
    threads: int
    kernels: str
    description: str


class Step(NamedTuple):
    """One point of the loss curve: the mean loss (nats) of the batch behind `samples` images."""

    step: int
    samples: int
    loss: float
    learning_rate: float


class Epoch(NamedTuple):
    """An epoch's means; the training ones are running means over the epoch."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None


class Snapshot(NamedTuple):
    """All that is needed to go on from here, bit for bit.

    The tensors are the live ones: save them before asking for the next event.
    """

    step: int
    tensors: dict[str, Tensor]


Event = Step | Epoch | Snapshot


def prepare(recipe: Train) -> Machine:
    """Choose device, precision and threads, and set torch up for them.

    Raises:
        DeviceError: the device that was asked for is not there.
    """
    device = choose_device(recipe.device, "train.device")
    threads = recipe.threads or _cores()
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda" and recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    precision, chosen = _precision(recipe, device), _kernels(recipe, device)
    return Machine(device, precision, threads, chosen, _describe(device, chosen))


def choose_device(name: str, key: str) -> torch.device:
    """The torch device for auto, cpu, cuda, cuda:N or mps; auto is CUDA where there is one.

    Raises:
        DeviceError: it isn't there; names the parameter `key`.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        raise DeviceError(f"{key} is {name}, but this machine has no such device; set it to auto")
    return device


def new_net(recipe: Train, classes: int, mean: float, std: float) -> Net:
    """A Net with the weights that `train.seed` gives, on the CPU.

    They are torch's own, within a fan-in's root, but scaled one operation after the other:
    `uniform_` rounds differently on processors that multiply and add at once.
    """
    net = Net(classes, mean, std)
    torch.manual_seed(recipe.seed)
    with torch.no_grad():
        for layer in (net.conv1, net.conv2, net.fc1, net.fc2):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                parameter.copy_(torch.rand(parameter.shape) * (2 * bound) - bound)
    return net


def train(
    net: Net,
    training: Images,
    validation: Images,
    recipe: Train,
    machine: Machine,
    snapshot_every: int = 0,
    resume: dict[str, Tensor] | None = None,
) -> Iterator[Event]:
    """Train `net` in place and yield what happens.

    The order of the images is a function of seed and epoch, and the learning rate of the step,
    so a snapshot holds no random state.

    Args:
        net: on `machine.device`.
        training: on `machine.device`.
        validation: on `machine.device`; may be empty.
        recipe: section `train` of params.yaml.
        machine: from `prepare`.
        snapshot_every: steps between two snapshots within an epoch; 0 for none.
        resume: the tensors of a snapshot of this very training.

    Yields:
        A Step each `recipe.log_every` steps; at the end of an epoch an Epoch and a Snapshot.

    Raises:
        DivergedError: the loss became NaN or infinite.
        DeviceError: out of memory.
    """
    try:
        loop = _Loop(net, training, validation, recipe, machine, resume)
        with contextlib.closing(loop.steps):
            yield from loop.run(snapshot_every)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"out of memory on {machine.device} with train.batch_size {recipe.batch_size}; "
            "lower train.batch_size"
        ) from error


def evaluate(net: Net, data: Images, batch_size: int = EVALUATION_BATCH) -> Tensor:
    """Log-probabilities float32 `[N, classes]` of a whole split, in float32.

    By the compiled kernels where there are some; `batch_size` is for torch's. Those work on a copy
    with the channels last, which convolves a CPU's images twice as fast.
    """
    if data.images.device.type == "cpu" and kernels.library():
        return kernels.predict(net, data.images, torch.get_num_threads())
    copy = deepcopy(net).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([copy(images) for images in torch.split(data.images, batch_size)])


class _TorchSteps:
    """Trains a Net in place by autograd and torch.optim; called like `CompiledSteps`."""

    def __init__(
        self, net: Net, images: Tensor, labels: Tensor, recipe: Train, precision: torch.dtype
    ) -> None:
        self.net, self.labels = net, labels
        self.windows = images.unfold(2, SIDE, 1).unfold(3, SIDE, 1)
        self.precision, self.batch_size = precision, recipe.batch_size
        self.parameters = dict(net.named_parameters())
        self.optimizer = _optimizer(net, recipe)

    def __call__(
        self,
        order: Tensor,
        places: Tensor,
        first: int,  # noqa: ARG002  the optimizer counts for itself
        rates: Sequence[float],
        loss_sum: Tensor,
        correct: Tensor,
    ) -> Tensor:
        for indices, rate in zip(torch.split(order, self.batch_size), rates, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, right = self._gradients(indices, places[:, indices])
            self.optimizer.step()
            loss_sum += loss * len(indices)
            correct += right
        return loss

    def _gradients(self, indices: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and how many were right; the gradients go into the parameters."""
        images = self.windows[indices, :, places[0], places[1]]
        labels = self.labels[indices]
        mixed = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=mixed):
            log_probabilities = self.net(images)
        loss = F.nll_loss(log_probabilities, labels)
        self.net.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), (log_probabilities.detach().argmax(1) == labels).sum()

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, live, by `key.parameter`."""
        return {
            f"{key}.{name}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on with the optimizer's tensors of another time."""
        for name, value in state.items():
            key, _, parameter = name.partition(".")
            home = "cpu" if key == "step" else self.labels.device
            self.optimizer.state[self.parameters[parameter]][key] = value.to(home)

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class _Loop:
    net: Net
    training: Images
    validation: Images
    recipe: Train
    machine: Machine
    resume: dict[str, Tensor] | None

    def __post_init__(self) -> None:
        device = self.machine.device
        self.steps = self._steps()
        self.batches = math.ceil(len(self.training.labels) / self.recipe.batch_size)
        self.last = self.batches * self.recipe.epochs
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.best: dict[str, Tensor] = {}
        self.best_score = torch.full((2,), -math.inf, dtype=torch.float64)
        if self.resume is not None:
            self._restore(self.resume)

    def run(self, snapshot_every: int) -> Iterator[Event]:
        while self.step < self.last:
            epoch = self.step // self.batches
            order, places = self._order(epoch)
            while self.step < (epoch + 1) * self.batches:
                point = self._advance(order, places, self._next_stop(epoch, snapshot_every))
                if point is not None:
                    yield point
                if snapshot_every and self.step % snapshot_every == 0 and self._within_epoch():
                    yield self._snapshot()
            yield self._end_epoch(epoch)
            yield self._snapshot()
        if self.recipe.keep == "best":
            self.net.load_state_dict(self.best)

    def _steps(self) -> CompiledSteps | _TorchSteps:
        machine, recipe, margin = self.machine, self.recipe, (self.recipe.shift,) * 4
        images = F.pad(self.training.images, margin)
        labels = self.training.labels
        if machine.kernels == "compiled":
            return CompiledSteps(self.net, images, labels, recipe, machine.threads)
        return _TorchSteps(self.net, images, labels, recipe, machine.precision)

    def _within_epoch(self) -> bool:
        return self.step % self.batches != 0

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's order of the images `[N]`, and to where each is moved, `[2, N]`."""
        count, places = len(self.training.labels), 2 * self.recipe.shift + 1
        generator = torch.Generator().manual_seed((self.recipe.seed << 20) + epoch)
        order = torch.randperm(count, generator=generator)
        moves = torch.randint(places, (2, count), generator=generator)
        return order.to(self.machine.device), moves.to(self.machine.device)

    def _next_stop(self, epoch: int, snapshot_every: int) -> int:
        """Up to which step there is nothing to tell: a point of the curve, a snapshot, the end."""
        every = self.recipe.log_every
        stops = [(epoch + 1) * self.batches, -(-self.step // every) * every + 1]
        if snapshot_every:
            stops.append((self.step // snapshot_every + 1) * snapshot_every)
        return min(stops)

    def _advance(self, order: Tensor, places: Tensor, stop: int) -> Step | None:
        """Train up to a step; the point of the loss curve, if the last one is on it."""
        epoch, first = divmod(self.step, self.batches)
        size = self.recipe.batch_size
        some = order[first * size : (stop - epoch * self.batches) * size]
        rates = [learning_rate(step, self.last, self.recipe) for step in range(self.step, stop)]
        loss = self.steps(some, places, self.step, rates, self.loss_sum, self.correct)
        self.step = stop
        step, batch = stop - 1, (stop - 1) % self.batches
        if step % self.recipe.log_every:
            return None
        samples = epoch * len(self.training.labels) + batch * size
        return Step(step, samples, _finite(float(loss), step), rates[-1])

    def _end_epoch(self, epoch: int) -> Epoch:
        count = len(self.training.labels)
        train_loss = _finite(self.loss_sum.item() / count, self.step)
        train_accuracy = self.correct.item() / count
        self.loss_sum.zero_()
        self.correct.zero_()
        loss, accuracy = self._validate()
        if self.recipe.keep == "best" and accuracy is not None and loss is not None:
            self._keep_if_best(accuracy, loss)
        return Epoch(epoch + 1, self.step, train_loss, train_accuracy, loss, accuracy)

    def _validate(self) -> tuple[float | None, float | None]:
        if not len(self.validation.labels):
            return None, None
        output = evaluate(self.net, self.validation)
        loss = F.nll_loss(output.double(), self.validation.labels).item()
        accuracy = (output.argmax(1) == self.validation.labels).double().mean().item()
        return _finite(loss, self.step), accuracy

    def _keep_if_best(self, accuracy: float, loss: float) -> None:
        score = torch.tensor([accuracy, -loss], dtype=torch.float64)
        if score.tolist() > self.best_score.tolist():
            self.best_score = score
            self.best = {name: value.clone() for name, value in self.net.state_dict().items()}

    def _snapshot(self) -> Snapshot:
        for value in (self.loss_sum, *self.net.parameters()):  # else the bad one is kept
            _finite(value.detach().sum().item(), self.step)
        tensors = {
            "step": torch.tensor(self.step),
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "best_score": self.best_score,
        }
        tensors |= {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.steps.state().items()}
        return Snapshot(self.step, tensors)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        def below(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value.clone()
                for name, value in tensors.items()
                if name.startswith(prefix)
            }

        self.step = int(tensors["step"])
        self.loss_sum.copy_(tensors["loss_sum"])
        self.correct.copy_(tensors["correct"])
        self.best_score = tensors["best_score"].clone()
        self.best = below("best.")
        self.net.load_state_dict(below("net."))
        self.steps.restore(below("optimizer."))


def learning_rate(step: int, steps: int, recipe: Train) -> float:
    """The learning rate of a step.

    One-cycle (L. N. Smith and N. Topin, "Super-Convergence", 2018) with the shape and defaults
    of `torch.optim.lr_scheduler.OneCycleLR`: from a 25th up to the full rate in the first 30 %
    of the steps, then down to a 250,000th, both along a cosine.
    """
    if recipe.schedule == "constant":
        return recipe.learning_rate
    peak = 0.3 * steps - 1
    low, high, least = recipe.learning_rate / 25, recipe.learning_rate, recipe.learning_rate / 25e4
    if step < peak:
        return _cosine(low, high, step / peak)
    return _cosine(high, least, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _optimizer(net: Net, recipe: Train) -> torch.optim.Optimizer:
    fused = next(net.parameters()).device.type in ("cpu", "cuda")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            net.parameters(),
            recipe.learning_rate,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    return torch.optim.AdamW(
        net.parameters(),
        recipe.learning_rate,
        (recipe.momentum, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def _finite(loss: float, step: int) -> float:
    if math.isfinite(loss):
        return loss
    raise DivergedError(
        f"the loss became {loss} at step {step}: training diverged; lower train.learning_rate"
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _precision(recipe: Train, device: torch.device) -> torch.dtype:
    if recipe.precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.float32


def _kernels(recipe: Train, device: torch.device) -> str:
    """Whether the compiled kernels do the work: on CPUs, in float32, where they can be made."""
    if recipe.kernels == "torch":
        return "torch"
    fit = device.type == "cpu" and recipe.precision != "bfloat16"
    if fit and kernels.library():
        return "compiled"
    if recipe.kernels == "auto":
        return "torch"
    why = "need a compiler and AVX2 or NEON on Linux" if fit else "are float32 on a CPU only"
    raise DeviceError(f"train.kernels is compiled, but these {why}; set it to auto")


def _describe(device: torch.device, chosen: str) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if chosen == "compiled":
        return device.type  # the same bits on every CPU
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that a device's memory is too small."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
