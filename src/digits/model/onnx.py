"""The Net as an ONNX file, for any program that runs one: it needs neither torch nor MLflow."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from digits.errors import DataError
from splice.files import written_whole

TOLERANCE = 1e-5  # of log-probabilities, beside the largest
BATCH = 500  # images


def export(net: nn.Module, description: Mapping[str, Any], images: Tensor, path: Path) -> float:
    """Write an ONNX file, if it answers as torch does to every image; else nothing.

    Its input `images` takes uint8 `[N, channels, height, width]` of any N, its output
    `log_probabilities` gives float32 `[N, classes]`; the metadata hold the names of the classes, as
    JSON, and what the weights were made from.

    Args:
        net: in `eval()`, on the CPU.
        description: as the header of the model file has it.
        images: of the test, uint8 `[N, channels, height, width]`, N at least 2.
        path: of the file.

    Returns:
        By how much the answers differ at most.

    Raises:
        DataError: by more than the tolerance.
    """
    with written_whole(path) as part:
        _write(net, description, images[:2], part)
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        furthest = 0.0
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            with torch.no_grad():
                expected = net(some).numpy()
            (found,) = session.run(["log_probabilities"], {"images": some.numpy()})
            apart = np.abs(found - expected) / np.maximum(np.abs(expected), 1)
            furthest = max(furthest, float(apart.max()))
        if not furthest <= TOLERANCE:
            raise DataError(
                f"what ONNX makes of the Net answers up to {furthest:.2g} from torch, more than "
                f"{TOLERANCE:g}: {path} is not written; change src/digits/model/net.py"
            )
    return furthest


def _write(net: nn.Module, description: Mapping[str, Any], images: Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's exporter uses itself
        program = torch.onnx.export(
            net,
            (images,),
            input_names=["images"],
            output_names=["log_probabilities"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # for that, it would have to be given a path
    program.model.metadata_props["classes"] = json.dumps(description["classes"])
    program.model.metadata_props["description"] = json.dumps(description, sort_keys=True)
    program.save(path, external_data=False)
