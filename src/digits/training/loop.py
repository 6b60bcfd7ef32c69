"""The training loop: it yields what happened, and knows nothing of files, DVC or MLflow."""

import contextlib
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from digits.errors import DivergedError, NetError
from digits.model.net import Net
from digits.training.device import Machine
from digits.training.engine import Engine, hold_together
from digits.training.group import raise_if_left
from digits.training.optim import learning_rate
from digits.training.torch_engine import loss as mean_loss

if TYPE_CHECKING:
    from digits.params import Train

EVALUATION_BATCH = 500


class Images(NamedTuple):
    """A split on a device: images uint8 `[N, channels, height, width]`, labels int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Images":
        """The same split on another device."""
        return Images(self.images.to(device), self.labels.to(device))


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


class Kept(NamedTuple):
    """The training is over: after which step the Net had the weights that it has now."""

    step: int


Event = Step | Epoch | Snapshot | Kept


def new_net(seed: int, classes: int, shape: tuple[int, int, int], mean: float, std: float) -> Net:
    """A Net on the CPU whose first weights are a function of the seed, whatever its layers are.

    Raises:
        NetError: there is no such Net for images of this shape.
    """
    torch.manual_seed(seed)
    try:
        return Net(classes, shape, mean, std)
    except (ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise NetError(
            f"the Net can't be made for images {list(shape)}: {reason:.300}; bring larger images "
            "(folder.size), or change src/digits/model/net.py"
        ) from error


def train(
    net: nn.Module,
    training: Images,
    validation: Images,
    recipe: "Train",
    machine: Machine,
    engine: Engine,
    snapshot_every: int = 0,
    resume: dict[str, Tensor] | None = None,
) -> Iterator[Event]:
    """Train `net` in place and yield what happens.

    The order of the images is a function of seed and epoch, and the learning rate of the step,
    so a snapshot holds no random state.

    In a group all processes train the same Net and yield the same events, but the first alone
    validates and chooses the best weights.

    Args:
        net: on `machine.device`.
        training: on `machine.device`.
        validation: on `machine.device`; may be empty.
        recipe: section `train` of params.yaml.
        machine: from `device.prepare`.
        engine: from `engine.for_training`.
        snapshot_every: steps between two snapshots within an epoch; 0 for none.
        resume: the tensors of a snapshot of this very training.

    Yields:
        A Step each `recipe.log_every` steps; at the end of an epoch an Epoch and a Snapshot; Kept
        as the last.

    Raises:
        DivergedError: the loss became NaN or infinite.
        EngineError: the engine answered otherwise than the Net, once it was trained.
        KeyboardInterrupt: another process of the group ended.
    """
    try:
        loop = _Loop(net, training, validation, recipe, machine, engine, resume)
        with contextlib.closing(loop.steps):
            yield from loop.run(snapshot_every)
    except RuntimeError as error:
        raise_if_left(error)
        raise


@dataclass
class _Loop:
    net: nn.Module
    training: Images
    validation: Images
    recipe: "Train"
    machine: Machine
    engine: Engine
    resume: dict[str, Tensor] | None

    def __post_init__(self) -> None:
        device, self.group = self.machine.device, self.machine.group
        self.net.train()
        self.steps = self.engine.steps(
            self.net, self.training.images, self.training.labels, self.recipe, self.machine
        )
        self.batches = math.ceil(len(self.training.labels) / self.recipe.batch_size)
        self.last = self.batches * self.recipe.epochs
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.best_score = torch.full((2,), -math.inf, dtype=torch.float64)
        self.best_step = 0
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
            del order, places  # the next ones are as large
            yield self._end_epoch(epoch)
            yield self._snapshot()
        self.net.load_state_dict(self.best or self._averaged().state_dict())
        yield Kept(self.best_step if self.best else self.step)

    def _within_epoch(self) -> bool:
        return self.step % self.batches != 0

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's order of images, int64 `[N]`, and to where each is moved, uint8 `[2, N]`."""
        count, places = len(self.training.labels), 2 * self.recipe.shift + 1
        generator = torch.Generator().manual_seed((self.recipe.seed << 20) + epoch)
        order = torch.randperm(count, generator=generator)
        moves = torch.randint(places, (2, count), generator=generator, dtype=torch.uint8)
        return order.to(self.machine.device), moves.to(self.machine.device)

    def _next_stop(self, epoch: int, snapshot_every: int) -> int:
        """Up to which step nothing is done: a point of the curve, a snapshot, the end."""
        if self.recipe.ema_decay:
            return self.step + 1
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
        if self.recipe.ema_decay:
            self._average()
        step, batch = stop - 1, (stop - 1) % self.batches
        if step % self.recipe.log_every:
            return None
        samples = epoch * len(self.training.labels) + batch * size
        loss = float(self.group.sum(loss)) if isinstance(loss, Tensor) else loss
        return Step(step, samples, _finite(loss, step), rates[-1])

    def _average(self) -> None:
        """The weights' exponential moving average, as `torch.optim.swa_utils` has it.

        One operation after the other: a fused one rounds differently on some processors.
        """
        decay = self.recipe.ema_decay
        for name, value in self.net.named_parameters(remove_duplicate=False):
            if name in self.average:
                self.average[name].mul_(decay).add_(value.detach() * (1 - decay))
            else:
                self.average[name] = value.detach().clone()

    def _averaged(self) -> nn.Module:
        """What the training has come to: the Net, or one with the average of its weights."""
        if not self.average:
            return self.net
        net = deepcopy(self.net)
        net.load_state_dict(self.average, strict=False)
        return net

    def _end_epoch(self, epoch: int) -> Epoch:
        count = len(self.training.labels)
        train_loss = _finite(self.group.sum(self.loss_sum).item() / count, self.step)
        train_accuracy = self.group.sum(self.correct).item() / count
        self.loss_sum.zero_()
        self.correct.zero_()
        loss, accuracy = self._validate()
        if self.recipe.keep == "best" and accuracy is not None and loss is not None:
            self._keep_if_best(accuracy, loss)
        return Epoch(epoch + 1, self.step, train_loss, train_accuracy, loss, accuracy)

    def _validate(self) -> tuple[float | None, float | None]:
        if self.group.rank or not len(self.validation.labels):
            return None, None
        images = self.validation.images
        net = self._averaged()
        output = self.engine.log_probabilities(net, images, EVALUATION_BATCH)
        loss = _finite(mean_loss(output.double(), self.validation.labels).item(), self.step)
        hold_together(self.engine, net, images, output)
        return loss, (output.argmax(1) == self.validation.labels).double().mean().item()

    def _keep_if_best(self, accuracy: float, loss: float) -> None:
        score = torch.tensor([accuracy, -loss], dtype=torch.float64)
        if score.tolist() > self.best_score.tolist():
            self.best_score, self.best_step = score, self.step
            state = self._averaged().state_dict()
            self.best = {name: value.clone() for name, value in state.items()}

    def _snapshot(self) -> Snapshot:
        for value in (self.loss_sum, *self.net.parameters()):  # else the bad one is kept
            _finite(value.detach().sum().item(), self.step)
        tensors = {
            "step": torch.tensor(self.step),
            "loss_sum": self.group.gather(self.loss_sum),
            "correct": self.group.gather(self.correct),
            "best_score": self.best_score,
            "best_step": torch.tensor(self.best_step),
        }
        tensors |= {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
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
        self.loss_sum.copy_(self.group.part(tensors["loss_sum"]))
        self.correct.copy_(self.group.part(tensors["correct"]))
        self.best_score = tensors["best_score"].clone()
        self.best_step = int(tensors["best_step"])
        self.best = below("best.")
        self.average = {
            name: value.to(self.machine.device) for name, value in below("average.").items()
        }
        self.net.load_state_dict(below("net."))
        self.steps.restore(below("optimizer."))


def _finite(loss: float, step: int) -> float:
    if math.isfinite(loss):
        return loss
    raise DivergedError(
        f"the loss became {loss} at step {step}: training diverged; lower train.learning_rate"
    )
