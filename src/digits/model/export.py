"""The Net as an MLflow model folder: what the sender calls when a model is handed over."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import torch
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn
from torch.nn import functional as F

from digits.model.weights import load_net


def export(model: Path, example: Any, folder: Path) -> None:
    """Write an MLflow model folder: a `pt2` graph with its weights, and none of our code.

    No object is pickled: the format's record of sample inputs holds an empty tuple.

    Args:
        model: a model file.
        example: uint8 images `[N, channels, height, width]` as nested lists, N at least 2; kept
            as the input example.
        folder: must not exist.

    Raises:
        DataError: the file holds no Net.
    """
    net, description = load_net(model)
    _save(net, description, np.array(example, np.uint8), folder)


def warm_up(folder: Path) -> None:
    """Export a small network, so that the real one is exported in a moment when it comes."""
    _save(_Small(), {"classes": [0]}, np.zeros((2, 1, 1, 1), np.uint8), folder)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.layer(images.float().flatten(1)), dim=1)


def _save(net: nn.Module, description: Mapping[str, Any], images: Any, folder: Path) -> None:
    classes = len(description["classes"])
    mlflow.pytorch.save_model(
        net.eval(),
        str(folder),
        signature=ModelSignature(
            # unnamed: arrays of named tensors are passed on as a dict, which this flavor refuses
            Schema([TensorSpec(np.dtype("uint8"), (-1, *images.shape[1:]))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, classes), "log_probabilities")]),
        ),
        input_example=images,
        metadata=dict(description),
        serialization_format="pt2",
        pip_requirements=[
            f"torch=={torch.__version__.partition('+')[0]}",
            f"numpy=={np.__version__}",
        ],
    )
    _drop_sample_inputs(folder / "data" / "model.pt2")
    # Not by Model.load, which decodes a path as if it were an address.
    saved = Model.from_dict(yaml.safe_load((folder / "MLmodel").read_text()))
    saved.flavors["python_function"]["config"] = {"device": "cpu"}  # exported on the CPU
    saved.save(str(folder / "MLmodel"))


def _drop_sample_inputs(archive: Path) -> None:
    """Replace the tensors that the graph was traced with, which are pickled, by an empty tuple.

    Not by nothing at all: MLflow, told to load no pickle, refuses an empty record.
    """
    nothing = io.BytesIO()
    torch.save((), nothing)
    traced = archive.rename(archive.with_suffix(".traced"))
    with zipfile.ZipFile(traced) as old, zipfile.ZipFile(archive, "w") as new:
        for name in old.namelist():
            is_sample = "/data/sample_inputs/" in name
            new.writestr(zipfile.ZipInfo(name), nothing.getvalue() if is_sample else old.read(name))
    traced.unlink()
