"""A Net as an ONNX file: what onnxruntime answers is what torch does, or there is no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Project
from digits.data import dataset
from digits.errors import DataError
from digits.model import onnx

DESCRIPTION = {"classes": ["cat", "dog", "owl"], "shape": [3, 12, 12]}


class Colourful(nn.Module):
    """Batch normalisation and dropout, on images of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(200, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.silu(self.norm(self.conv(images.float() / 255 - 0.5))), 2)
        return F.log_softmax(self.last(self.dropout(hidden.flatten(1))), dim=1)


class Restless(Colourful):
    """One that never answers twice the same."""

    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(super().forward(images) + torch.rand(3), dim=1)


def test_any_net_answers_in_onnxruntime_as_in_torch_or_is_not_written(tmp_path: Path) -> None:
    torch.manual_seed(1)
    images = torch.randint(256, (40, 3, 12, 12), dtype=torch.uint8)
    net, path = Colourful(), tmp_path / "net.onnx"
    net(images)  # in training: the norm's statistics are not those of a new one
    assert onnx.export(net.eval(), DESCRIPTION, images, path) <= onnx.TOLERANCE
    session = onnxruntime.InferenceSession(path)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [
        "cat",
        "dog",
        "owl",
    ]
    for count in (1, 7):
        (found,) = session.run(None, {"images": images[:count].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, net(images[:count]), rtol=0, atol=1e-5)

    before = path.read_bytes()
    with pytest.raises(DataError, match=r"from torch, more than 1e-05: .*net\.onnx is not written"):
        onnx.export(Restless().eval(), DESCRIPTION, images, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_exports_the_model_that_lies_here(finished: Project) -> None:
    said = finished.digits("export", "--onnx").stdout
    assert "models/net.onnx" in said
    session = onnxruntime.InferenceSession(finished.root / "models/net.onnx")
    test = dataset.read(finished.root / "data/processed/test.safetensors")
    (found,) = session.run(None, {"images": test.images})
    assert (found.argmax(1) == test.labels).mean() == pytest.approx(finished.metrics()["accuracy"])
