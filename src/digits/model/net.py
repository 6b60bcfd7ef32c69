"""The Net: the one place that says what the model is. Change it, and all else follows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """Conv 1→20 5x5, ReLU, pool 2; conv 20→50 5x5, ReLU, pool 2; 800→500, ReLU; 500→classes.

    431,080 parameters with ten classes and images of 28 x 28. Normalisation is part of the model:
    mean and standard deviation are buffers, so training, evaluation and serving agree about it.

    Args:
        classes: width of the last layer.
        shape: of an image: channels, height, width.
        mean: mean of the training pixels, 0..1.
        std: standard deviation of the training pixels, 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int = 10,
        shape: tuple[int, int, int] = (1, 28, 28),
        mean: float = 0.1307,
        std: float = 0.3081,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        places = ((height - 4) // 2 - 4) // 2 * (((width - 4) // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * places, 500)
        self.fc2 = nn.Linear(500, classes)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities float32 `[N, classes]` of uint8 images `[N, channels, height, width]`.

        Pooling comes before ReLU: both are monotonic, so the result is the same and ReLU has a
        quarter of the work.
        """
        pixels = (images.float() / 255 - self.mean) / self.std
        hidden = F.relu(F.max_pool2d(self.conv1(pixels), 2))
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        return F.log_softmax(self.fc2(hidden).float(), dim=1)


def initialize(net: nn.Module) -> None:
    """Draw the weights of linear layers and convolutions from torch's seed, as torch does.

    Uniform within 1 / sqrt(fan-in), but scaled one operation after the other: `uniform_` rounds
    differently on processors that multiply and add at once, and this is the same bits anywhere.
    Other layers keep what they gave themselves, which the seed decides too.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.data = drawn * (2 * bound) - bound
