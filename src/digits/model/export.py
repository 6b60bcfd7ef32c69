"""The Net as an MLflow model folder: what the sender calls when a model is handed over."""

import inspect
import io
import traceback
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

from digits.errors import DataError
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
        DataError: the file holds no Net, or one that no graph can be made of.
    """
    net, description = load_net(model)
    try:
        _save(net, description, np.array(example, np.uint8), folder)
    except RuntimeError as error:  # all that torch.export raises where it can't follow
        raise DataError(_why_not(net, error)) from error


def _why_not(net: nn.Module, error: RuntimeError) -> str:
    source = inspect.getfile(type(net))
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{Path(source).name}, line {at.lineno}: " for at in frames if at.filename == source]
    why = str(error).strip().partition("\n")[0]
    return (
        f"{''.join(where[-1:])}torch.export can't follow the Net there ({why}); "
        "write it in operations of torch that don't depend on the values in tensors"
    )


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
