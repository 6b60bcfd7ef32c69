"""The model file and the checkpoint: what they hold is checked before it is used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from digits import stage
from digits.errors import DataError
from digits.model import weights
from digits.model.net import Net
from digits.training.checkpoint import Checkpoint
from splice.files import digest

Tensors = dict[str, Tensor]
DESCRIPTION = {"classes": [str(digit) for digit in range(10)], "shape": [1, 28, 28]}


def tensors() -> Tensors:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in Net().state_dict().items()}


def test_a_model_file_gives_the_same_net_and_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        weights.save(tmp_path / name, tensors(), DESCRIPTION)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    net, description = weights.load_net(tmp_path / "one")
    assert description == DESCRIPTION
    assert all(torch.equal(value, tensors()[name]) for name, value in net.state_dict().items())


def test_weights_of_another_net_py_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    weights.save(path, tensors(), DESCRIPTION | {"net": weights.code_digest()})
    weights.load_net(path)
    weights.save(path, tensors(), DESCRIPTION | {"net": "0" * 64})
    with pytest.raises(DataError, match=r"made by another src/digits/model/net\.py; run"):
        weights.load_net(path)


def with_value(name: str, value: float) -> Callable[[Tensors], Tensors]:
    def change(values: Tensors) -> Tensors:
        values[name].reshape(-1)[0] = value
        return values

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: {}, "no layer gives so many"),
        (lambda t: {k: v for k, v in t.items() if k != "conv1.weight"}, "no weights of this Net"),
        (lambda t: t | {"more": torch.zeros(1)}, "no weights of this Net"),
        (lambda t: t | {"conv1.weight": torch.zeros(20, 1, 3, 3)}, "no weights of this Net"),
        (
            lambda t: t | {"conv1.bias": torch.zeros(20, dtype=torch.int8)},
            "conv1.bias is torch",
        ),
        (
            lambda t: t | {"conv1.bias": torch.zeros(20, dtype=torch.float64)},
            "conv1.bias is torch",
        ),
        (lambda t: t | {"fc2.bias": torch.zeros(11)}, "no weights of this Net"),
        (with_value("fc1.weight", math.nan), "NaN or infinite"),
        (with_value("fc1.weight", math.inf), "NaN or infinite"),
        (with_value("std", 0.0), "deviation that isn't above 0"),
        (with_value("std", -1.0), "deviation that isn't above 0"),
    ],
)
def test_weights_that_are_not_those_of_a_net_are_refused(
    tmp_path: Path, change: Callable[[Tensors], Tensors], words: str
) -> None:
    path = tmp_path / "net.safetensors"
    weights.save(path, change(tensors()), DESCRIPTION)
    with pytest.raises(DataError, match=words) as caught:
        weights.load_net(path)
    assert str(path) in str(caught.value)
    assert "run `dvc repro`" in str(caught.value)


@pytest.mark.parametrize("classes", [None, 10, "0123456789", [], ["0"], ["x"] * 10_000_000])
def test_classes_that_do_not_fit_the_weights_are_refused(tmp_path: Path, classes: Any) -> None:
    path = tmp_path / "net.safetensors"
    weights.save(path, tensors(), DESCRIPTION | {"classes": classes})
    with pytest.raises(DataError, match="names"):
        weights.load_net(path)


@pytest.mark.parametrize(
    "shape", [None, 28, [28, 28], [1, 28, 28.0], [1, 28, 0], [1, 28, 10**9], {}]
)
def test_a_shape_of_images_that_is_none_is_refused(tmp_path: Path, shape: Any) -> None:
    path = tmp_path / "net.safetensors"
    weights.save(path, tensors(), DESCRIPTION | {"shape": shape})
    with pytest.raises(DataError, match=r"no shape of images|no weights of this Net"):
        weights.load_net(path)


def test_a_checkpoint_is_found_by_its_key_alone(tmp_path: Path) -> None:
    key = digest({"seed": 1})
    checkpoint = Checkpoint.of(tmp_path, key)
    assert checkpoint.read() is None
    checkpoint.write(tensors(), {"steps": [[0, 0.5]]})
    found = checkpoint.read()
    assert found is not None
    assert found[1] == {"steps": [[0, 0.5]]}
    assert all(torch.equal(value, tensors()[name]) for name, value in found[0].items())
    with pytest.raises(DataError, match="another training"):
        Checkpoint(checkpoint.file, digest({"seed": 2})).read()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("checkpoint") / "whole.safetensors"
    small = {"step": torch.tensor(7), "net": torch.arange(6.0).reshape(2, 3)}
    checkpoint = Checkpoint(path, "key")
    checkpoint.write(small, {"steps": [[1, 2.5]], "epochs": []})
    return checkpoint


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_checkpoint_with_any_byte_changed_is_refused(
    tmp_path: Path, whole: Checkpoint, data: st.DataObject
) -> None:
    content = bytearray(whole.file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    try:
        loaded = Checkpoint(path, "key").read()
    except DataError:
        return
    expected = whole.read()
    assert loaded is not None and expected is not None
    assert loaded[1] == expected[1]
    assert all(torch.equal(value, expected[0][name]) for name, value in loaded[0].items())


def test_the_hashes_of_the_code_are_by_name_and_of_this_project_alone() -> None:
    code = stage.code()
    assert "digits/training/checkpoint.py" in code
    assert not any(name.startswith(("/", "..")) for name in code)
