"""The model that is asked, wherever it is kept: a file, MLflow's copy, or DVC's cache."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from digits.errors import DataError
from digits.model.weights import load_net
from digits.paths import ROOT, Paths
from digits.training.engine import for_answers
from splice import Config
from splice.files import md5
from splice.store import file_of, named, reached

BATCH = 500  # images

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Source(NamedTuple):
    """A model, ready to be asked.

    Attributes:
        said: what it is, in a few words.
        md5: of its file.
        description: as the header of its file has it: classes, shape, data set, parameters.
        log_probabilities: of uint8 images `[N, channels, height, width]`, float32 `[N, classes]`.
    """

    said: str
    md5: str
    description: Mapping[str, Any]
    log_probabilities: Callable[[Bytes], Floats]

    def probabilities(self, images: Bytes | Sequence[Bytes]) -> npt.NDArray[np.float64]:
        """Of images `[channels, height, width]`, `[N, classes]`; each row sums to 1."""
        if not len(images):
            return np.empty((0, len(self.description["classes"])))
        raised = np.exp(self.log_probabilities(np.asarray(images)).astype(np.float64))
        shares: npt.NDArray[np.float64] = raised / raised.sum(1, keepdims=True)
        return shares


def of(what: str) -> Source:
    """A model by the path of its file, or by what it is called in MLflow.

    MLflow's copy is taken, which needs no code of this project; if there is none, the file of the
    same content: the project's own, or that in DVC's cache.

    Args:
        what: path of a file or of the folder that it is in; or as `splice.store.named`.

    Raises:
        DataError: the model is missing, damaged or something else.
        UserError: nothing is called so, or the store can't be reached.
    """
    path = Path(what)
    if path.is_dir():
        path /= Paths(ROOT).model.name
    if path.is_file() or path.suffix == Paths(ROOT).model.suffix:
        return of_file(path, str(path))
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    config = Config.read(ROOT)
    if not config.has_store and (file := file_of(config, what)):
        return of_file(file, f"model {what}")
    with reached(config) as store:
        model = named(config, store, what)
        if model.address is not None:
            logged = store.loaded(model.address)
            if {"classes", "shape"} <= logged.metadata.keys():
                return Source(model.said, model.md5, logged.metadata, logged.predict)
    if model.file is None:
        raise DataError(
            f"neither MLflow nor DVC's cache has {model.said} (model {model.md5}) as it can be "
            "used here; `dvc fetch --all-commits` brings what was pushed"
        )
    return of_file(model.file, model.said)


def of_file(path: Path, said: str) -> Source:
    """The model of a file, on the CPU, computed as an evaluation computes it."""
    net, description = load_net(path)

    def log_probabilities(images: Bytes) -> Floats:
        pixels = torch.from_numpy(images)
        answers = for_answers(net, pixels).log_probabilities(net, pixels, BATCH)
        return np.asarray(answers.numpy(), np.float32)

    return Source(said, md5(path), description, log_probabilities)
