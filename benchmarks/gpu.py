"""The training room on a GPU, beside what people use; needs torch alone.

    python benchmarks/gpu.py FOLDER_WITH_THE_FOUR_MNIST_FILES

Checks the losses against the CPU's, then prints, warm, the time to 99 % with this Net, recorded as
a CUDA graph or not, and with the record recipe, the time of the two epochs of params.yaml, and that
of the original loop's epoch, all on the same GPU.

    torchrun --standalone --nproc-per-node gpu benchmarks/gpu.py FOLDER

Checks instead that a process a GPU, by NCCL, gives the losses of one alone, and prints both times.
With one GPU, it is a group of one that goes through the same motions.
"""

import gzip
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from digits.training.device import prepare
from digits.training.engine import for_training
from digits.training.group import Group
from digits.training.loop import Images, Step, new_net, train

if TYPE_CHECKING:
    from digits.params import Train


def train_params(**values: Any) -> "Train":
    """Section `train` of params.yaml where there is no pydantic to check it."""
    return cast("Train", SimpleNamespace(**values))


MEAN, STD = 0.1307, 0.3081
SEEDS = range(1, 6)
NO_MORE = {"clip_norm": None, "warm_up": 0, "step_epochs": 1, "step_factor": 0.1, "ema_decay": 0}
ORIGINAL = train_params(
    seed=1, epochs=1, batch_size=64, optimizer="sgd", learning_rate=0.001, momentum=0.5,
    beta2=0.999, weight_decay=0.0, schedule="constant", shift=0, keep="last", log_every=100,
    device="cpu", precision="float32", engine="auto", processes=1, threads=0, deterministic=True,
    **NO_MORE,
)  # fmt: skip
FAST = train_params(
    seed=1, epochs=1, batch_size=256, optimizer="adamw", learning_rate=0.008, momentum=0.7,
    beta2=0.9, weight_decay=0.01, schedule="one-cycle", shift=0, keep="last", log_every=1000,
    device="cuda", precision="auto", engine="auto", processes=1, threads=0, deterministic=False,
    **NO_MORE,
)  # fmt: skip

DEFAULT = train_params(
    seed=1, epochs=2, batch_size=64, optimizer="adamw", learning_rate=0.005, momentum=0.8,
    beta2=0.99, weight_decay=0.3, schedule="one-cycle", shift=1, keep="last", log_every=40,
    device="cuda", precision="auto", engine="auto", processes=1, threads=0, deterministic=True,
    **NO_MORE,
)  # fmt: skip


def read(folder: Path) -> tuple[Images, Images]:
    """MNIST's training and test split on the CPU."""

    def tensor(name: str, header: int) -> Tensor:
        data = bytearray(gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes()))
        return torch.frombuffer(data, dtype=torch.uint8, offset=header)

    train, test = (
        Images(
            tensor(f"{part}-images-idx3", 16).view(-1, 1, 28, 28),
            tensor(f"{part}-labels-idx1", 8).long(),
        )
        for part in ("train", "t10k")
    )
    return train, test


def ours(
    recipe: "Train",
    data: tuple[Images, Images],
    group: Group = Group(),  # noqa: B008
) -> tuple[float, float, list[float]]:
    """Seconds of training, test accuracy, and the logged losses."""
    machine = prepare(recipe, group)
    training, test = data[0].to(machine.device), data[1].to(machine.device)
    none = Images(training.images[:0], training.labels[:0])
    net = new_net(recipe.seed, 10, (1, 28, 28), MEAN, STD).to(machine.device)
    synchronize(machine.device)
    began = time.perf_counter()
    engine = for_training(net, *training, recipe, machine)
    events = train(net, training, none, recipe, machine, engine)
    losses = [event.loss for event in events if isinstance(event, Step)]
    synchronize(machine.device)
    seconds = time.perf_counter() - began
    return (
        seconds,
        accuracy(lambda images: engine.log_probabilities(net, images, 500), test),
        losses,
    )


def seeded(
    recipe: "Train", data: tuple[Images, Images], **values: Any
) -> Callable[[int], tuple[float, float]]:
    """A recipe with other values, to be run with a seed."""
    return lambda seed: ours(train_params(**vars(recipe) | values | {"seed": seed}), data)[:2]


