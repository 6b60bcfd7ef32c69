"""The preprocessed images as a PyTorch data set."""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision import transforms  # type: ignore[import-untyped]

transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])


class ImageDataset(Dataset[tuple[torch.Tensor, int]]):
    """Normalized images with their labels."""

    def __init__(self, path: str | Path) -> None:
        self.images, self.labels = torch.load(path)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return transform(self.images[index].numpy()), int(self.labels[index])
