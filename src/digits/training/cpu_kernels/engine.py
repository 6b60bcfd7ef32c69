"""The Net as it is shipped, by `kernels.c`: several times as fast as torch, same bits anywhere.

`kernels.c` says how it works. It is compiled when it is first needed, in about a second, by the
compiler that the environment brings along, and kept in the environment.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, byref, c_double, c_float, c_int64, c_void_p, cast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from digits.errors import UserError
from digits.training.device import Machine
from splice.files import written_whole

if TYPE_CHECKING:
    from digits.params import Train

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    *("-shared", "-nostdlib", "-ffreestanding", "-fPIC", "-O3"),
    *("-ffp-contract=off", "-fno-sanitize=undefined"),
)
KEPT = Path(sys.prefix, "lib", "digits")
KEPT_AT_MOST = 4  # of other sources or processors
LANES, SLOTS, GROUP = 16, 16, 4  # as in kernels.c
EPSILON = 1e-8  # of AdamW, as torch has it
IMAGE = (1, 28, 28)
SHAPES = {  # as in kernels.c; only the number of classes is free
    "conv1.weight": (20, 1, 5, 5),
    "conv1.bias": (20,),
    "conv2.weight": (50, 20, 5, 5),
    "conv2.bias": (50,),
    "fc1.weight": (500, 800),
    "fc1.bias": (500,),
    "fc2.weight": (None, 500),
    "fc2.bias": (None,),
}
OPTIMIZERS = ("adamw", "sgd")


def misfit(net: nn.Module, image: Sequence[int], device: torch.device) -> str:
    """Why the kernels can't compute a Net on images of a shape; empty if they can.

    What the Net does between its parameters shows only when it is compared.
    """
    if device.type != "cpu":
        return f"the kernels are for CPUs, not for {device.type}"
    if tuple(image) != IMAGE:
        return f"images are {list(image)}, the kernels take {list(IMAGE)}"
    found = {name: tuple(value.shape) for name, value in net.named_parameters()}
    if list(found) != list(SHAPES):
        return f"the Net has the parameters {', '.join(found)}; the kernels know another"
    for name, known in SHAPES.items():
        pairs = zip(found[name], known, strict=True) if len(found[name]) == len(known) else [(0, 1)]
        if any(there not in (here, None) for here, there in pairs):
            return f"{name} is {list(found[name])}, in the kernels' Net {list(known)}"
    buffers = {name: tuple(value.shape) for name, value in net.named_buffers()}
    if buffers != {"mean": (), "std": ()}:
        return f"the Net has the buffers {', '.join(buffers)}; the kernels know mean and std"
    if any(p.dtype != torch.float32 or not p.requires_grad for p in net.parameters()):
        return "a parameter isn't float32 or isn't trained"
    compiled = library()
    return compiled if isinstance(compiled, str) else ""


def untrainable(recipe: Train, machine: Machine) -> str:
    """Why the kernels can't train by a recipe; empty if they can."""
    if recipe.optimizer not in OPTIMIZERS:
        return f"the kernels have no {recipe.optimizer}"
    if recipe.clip_norm is not None:
        return "the kernels don't clip gradients"
    if machine.precision != torch.float32:
        return "the kernels compute in float32 only"
    return ""


@cache
def library() -> ctypes.CDLL | str:
    """The compiled kernels, or why there are none."""
    processor = _processor()
    if processor is None:
        return "the kernels need Linux and AVX2 or NEON"
    if not find_spec("ziglang"):
        return "the compiler (package ziglang) is not installed"
    source = SOURCE.read_bytes()
    name = hashlib.sha256(b"\0".join([source, *map(str.encode, (*FLAGS, *processor))])).hexdigest()
    kept = KEPT / f"kernels-{name[:16]}.so"
    try:
        try:
            if not kept.exists():
                _compile(kept, processor)
            return _declared(ctypes.CDLL(str(kept)))
        except (OSError, UserError):  # the environment can't be written to
            with tempfile.TemporaryDirectory() as folder:
                _compile(Path(folder, kept.name), processor)
                return _declared(ctypes.CDLL(str(Path(folder, kept.name))))
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode("utf-8", "replace").strip().splitlines()
        return f"the compiler says: {said[0] if said else f'exit code {error.returncode}'}"
    except (OSError, UserError) as error:
        return f"the kernels can't be compiled: {error}"


