"""Training steps and answers by torch: what any other engine is held to."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits.training import optim
from digits.training.device import Machine
from digits.training.group import sharing

if TYPE_CHECKING:
    from digits.params import Train


def loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """The mean loss (nats) of log-probabilities `[N, classes]` for labels int64 `[N]`."""
    return F.nll_loss(log_probabilities, labels)


def moved(images: Tensor, places: Tensor, shift: int) -> Tensor:
    """What a window shows of each image in a black margin of `shift` pixels.

    Args:
        images: `[N, channels, height, width]`.
        places: uint8 `[2, N]`, how far down and right each window lies, 0 to twice the shift.
        shift: pixels.
    """
    if not shift:
        return images
    height, width = images.shape[2:]
    windows = F.pad(images, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), device=images.device)
    down, right = places.long()
    return windows[each, :, down, right]


def _seed(seed: int, device: torch.device) -> None:
    """What torch.manual_seed does, but for kinds of device that aren't in use: 0.2 ms each time."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def log_probabilities(net: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Float32 `[N, classes]` of images, by a copy of the Net in `eval()`."""
    copy = deepcopy(net).eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([copy(batch) for batch in torch.split(images, batch_size)])


class Steps:
    """Trains a Net in place by autograd and torch.optim.

    The random numbers of a step, dropout's for one, are a function of seed, step and rank alone.
    In a group each process computes its share of a batch, and they take the same step.

    Args:
        net: on the machine's device.
        images: uint8 `[N, channels, height, width]`.
        labels: int64 `[N]`.
        recipe: section `train` of params.yaml.
        machine: whose precision and group count.
    """

    def __init__(
        self, net: nn.Module, images: Tensor, labels: Tensor, recipe: "Train", machine: Machine
    ) -> None:
        self.net = net.to(memory_format=torch.channels_last)
        self.images, self.labels = images, labels
        self.precision, self.recipe, self.group = machine.precision, recipe, machine.group
        self.parameters = dict(net.named_parameters())
        self.shared = sharing(self.net)
        self.optimizers = optim.optimizers(net, recipe)
        self.shares = [group["lr"] / recipe.learning_rate for group in self._groups()]

    def __call__(
        self,
        order: Tensor,
        places: Tensor,
        first: int,
        rates: Sequence[float],
        loss_sum: Tensor,
        correct: Tensor,
    ) -> Tensor:
        """Train on batches of some images.

        Args:
            order: int64, which images; all batches are full but the last, which may be less.
            places: uint8 `[2, N]`, to where each image of the split is moved.
            first: number of the first step, from 0.
            rates: the learning rate of each step.
            loss_sum: float64 `[]`, to which the loss (nats) of each image of this process is added.
            correct: int64 `[]`, to which the right answers among them are added.

        Returns:
            What this process has of the mean loss of the last batch: all of it, if it is alone.
        """
        batches = torch.split(order, self.recipe.batch_size)
        for step, (indices, rate) in enumerate(zip(batches, rates, strict=True), first):
            _seed(self.group.seed(self.recipe.seed, step), order.device)
            for group, share in zip(self._groups(), self.shares, strict=True):
                group["lr"] = rate * share
            own = indices[self.group.share(len(indices))]
            mean, right = self._backward(own, places, len(indices))
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
            loss_sum += mean * len(own)
            correct += right
        return mean * (len(own) / len(indices))

    def _groups(self) -> Iterator[dict[str, Any]]:
        """Parameters with settings of their own; `load_state_dict` makes them anew."""
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    def _backward(self, own: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Mean loss and how many were right; the gradients of the batch go into the parameters.

        Args:
            own: which images of the batch are this process's. If none is, it goes through the
                motions with one that doesn't count: each process must, and few Nets take none.
            places: as of `__call__`.
            count: of the batch's images.
        """
        weight = len(own) * self.group.size / count  # of the mean that `sharing` takes
        indices = own if len(own) else own.new_zeros(1)
        mean, right = self._pass(indices, places[:, indices], weight)
        return mean, right[: len(own)].sum()

    def _pass(self, indices: Tensor, places: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Forward and back: the mean loss of some images, and which answers were right."""
        images = moved(self.images[indices], places, self.recipe.shift)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = self.labels[indices]
        mixed = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=mixed):
            output = self.shared(images)
        mean = loss(output, labels)
        self.net.zero_grad(set_to_none=True)
        (mean if weight == 1 else mean * weight).backward()  # type: ignore[no-untyped-call]
        return mean.detach(), output.detach().argmax(1) == labels

    def state(self) -> dict[str, Tensor]:
        """The optimizers' tensors, live, by `key.parameter`."""
        return {
            f"{key}.{name}": value
            for name, parameter in self.parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on with the optimizers' tensors of another time."""
        for optimizer in self.optimizers:
            members = [one for group in optimizer.param_groups for one in group["params"]]
            number = {id(parameter): i for i, parameter in enumerate(members)}
            found: dict[int, dict[str, Tensor]] = {}
            for name, value in state.items():
                key, _, owner = name.partition(".")
                parameter = self.parameters[owner]
                if value.shape == parameter.shape:  # and in memory as the parameter is
                    value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                if id(parameter) in number:
                    found.setdefault(number[id(parameter)], {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": found})

    def close(self) -> None:
        """Nothing to end."""
