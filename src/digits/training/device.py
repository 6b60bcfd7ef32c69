"""What trains: device, precision and threads, chosen and set up once."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from digits.errors import DeviceError
from digits.training.group import Group

if TYPE_CHECKING:
    from digits.params import Train


class Machine(NamedTuple):
    """What `auto` came to."""

    device: torch.device
    precision: torch.dtype
    threads: int
    description: str
    group: Group


def processes(recipe: "Train") -> int:
    """How many processes train on this machine, if nothing but params.yaml says it.

    Raises:
        DeviceError: the device that was asked for is not there.
    """
    if recipe.processes != "auto":
        return recipe.processes
    device = choose_device(recipe.device, "train.device")
    all_gpus = device.type == "cuda" and device.index is None
    return torch.cuda.device_count() if all_gpus else 1


def prepare(recipe: "Train", group: Group = Group()) -> Machine:  # noqa: B008
    """Choose device, precision and threads, and set torch up for them.

    Raises:
        DeviceError: the device that was asked for is not there, or not for each process.
    """
    device = choose_device(recipe.device, "train.device")
    if not group.is_alone:
        device = _own(device, group)
    threads = recipe.threads or max(1, _cores() // group.local_size)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda" and recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms would import torch's compiler as well: seconds
    torch.set_deterministic_debug_mode("error" if recipe.deterministic else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    precision = _precision(recipe.precision, device)
    return Machine(device, precision, threads, _describe(device), group)


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


def _own(device: torch.device, group: Group) -> torch.device:
    """The device of one of torchrun's processes: of GPUs, each has another."""
    if device.type == "mps" or device.index is not None:
        raise DeviceError(
            f"train.device is {device}, which processes that train together can't share; "
            "set it to auto, or train.processes to 1"
        )
    if device.type != "cuda":
        return device
    if group.local_size > torch.cuda.device_count():
        raise DeviceError(
            f"{group.local_size} processes on a machine of {torch.cuda.device_count()} GPUs; "
            "lower train.processes, or set train.device to cpu"
        )
    torch.cuda.set_device(group.local_rank)
    return torch.device("cuda", group.local_rank)


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _cores() -> int:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(there or 1, cpu_quota())))


def cpu_quota(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> float:
    """How many CPUs' time this process may use, as a container limits it; infinite if nothing does.

    By `cpu.max` of cgroup v2 or `cpu.cfs_quota_us` of v1, of its own group or one above it
    (docs.kernel.org/admin-guide/cgroup-v2.html, docs.kernel.org/scheduler/sched-bwc.html).
    """
    quotas = [math.inf]
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, own = line.split(":", 2)
        root = mounted / "cpu" if controllers else mounted
        if not controllers or "cpu" in controllers.split(","):
            group = root / own.lstrip("/")
            quotas += [_quota(at) for at in (group, *group.parents) if root in (at, *at.parents)]
    return min(quotas)


def _quota(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file; "max"
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf
