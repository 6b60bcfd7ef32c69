"""Train the model and track the training with MLflow."""

import time
from pathlib import Path
from typing import Any

import mlflow
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import yaml
from torch.utils.data import DataLoader

import timings
from dataset import ImageDataset

imports = timings.since_start()


class Net(nn.Module):
    """Two convolutions and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(4 * 4 * 50, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logarithms of the class probabilities."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)


def train(
    model: nn.Module,
    loader: DataLoader[Any],
    optimizer: optim.Optimizer,
    epoch: int,
    log_interval: int,
) -> None:
    """Train for one epoch and log the loss every ``log_interval`` batches."""
    model.train()
    for batch, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if batch % log_interval == 0:
            mlflow.log_metric("train_loss", loss.item(), step=epoch * len(loader) + batch)
            print(f"epoch {epoch + 1} batch {batch}/{len(loader)} loss {loss.item():.4f}")


def main() -> None:
    """Train as ``params.yaml`` says; leave the id of the MLflow run in ``run_id.txt``."""
    began = time.perf_counter()
    params = yaml.safe_load(Path("params.yaml").read_text())["train"]
    torch.manual_seed(params["seed"])
    loader = DataLoader(
        ImageDataset("data/processed/training.pt"), batch_size=params["batch_size"], shuffle=True
    )
    model = Net()
    optimizer = optim.SGD(
        model.parameters(), lr=params["learning_rate"], momentum=params["momentum"]
    )

    mlflow.set_experiment("mnist")
    with mlflow.start_run() as run:
        mlflow.log_params(params)

        started = time.perf_counter()
        for epoch in range(params["epochs"]):
            train(model, loader, optimizer, epoch, params["log_interval"])
        trained = time.perf_counter()

        model.eval()
        # The default format, pt2, traces the model with an example batch; a batch of more than
        # one image leaves the batch size open.
        example, _ = next(iter(loader))
        mlflow.pytorch.log_model(model, name="model", input_example=example[:2].numpy())
        logged = time.perf_counter()

    Path("run_id.txt").write_text(run.info.run_id + "\n")
    timings.record(
        "train",
        imports=imports,
        setup=started - began,
        training_loop=trained - started,
        log_model=logged - trained,
    )


if __name__ == "__main__":
    main()
