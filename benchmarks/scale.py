"""What more processors and more data would give, computed from what can be counted and measured.

    python benchmarks/scale.py [--files 20000]

Counted: the operations and gradients of a Net. Measured on this machine: adding up gradients
between two processes by gloo, and what DVC does to a folder of many files and to a few large ones.
Of GPUs nothing is measured: their numbers are constants below, each with where it is from.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from digits.model.net import Net  # noqa: E402

# H100 SXM, by NVIDIA's data sheet: bfloat16 without sparsity, of which good training attains 40 %.
OPERATIONS = 0.4 * 989e12  # a second
STEP = 0.5e-3  # seconds that launching a step's kernels takes at least: an assumption
# All-reduce within a machine of eight: "busbw" (github.com/NVIDIA/nccl/issues/1442), and how long
# the least takes (…/nccl/issues/1259, between two).
WITHIN, SOON = 480e9, 6e-6  # bytes a second, seconds
# Between machines: eight network cards of 400 Gbit/s each; the least takes 47 us (…/issues/1244).
BETWEEN, LATER = 8 * 50e9, 47e-6
MACHINE = 8  # GPUs
GPUS = (1, 8, 64, 512)
WIDER = 32  # times as wide: a thousand times the weights
ROUNDS = 20


class Work(NamedTuple):
    """What a Net takes: bytes of its gradients, operations of an image forward and backward."""

    parameters: int
    gradient: int
    operations: float


class Costs(NamedTuple):
    """Seconds to add a folder and to look at it again, beside DVC's start; bytes of its list, and
    of the cache."""

    add: float
    status: float
    listed: int
    cached: int


class Wider(nn.Module):
    """The Net with layers so many times as wide."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20 * times, 5), nn.Conv2d(20 * times, 50 * times, 5)
        self.fc1, self.fc2 = nn.Linear(800 * times, 500 * times), nn.Linear(500 * times, 10)

    def forward(self, images: Tensor) -> Tensor:
        """As the Net's own."""
        hidden = F.relu(F.max_pool2d(self.conv1(images.float()), 2))
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))
        return F.log_softmax(self.fc2(F.relu(self.fc1(hidden.flatten(1)))), dim=1)


def main() -> None:
    """Count, measure, compute and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000, help="of 20 kB, that DVC is given")
    files = parser.parse_args().files
    ours, larger = work(Net), work(lambda: Wider(WIDER))
    print("| | parameters | gradients | operations an image |\n|---|---|---|---|")
    for name, each in (("this Net", ours), (f"{WIDER} times as wide", larger)):
        print(f"| {name} | {each.parameters:,} | {each.gradient / 1e6:,.1f} MB "
              f"| {each.operations / 1e6:,.1f} million |")  # fmt: skip
    together = added_up(ours.gradient)
    print(f"\ngloo, two processes on this machine: {1000 * together:.1f} ms for this Net's\n")
    print("| GPUs | " + " | ".join(map(str, GPUS)) + " |\n|---|" + "---|" * len(GPUS))
    for name, each, batch in (
        ("this Net, batch 64", ours, 64),
        ("this Net, batch 65,536", ours, 65_536),
        (f"{WIDER} times as wide, batch 512", larger, 512),
        (f"{WIDER} times as wide, batch 65,536", larger, 65_536),
    ):
        print(f"| {name} | " + " | ".join(sped_up(each, batch, gpus) for gpus in GPUS) + " |")
    print()
    for count, size in ((files, 20_000), (max(1, files * 20_000 // 64_000_000), 64_000_000)):
        print(by_dvc(count, size), flush=True)


def work(make: Callable[[], nn.Module]) -> Work:
    """Count what a Net takes, without computing it."""
    with torch.device("meta"):
        net = make()
        image = torch.zeros(1, 1, 28, 28)
        with FlopCounterMode(display=False) as counted:
            net(image).sum().backward()
    sizes = [parameter.numel() for parameter in net.parameters()]
    return Work(sum(sizes), 4 * sum(sizes), counted.get_total_flops())


def sped_up(net: Work, batch: int, gpus: int) -> str:
    """How many times as fast as one GPU, and which share of a step the gradients take."""
    alone, together = step(net, batch, 1), step(net, batch, gpus)
    share = all_reduce(net.gradient, gpus) / together
    return f"{alone / together:.3g}x, {share:.0%}"


def step(net: Work, batch: int, gpus: int) -> float:
    """Seconds of a step that does one thing after the other: DDP hides some of the second."""
    return max(STEP, net.operations * batch / gpus / OPERATIONS) + all_reduce(net.gradient, gpus)


def all_reduce(size: int, gpus: int) -> float:
    """Seconds to add up so many bytes: in each machine, then between them."""
    here, machines = min(gpus, MACHINE), -(-gpus // MACHINE)
    within = SOON + 2 * (here - 1) / here * size / WITHIN if here > 1 else 0
    between = LATER + 2 * (machines - 1) / machines * size / BETWEEN if machines > 1 else 0
    return within + between


def added_up(size: int) -> float:
    """Seconds in which two processes of this machine add up so many bytes, by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.get_context("spawn")
        found = context.SimpleQueue()
        members = [
            context.Process(target=_add_up, args=(rank, f"file://{folder}/meet", size, found))
            for rank in range(2)
        ]
        for member in members:
            member.start()
        for member in members:
            member.join()
        return float(found.get())


def _add_up(
    rank: int, at: str, size: int, found: "torch.multiprocessing.SimpleQueue[float]"
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", at, rank=rank, world_size=2)
    values, seconds = torch.ones(size // 4), []
    for _ in range(ROUNDS):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(values)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        found.put(median(seconds))
    distributed.destroy_process_group()


def by_dvc(count: int, size: int) -> str:
    """What DVC takes for a folder of random files, and what a terabyte of such would take."""
    found = versioned(count, size)
    total = count * size
    terabyte = 1e12 / total
    return (
        f"DVC, {count:,} files of {size / 1e6:g} MB: added in {found.add:.1f} s, "
        f"{total / found.add / 1e6:.0f} MB/s; looked at again in {found.status:.1f} s; "
        f"{found.cached / total:.2f} of their bytes in the cache. A terabyte of such: "
        f"{terabyte * count:,.0f} files, {terabyte * found.add / 3600:.1f} h, "
        f"each look {terabyte * found.status / 60:,.0f} min, a list of "
        f"{terabyte * found.listed / 1e6:,.1f} MB that each version has anew"
    )


def versioned(count: int, size: int) -> Costs:
    """Have DVC add a folder of random files in a project of its own, and look at it again."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

        def timed(*command: str) -> float:
            began = time.perf_counter()
            subprocess.run(command, cwd=project, env=env, check=True, capture_output=True)
            return time.perf_counter() - began

        timed("git", "init")
        timed("dvc", "init")
        dice = np.random.default_rng(0)
        (project / "data").mkdir()
        for number in range(count):
            (project / "data" / f"{number:08}.jpg").write_bytes(dice.bytes(size))
        nothing = timed("dvc", "status")
        add, status = timed("dvc", "add", "data") - nothing, timed("dvc", "status") - nothing
        kept = [path for path in (project / ".dvc" / "cache").rglob("*") if path.is_file()]
        (listed,) = (path for path in kept if path.suffix == ".dir")
        return Costs(add, status, listed.stat().st_size, sum(path.stat().st_size for path in kept))


if __name__ == "__main__":
    main()