def synchronize(device: torch.device) -> None:
    """Wait for what the GPU still does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def accuracy(model: Callable[[Tensor], Tensor], test: Images) -> float:
    """Share of right answers, 0..1."""
    return (model(test.images).argmax(1) == test.labels).double().mean().item()


class Plain(nn.Module):
    """Convolution, ReLU, pool, twice; two fully connected layers; normalised pixels in."""

    def __init__(self, first: int, second: int, kernel: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, kernel)
        self.fc1, self.fc2 = nn.LazyLinear(hidden), nn.Linear(hidden, 10)
        self(torch.zeros(2, 1, 28, 28))

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.conv1(pixels)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2)
        return F.log_softmax(self.fc2(F.relu(self.fc1(hidden.flatten(1)))), dim=1)


def record(seed: int, data: tuple[Images, Images]) -> tuple[float, float]:
    """The record recipe from resident float32: seconds, and test accuracy."""
    torch.manual_seed(seed)
    device = torch.device("cuda")
    pixels = [((split.images.to(device).float() / 255 - MEAN) / STD) for split in data]
    labels, test_labels = (split.labels.to(device) for split in data)
    net, count = Plain(24, 32, 3, 256).to(device), len(labels)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, (0.7, 0.9))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=math.ceil(count / 256), cycle_momentum=False
    )
    torch.cuda.synchronize()
    began = time.perf_counter()
    for indices in torch.split(torch.randperm(count, device=device), 256):
        optimizer.zero_grad()
        F.nll_loss(net(pixels[0][indices]), labels[indices]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        return seconds, accuracy(net, Images(pixels[1], test_labels))


def original_loop(data: tuple[Images, Images]) -> float:
    """Seconds of the original's epoch: normalised batches of 64 copied to the GPU one by one."""
    device = torch.device("cuda")
    pixels = (data[0].images.float() / 255 - MEAN) / STD
    dataset = torch.utils.data.TensorDataset(pixels, data[0].labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
    net = Plain(20, 50, 5, 500).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.001, 0.5)
    began = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        F.nll_loss(net(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def together(data: tuple[Images, Images]) -> None:
    """Check and time one process a GPU beside one alone."""
    recipe = train_params(**vars(ORIGINAL) | {"device": "cuda", "engine": "torch"})
    group = Group.found()
    device = prepare(recipe, group).device
    ours(recipe, data)
    seconds, _, alone = ours(recipe, data)
    with group.joined(device):
        ours(recipe, data, group)
        shared, _, losses = ours(recipe, data, group)
    if group.rank == 0:
        apart = max(abs(a - b) for a, b in zip(alone, losses, strict=True))
        print(f"{group.size} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
        print(f"original recipe by NCCL: losses {apart:.4f} apart from those of one process")
        print(f"an epoch: {shared:.2f} s, by one process {seconds:.2f} s")


def main() -> None:
    """Check, measure and print the table."""
    if len(sys.argv) != 2 or not torch.cuda.is_available():
        sys.exit(f"{__doc__}\nneeds CUDA and one argument")
    data = read(Path(sys.argv[1]))
    if distributed.is_torchelastic_launched():
        together(data)
        return
    _, on_cpu, cpu_losses = ours(ORIGINAL, data)
    on_gpu = train_params(**vars(ORIGINAL) | {"device": "cuda"})
    first, again = ours(on_gpu, data), ours(on_gpu, data)
    apart = max(abs(a - b) for a, b in zip(cpu_losses, first[2], strict=True))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"original recipe: CPU {on_cpu:.2%}, GPU {first[1]:.2%}; losses {apart:.4f} apart")
    print(f"deterministic: {'same losses twice' if first[2] == again[2] else 'NOT THE SAME'}")
    ours(FAST, data)
    record(0, data)
    recipes: list[tuple[str, Callable[[int], tuple[float, float]]]] = [
        ("to 99 %, this Net", seeded(FAST, data)),
        ("… deterministic", seeded(FAST, data, deterministic=True)),
        ("… deterministic, not recorded", seeded(FAST, data, deterministic=True, engine="torch")),
        ("to 99 %, the record", lambda seed: record(seed, data)),
        ("params.yaml", seeded(DEFAULT, data)),
        ("… not recorded", seeded(DEFAULT, data, engine="torch")),
    ]
    print("| | seconds, warm (median of 5) | test accuracy (mean) |\n|---|---|---|")
    for name, recipe in recipes:
        measured = [recipe(seed) for seed in SEEDS]
        seconds = statistics.median(row[0] for row in measured)
        print(f"| {name} | {seconds:.3f} | {statistics.mean(row[1] for row in measured):.2%} |")
    print(f"| original loop, one epoch | {original_loop(data):.3f} | |")


if __name__ == "__main__":
    main()
