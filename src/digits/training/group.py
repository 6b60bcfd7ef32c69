"""Processes that train together, as torchrun starts them: each computes a share of each batch."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, distributed, nn


class Group(NamedTuple):
    """Which of how many processes this is: of all, and of those on this machine.

    A process that torchrun didn't start is a group by itself, which joins nothing.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    is_alone: bool = True

    @classmethod
    def found(cls) -> Self:
        """The group that torchrun started this process for; by itself, if it didn't."""
        if not (distributed.is_available() and distributed.is_torchelastic_launched()):
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
        return cls(rank, size, local_rank, local_size, is_alone=False)

    @property
    def job(self) -> str:
        """Torchrun's name for the job, in which it may start the group again; '' if none."""
        name = "none" if self.is_alone else os.environ["TORCHELASTIC_RUN_ID"]
        return "" if name == "none" else name

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Be able to talk to the others: by NCCL where they have GPUs, by gloo on CPUs.

        Raises:
            KeyboardInterrupt: another process of the group ended.
        """
        if self.is_alone:
            yield
            return
        on_gpu = device.type == "cuda"
        try:
            distributed.init_process_group(
                "nccl" if on_gpu else "gloo", device_id=device if on_gpu else None
            )
            yield
        except RuntimeError as error:
            raise_if_left(error)
            raise
        distributed.destroy_process_group()

    def share(self, count: int) -> slice:
        """Which of `count` images are this process's: those of rank 0 come first.

        No share is larger than another by more than one image; the last ones may be empty.
        """
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def seed(self, seed: int, step: int) -> int:
        """Of a step's random numbers: another one for each process of the group."""
        return (seed << 32) + step * self.size + self.rank

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        if not _is_joined():
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> Tensor:
        """A number `[]` of each process as `[size]`, in all of them."""
        each = value.new_zeros(self.size)
        each[self.rank] = value
        return self.sum(each)

    def part(self, each: Tensor) -> Tensor:
        """This process's number of what `gather` gave; if they were more, of several the sum."""
        return each[self.rank :: self.size].sum()

    def first(self, data: bytes) -> bytes:
        """The bytes that the process of rank 0 has, in all of them."""
        if not _is_joined():
            return data
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        count = torch.tensor(len(data), device=device)
        distributed.broadcast(count, 0)
        sent = torch.zeros(int(count), dtype=torch.uint8, device=device)
        if self.rank == 0 and data:
            sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        distributed.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()


def sharing(net: nn.Module) -> nn.Module:
    """A Net whose gradients are the mean over the group's processes, once they are computed.

    A Net may have parameters that a step doesn't use. Looking for them has another merit: the
    gradients then lie in the buckets that they began in, so a sum of more than two is added up
    in the same order before and after a training is resumed.
    """
    if not _is_joined():
        return net
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of one channel, they do
    return nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)


def raise_if_left(error: RuntimeError) -> None:
    """Take the end of another process, which torch can only call an error, for an interruption.

    Raises:
        KeyboardInterrupt: it is that.
    """
    is_of_gloo = "gloo" in str(error) and "onnection" in str(error)
    if is_of_gloo or isinstance(error, distributed.DistError):
        raise KeyboardInterrupt from error


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
