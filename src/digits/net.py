"""The Net: two convolutions, two fully connected layers; pixels in, log-probabilities out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """Conv 1→20 5x5, ReLU, pool 2; conv 20→50 5x5, ReLU, pool 2; 800→500, ReLU; 500→classes.

    431,080 parameters with ten classes. Normalisation is part of the model: mean and standard
    deviation are buffers, so training, evaluation and serving can't disagree about it.

    Args:
        classes: width of the last layer.
        mean: mean of the training pixels, 0..1.
        std: standard deviation of the training pixels, 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int = 10, mean: float = 0.1307, std: float = 0.3081) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, classes)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities float32 `[N, classes]` of uint8 images `[N, 1, 28, 28]`.

        Pooling comes before ReLU: both are monotonic, so the result is the same and ReLU has a
        quarter of the work.
        """
        pixels = (images.float() / 255 - self.mean) / self.std
        hidden = F.relu(F.max_pool2d(self.conv1(pixels), 2))
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        return F.log_softmax(self.fc2(hidden).float(), dim=1)