def _processor() -> tuple[str, ...] | None:
    """The compiler's flags for this processor."""
    if sys.platform != "linux":
        return None
    level = {"AVX512": "x86_64_v4", "AVX2": "x86_64_v3"}
    match platform.machine(), torch.backends.cpu.get_cpu_capability():
        case "x86_64", ("AVX512" | "AVX2") as capability:
            return f"-mcpu={level[capability]}", "-mprefer-vector-width=512"
        case "aarch64", _:
            return ("-mcpu=generic",)
    return None


def _compile(to: Path, processor: Sequence[str]) -> None:
    with written_whole(to) as made:
        caches = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(made.parent))
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *processor]
        subprocess.run(
            [*command, "-o", str(made), str(SOURCE)],
            env={**os.environ, **caches},
            check=True,
            capture_output=True,
        )
    compiled = sorted(to.parent.glob("kernels-*.so"), key=lambda file: file.stat().st_mtime)
    for old in compiled[:-KEPT_AT_MOST]:
        old.unlink(missing_ok=True)


def _all(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Layout(ctypes.Structure):
    _fields_ = _all(c_int64, "conv1 bias1 conv2 bias2 fc1 bias3 fc2 bias4 size")


class _Task(ctypes.Structure):
    """`task` of kernels.c, where each field is explained."""

    _fields_ = [
        *_all(c_void_p, "images labels order down right"),
        *_all(c_int64, "margin count batch classes threads adaptive"),
        *_all(c_float, "mean scale decay momentum beta2 epsilon"),
        ("at", _Layout),
        *_all(c_void_p, "weights first second gradient partial steps loss_sum correct"),
        ("last_loss", c_double),
        *_all(c_void_p, "chunks scratches logits output sleep"),
        *_all(c_int64, "arrived round ended"),
    ]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for function in (library.train, library.predict):
        function.argtypes, function.restype = [POINTER(_Task), c_int64], None
    for function in (library.chunk_bytes, library.scratch_bytes):
        function.argtypes, function.restype = [], c_int64
    return library


class Steps:
    """Trains a Net in place, many batches at a call.

    The parameters of `net` become views of one block, which the kernels update.

    Args:
        net: on the CPU, without a misfit.
        images: uint8 `[N, 1, 28, 28]`.
        labels: int64 `[N]`.
        recipe: section `train` of params.yaml.
        machine: how many threads work at once, at most; the result does not depend on it.
    """

    def __init__(
        self, net: nn.Module, images: Tensor, labels: Tensor, recipe: Train, machine: Machine
    ) -> None:
        self.recipe = recipe
        chunks = -(-min(recipe.batch_size, len(labels)) // LANES)
        self.team = _Team(net, min(machine.threads, chunks), chunks, chunks)
        self.images, self.labels = images.contiguous(), labels
        block = self.team.block
        self.first, self.second = torch.zeros_like(block), torch.zeros_like(block)
        self.gradient = torch.zeros_like(block)
        self.partial = torch.zeros(SLOTS, self.team.layout.fc1)
        for parameter, view in zip(net.parameters(), self.team.views(block), strict=True):
            parameter.data = view
        names = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}[recipe.optimizer]
        self.names = [name for name, _ in net.named_parameters()]
        self.kept = dict(zip(names, (self.first, self.second), strict=False))
        task = self.team.task
        task.images, task.margin = self.images.data_ptr(), recipe.shift
        task.labels = labels.data_ptr()
        task.batch, task.adaptive = recipe.batch_size, recipe.optimizer == "adamw"
        task.momentum, task.beta2 = recipe.momentum, recipe.beta2
        task.decay, task.epsilon = recipe.weight_decay, EPSILON
        task.first, task.second = self.first.data_ptr(), self.second.data_ptr()
        task.gradient, task.partial = self.gradient.data_ptr(), self.partial.data_ptr()

    def __call__(
        self,
        order: Tensor,
        places: Tensor,
        first: int,
        rates: Sequence[float],
        loss_sum: Tensor,
        correct: Tensor,
    ) -> float:
        """Train on batches of some images, as `torch_engine.Steps` does."""
        recipe, task = self.recipe, self.team.task
        order, places = order.contiguous(), places.contiguous()
        steps = torch.tensor([_coefficients(recipe, first + i, r) for i, r in enumerate(rates)])
        task.order, task.count = order.data_ptr(), len(order)
        task.down, task.right = places[0].data_ptr(), places[1].data_ptr()
        task.steps, task.loss_sum = steps.data_ptr(), loss_sum.data_ptr()
        task.correct = correct.data_ptr()
        self.team.run("train")
        return float(task.last_loss)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, live, by `key.parameter`."""
        return {
            f"{key}.{name}": view
            for key, block in self.kept.items()
            for name, view in zip(self.names, self.team.views(block), strict=True)
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on with the optimizer's tensors of another time."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def close(self) -> None:
        """End the threads."""
        self.team.close()


def log_probabilities(net: nn.Module, images: Tensor, batch_size: int) -> Tensor:  # noqa: ARG001
    """Float32 `[N, classes]` of uint8 images `[N, 1, 28, 28]`; sixteen are a batch here."""
    threads = torch.get_num_threads()
    team = _Team(net, min(threads, max(1, len(images) // LANES)), GROUP * threads, threads)
    try:
        images, order = images.contiguous(), torch.arange(len(images))
        output = torch.empty(len(images), team.task.classes)
        team.task.images = images.data_ptr()
        team.task.order, team.task.count = order.data_ptr(), len(images)
        team.task.output = output.data_ptr()
        team.run("predict")
        return output
    finally:
        team.close()


class _Team:
    """A task, the memory it works in, and the threads that do it together."""

    def __init__(self, net: nn.Module, threads: int, chunks: int, logits: int) -> None:
        compiled = library()
        assert not isinstance(compiled, str)
        self.library, self.threads = compiled, threads
        self.shapes = [parameter.shape for parameter in net.parameters()]
        self.layout, self.block = _packed(net)
        classes = self.shapes[-1][0]
        self.memory = [
            torch.zeros(chunks * self.library.chunk_bytes(), dtype=torch.uint8),
            torch.zeros(threads * self.library.scratch_bytes(), dtype=torch.uint8),
            torch.zeros(logits * classes * LANES),
        ]
        self.task = _Task(
            at=self.layout, weights=self.block.data_ptr(), threads=threads, classes=classes
        )
        mean, std = (float(net.get_buffer(name)) for name in ("mean", "std"))
        self.task.mean, self.task.scale = 255 * mean, 1 / (255 * std)
        task, places = self.task, [tensor.data_ptr() for tensor in self.memory]
        task.chunks, task.scratches, task.logits = places
        task.sleep = cast(ctypes.CDLL(None).usleep, c_void_p)
        self.others = ThreadPoolExecutor(max(1, threads - 1))

    def views(self, block: Tensor) -> list[Tensor]:
        """A block's parts in the shapes of the parameters."""
        starts = [getattr(self.layout, field[0]) for field in _Layout._fields_]
        return [
            block[start : start + shape.numel()].view(shape)
            for start, shape in zip(starts, self.shapes, strict=False)
        ]

    def run(self, name: str) -> None:
        """Have all threads do the task; this one is the first of them."""
        function = getattr(self.library, name)
        others = [
            self.others.submit(function, byref(self.task), number)
            for number in range(1, self.threads)
        ]
        function(byref(self.task), 0)
        for other in others:
            other.result()

    def close(self) -> None:
        """End the threads, also those that wait for one that never came."""
        self.task.ended = 1
        self.others.shutdown()


def _packed(net: nn.Module) -> tuple[_Layout, Tensor]:
    """All parameters in one block, each from a multiple of sixteen floats on."""
    starts, end = [], 0
    for parameter in net.parameters():
        starts.append(end)
        end += -(-parameter.numel() // LANES) * LANES
    block = torch.zeros(end)
    for start, parameter in zip(starts, net.parameters(), strict=True):
        block[start : start + parameter.numel()] = parameter.detach().reshape(-1)
    return _Layout(*starts, end), block


def _coefficients(recipe: Train, step: int, rate: float) -> tuple[float, float, float]:
    """A step's numbers: its rate, how much of the weights stays, AdamW's scale of `second`."""
    if recipe.optimizer == "sgd":
        return rate, 1.0, 1.0
    first = 1 - recipe.momentum ** (step + 1)
    second = 1 - recipe.beta2 ** (step + 1)
    return rate / first, 1 - rate * recipe.weight_decay, second**-0.5
