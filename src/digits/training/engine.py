"""Which engine computes a Net. Torch does, unless a faster one proves that it computes the same.

Whether it does is decided here alone, for training, validation, evaluation and predictions.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from digits.errors import EngineError, NetError
from digits.training import cuda_graph, torch_engine
from digits.training.device import Machine
from digits.training.group import Group

try:
    from digits.training.cpu_kernels import engine as kernels
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("digits.training.cpu_kernels"):
        raise
    kernels = None  # type: ignore[assignment]  # they may be deleted

if TYPE_CHECKING:
    from digits.params import Train
    from digits.training.cpu_kernels.engine import Steps as CompiledSteps

    Steps = torch_engine.Steps | CompiledSteps
    NewSteps = Callable[[nn.Module, Tensor, Tensor, Train, Machine], Steps]

PROBED = 24  # images: a full vector of the kernels and half of one
SCALES = (1.0, 6.0)  # of the weights: the first ones say little of what a Net does to large values
LARGEST_SCALE = 64.0  # of answers alone, whose gradients are nothing by then
RECORDED_STEPS = 2  # the second one shows what a recording takes for granted
TRIES = 6  # rounding may take one of two equal maxima; not of every handful of images
FORWARD_TOLERANCE = 2e-5  # of log-probabilities, beside the largest
GRADIENT_TOLERANCE = 1e-3  # of a tensor's norm
UPDATE_TOLERANCE = 1e-4  # of the median: AdamW makes much of gradients that are all but nothing


class Engine(NamedTuple):
    """What computes a Net, and why not something faster or slower."""

    name: str  # compiled | CUDA graph | torch
    why: str
    steps: "NewSteps"
    log_probabilities: Callable[[nn.Module, Tensor, int], Tensor]


class _Trial(NamedTuple):
    """A few steps that two kinds of engine are to take alike."""

    images: Tensor
    labels: Tensor
    recipe: "Train"
    machine: Machine
    rates: list[float]  # of each step


def for_training(
    net: nn.Module, images: Tensor, labels: Tensor, recipe: "Train", machine: Machine
) -> Engine:
    """The engine that trains a Net and validates it.

    Args:
        net: with its first weights, on the machine's device.
        images: of the training split, uint8 `[N, channels, height, width]`, on the same device.
        labels: int64 `[N]`.
        recipe: section `train` of params.yaml.
        machine: from `prepare`.

    Raises:
        NetError: the Net can't compute these images.
        EngineError: `train.engine` is compiled, but the kernels don't fit or aren't alone.
    """
    with _aside():
        _check(net, images[:PROBED])
        if recipe.engine == "torch":
            return _torch("train.engine is torch")
        why = (
            _company(machine.group)
            or _misfit(net, images)
            or kernels.untrainable(recipe, machine)
            or _misses(net, images, labels, recipe, machine._replace(threads=1))
        )
    if not why:
        return _compiled(recipe.engine)
    if recipe.engine == "compiled":
        raise EngineError(f"train.engine is compiled, but {why}; set it to auto or torch")
    if machine.device.type == "cuda" and machine.group.is_alone:
        return _recorded(net, images, labels, recipe, machine)
    return _torch(why)


def for_answers(net: nn.Module, images: Tensor) -> Engine:
    """The engine that evaluates a trained Net on images or predicts, judged by some of them."""
    why = _misfit(net, images)
    if not why and len(images):
        some = images[:: max(1, len(images) // PROBED)][:PROBED]
        with _aside():
            why = _unlike(kernels.log_probabilities, net, some)
    return _torch(why) if why else _compiled("auto")


def hold_together(engine: Engine, net: nn.Module, images: Tensor, output: Tensor) -> None:
    """Refuse answers of a fast engine that aren't those of the Net as it is now.

    Raises:
        EngineError: of the first images, some are others.
    """
    if engine.name == "compiled" and (
        why := _unlike(lambda *_: output[:PROBED], net, images[:PROBED])
    ):
        raise EngineError(f"{why}, now that the Net is trained; set train.engine to torch")


@contextmanager
def _aside() -> Iterator[None]:
    """With one thread, which does so little work sooner than several; torch stays as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def _torch(why: str) -> Engine:
    return Engine("torch", why, torch_engine.Steps, torch_engine.log_probabilities)


def _compiled(wanted: str) -> Engine:
    why = f"train.engine is {wanted}, and the kernels agree with torch"
    return Engine("compiled", why, kernels.Steps, kernels.log_probabilities)


