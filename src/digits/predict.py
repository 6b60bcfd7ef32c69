"""The model's answer to pictures from anywhere, brought into the form it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from digits import params
from digits.data.picture import read_picture
from digits.model.weights import load_net
from digits.training.engine import for_answers

BATCH = 500


class Prediction(NamedTuple):
    """The most probable class, and its probability 0..1."""

    name: str
    probability: float


def predict(model: Path, pictures: list[Path]) -> list[Prediction]:
    """What a model file takes each picture for, on the CPU.

    Raises:
        DataError: the model or a picture is missing, damaged, too large or something else.
    """
    net, description = load_net(model)
    as_trained = _as_trained(description)
    shape = description["shape"]
    pixels = np.stack([read_picture(path, shape, **as_trained) for path in pictures])
    images = torch.from_numpy(pixels)
    output = for_answers(net, images).log_probabilities(net, images, BATCH)
    best = output.double().exp().max(1)
    return [
        Prediction(str(description["classes"][index]), probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _as_trained(description: Mapping[str, Any]) -> dict[str, Any]:
    """How pictures are read that such a model is to know."""
    match description:
        case {"dataset": params.FOLDER, "params": {"folder.fit": "pad" | "crop" as fit}}:
            return {"fit": fit}
    return {"drawn": True}
