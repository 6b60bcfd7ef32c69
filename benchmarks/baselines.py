"""What people use, to be measured beside: the original's loop, and the public record recipe."""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

import mnist
from digits.model.net import Net
from digits.training.loop import Images
from gpu import Plain


def dataloader_epoch(data: Images, seed: int) -> tuple[float, list[float]]:
    """An epoch of the original recipe as PyTorch's MNIST example has it.

    torchvision's dataset, ToTensor and Normalize per sample, a DataLoader, batch 64.

    Returns:
        Seconds, and the loss at each 100th batch.
    """
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import MNIST

    class Mnist(MNIST):  # type: ignore[misc]
        """MNIST from the pipeline's raw files."""

        raw_folder = str(mnist.folder())

        def _check_exists(self) -> bool:
            return True

        def _load_data(self) -> tuple[Tensor, Tensor]:
            return data.images[:, 0], data.labels

    torch.manual_seed(seed)
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        Mnist(".", transform=transforms.Compose(steps)), 64, shuffle=True
    )
    net = Plain(20, 50, 5, 500)
    optimizer = torch.optim.SGD(net.parameters(), 0.001, 0.5)
    losses = []
    began = time.perf_counter()
    for batch, (images, labels) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.nll_loss(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if batch % 100 == 0:
            losses.append(loss.item())
    return time.perf_counter() - began, losses


def record(data: mnist.Data, seed: int) -> tuple[float, float]:
    """The public record recipe: a smaller net, one epoch from resident float32.

    Conv 24 5x5, conv 32 3x3, fully connected 256, Adam 0.01 with betas 0.7 and 0.9, one-cycle,
    batch 256.

    Returns:
        Seconds of training, and test accuracy.
    """
    torch.manual_seed(seed)
    pixels = [(s.images.float() / 255 - 0.1307) / 0.3081 for s in (data.train, data.test)]
    net = Plain(24, 32, 3, 256)
    count = len(data.train.labels)
    optimizer = torch.optim.Adam(net.parameters(), 0.01, (0.7, 0.9))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=-(-count // 256), cycle_momentum=False
    )
    began = time.perf_counter()
    for indices in torch.split(torch.randperm(count), 256):
        optimizer.zero_grad()
        F.nll_loss(net(pixels[0][indices]), data.train.labels[indices]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        right = net(pixels[1]).argmax(1) == data.test.labels
    return seconds, right.double().mean().item()


def matrix_rate(precision: torch.dtype, size: int = 2048) -> float:
    """Operations a second (FLOP/s) of a large matrix product with all threads: the best of ten."""
    left, right = torch.randn(2, size, size).to(precision)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def flop_an_image() -> float:
    """Of the Net's products, forward and backward, without the gradient of the pixels."""
    net = Net()
    first = 2 * 24**2 * net.conv1.weight.numel()
    rest = 2 * (8**2 * net.conv2.weight.numel() + net.fc1.weight.numel() + net.fc2.weight.numel())
    return 2 * first + 3 * rest