def _recorded(
    net: nn.Module, images: Tensor, labels: Tensor, recipe: "Train", machine: Machine
) -> Engine:
    """Torch's steps as a CUDA graph, if what is recorded of a Net is what it computes."""
    some = slice(RECORDED_STEPS * recipe.batch_size)
    rates = [0.0] * math.ceil(len(labels[some]) / recipe.batch_size)  # its gradients alone
    try:
        why = _unsteady(net, images[some]) or _steps_miss(
            cuda_graph.Steps, net, _Trial(images[some], labels[some], recipe, machine, rates)
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = str(error.__context__ or error).partition("\n")[0]
        why = f"CUDA can't record the Net: {first}"
    if why:
        return _torch(why)
    why = "what CUDA has recorded of the Net is what torch computes"
    return Engine("CUDA graph", why, cuda_graph.Steps, torch_engine.log_probabilities)


def _company(group: Group) -> str:
    return "" if group.is_alone else f"the kernels don't train in a process group (of {group.size})"


def _misfit(net: nn.Module, images: Tensor) -> str:
    if kernels is None:
        return "there are no kernels in src/digits/training/cpu_kernels"
    return kernels.misfit(net, images.shape[1:], images.device)


def _check(net: nn.Module, images: Tensor) -> None:
    """Refuse a Net that doesn't give log-probabilities of images."""
    try:
        output = torch_engine.log_probabilities(net, images, PROBED)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise NetError(
            f"the Net can't compute images {list(images.shape[1:])}: {reason:.300}; "
            "mend its forward, or bring larger images"
        ) from error
    sums = output.double().exp().sum(1) if output.ndim == 2 else torch.zeros(1)
    if output.shape[0] != len(images) or (sums - 1).abs().max() > 1e-3:
        raise NetError(
            f"the Net must give log-probabilities [{len(images)}, classes], but gives "
            f"{list(output.shape)} whose exponentials sum to {float(sums[0]):g}; "
            "end its forward by F.log_softmax(…, dim=1)"
        )


def _misses(
    net: nn.Module, images: Tensor, labels: Tensor, recipe: "Train", machine: Machine
) -> str:
    """In what the kernels and torch differ on one step of training; empty if in nothing."""
    if why := _unsteady(net, images[:PROBED]):
        return why
    for scale in SCALES:
        scaled = _scaled(net, scale).train()
        if why := _unlike(kernels.log_probabilities, scaled, images[:PROBED]):
            return why
        for start in range(0, min(TRIES * PROBED, len(images)), PROBED):
            some = slice(start, start + min(PROBED, recipe.batch_size))
            trial = _Trial(images[some], labels[some], recipe, machine, [recipe.learning_rate])
            if not (why := _steps_miss(kernels.Steps, scaled, trial)):
                break
        if why:
            return why
    return _unlike(kernels.log_probabilities, _scaled(net, LARGEST_SCALE), images[:PROBED])


def _steps_miss(kind: "NewSteps", net: nn.Module, trial: _Trial) -> str:
    """In what steps of some kind and torch's differ; empty if in nothing."""
    expected, found = (
        _after_steps(one, deepcopy(net), trial) for one in (torch_engine.Steps, kind)
    )
    fast = "the CUDA graph's" if kind is cuda_graph.Steps else "the kernels'"
    if more := {name for name in expected.keys() - found.keys() if not name.startswith("step.")}:
        return f"{fast} optimizer has no {min(more)}"
    for name, value in found.items():
        apart, whole = value - expected[name], expected[name]
        if name.startswith("update."):
            near = apart.abs().median() <= UPDATE_TOLERANCE * whole.abs().median()
        else:
            near = apart.norm() <= GRADIENT_TOLERANCE * whole.norm()
        if not near:
            return f"{fast} {name} isn't what the Net and its optimizer give"
    return ""


def _unlike(
    answer: Callable[[nn.Module, Tensor, int], Tensor], net: nn.Module, images: Tensor
) -> str:
    expected = torch_engine.log_probabilities(net, images, PROBED)
    apart = (answer(net, images, PROBED) - expected).abs().max()
    if apart <= FORWARD_TOLERANCE * expected.abs().max().clamp(min=1):
        return ""
    return f"the kernels' log-probabilities are {float(apart):.2g} from those of the Net's forward"


def _unsteady(net: nn.Module, images: Tensor) -> str:
    """Why two passes in training may differ; empty if nothing is seen of that."""
    copy = deepcopy(net).train()
    before, plain, kept = torch.get_rng_state(), random.getstate(), _kept(copy)
    with torch.no_grad():
        copy(images)
    if not torch.equal(before, torch.get_rng_state()) or plain != random.getstate():
        return "the Net draws random numbers in training"
    return "" if _kept(copy) == kept else "the Net counts its passes, or keeps something of them"


def _kept(net: nn.Module) -> list[dict[str, object]]:
    """The plain values that a Net's modules have as attributes."""
    return [
        {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, int | float | str)
        }
        for module in net.modules()
    ]


def _scaled(net: nn.Module, scale: float) -> nn.Module:
    copy = deepcopy(net)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(scale)
    return copy


def _after_steps(kind: "NewSteps", net: nn.Module, trial: _Trial) -> dict[str, Tensor]:
    """Loss, the optimizer's state, which holds the gradients, buffers, how far the weights went."""
    images, labels, recipe, machine, rates = trial
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    generator = torch.Generator().manual_seed(recipe.seed)
    most = 2 * recipe.shift + 1
    places = torch.randint(most, (2, len(labels)), generator=generator, dtype=torch.uint8)
    loss_sum, correct, order = (
        value.to(images.device)
        for value in (
            torch.zeros((), dtype=torch.float64),
            torch.zeros((), dtype=torch.int64),
            torch.arange(len(labels)).flip(0),
        )
    )
    steps = kind(net, images, labels, recipe, machine)
    try:
        steps(order, places.to(images.device), 0, rates, loss_sum, correct)
        state = {name: value.clone() for name, value in steps.state().items()}
    finally:
        steps.close()
    moved = {f"update.{n}": p.detach() - before[n] for n, p in net.named_parameters()}
    buffers = {f"buffer.{name}": value.double() for name, value in net.named_buffers()}
    return {"loss": loss_sum, **state, **buffers, **moved}
