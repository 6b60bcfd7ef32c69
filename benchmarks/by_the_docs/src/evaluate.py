"""Test the trained model and add the result to its MLflow run."""

import json
import time
from pathlib import Path

import mlflow
import torch
import torch.nn.functional as F
import yaml
from torch.utils.data import DataLoader

import timings
from dataset import ImageDataset

imports = timings.since_start()


def test(model: torch.nn.Module, batch_size: int) -> dict[str, float]:
    """Return the average loss and the accuracy on the test images."""
    loader = DataLoader(ImageDataset("data/processed/test.pt"), batch_size=batch_size)
    loss = 0.0
    correct = 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            loss += F.nll_loss(output, target, reduction="sum").item()
            correct += int((output.argmax(dim=1) == target).sum().item())
    count = len(loader.dataset)  # type: ignore[arg-type]
    return {"test_loss": loss / count, "test_accuracy": correct / count}


def main() -> None:
    """Write ``metrics.json`` and log the metrics to the run that trained the model."""
    params = yaml.safe_load(Path("params.yaml").read_text())["evaluate"]
    run_id = Path("run_id.txt").read_text().strip()

    started = time.perf_counter()
    model = mlflow.pytorch.load_model(f"runs:/{run_id}/model")
    loaded = time.perf_counter()
    metrics = test(model, params["batch_size"])
    tested = time.perf_counter()

    Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    mlflow.set_experiment("mnist")
    with mlflow.start_run(run_id=run_id):
        mlflow.log_metrics(metrics)
    timings.record("evaluate", imports=imports, load_model=loaded - started, test=tested - loaded)


if __name__ == "__main__":
    main()
