"""The pipeline on a GPU: trained, killed and resumed, evaluated and served as on a CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Project
from machine import is_saved, log, training, until
from nets import COLOURED, EDITS, NET, PREPROCESS, THIRD_BLOCK, assert_reported_as_written, edited
from splice.files import md5

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

RECIPES: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "nesterov": {"optimizer": "nesterov", "learning_rate": 0.02},
    "lion": {"optimizer": "lion", "learning_rate": 0.001},
    "muon": {"optimizer": "muon", "clip_norm": 1.0},
    "the best of an average": {"ema_decay": 0.9, "keep": "best"},
}
TAKES_ALL = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
taken = []
for size in (1 << 30, 1 << 26, 1 << 21):
    try:
        while True:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        pass
print("full", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def on_gpu(bare: Project) -> Project:
    """One whose stages may take a GPU: a training of few seconds."""
    bare.params({"train.device": "auto", "evaluate.device": "auto", "checkpoint.every_steps": 2})
    return bare


@pytest.fixture
def split(on_gpu: Project) -> Project:
    """The same, with its splits made."""
    on_gpu.dvc("repro", "preprocess")
    return on_gpu


def test_dvc_repro_takes_the_gpu_and_its_run_says_so(on_gpu: Project) -> None:
    name = torch.cuda.get_device_name()
    assert f"train: computed by CUDA graph on {name}" in on_gpu.dvc("repro").stdout
    on_gpu.deliver()
    run = on_gpu.store().run_of_model(md5(on_gpu.model))
    assert run is not None
    assert run.data.tags["device"] == name
    assert run.data.tags["precision"] == "bfloat16"
    assert_reported_as_written(on_gpu)
    before = on_gpu.model.read_bytes()
    on_gpu.dvc("repro", "--force", "train")
    assert on_gpu.model.read_bytes() == before


@pytest.mark.parametrize("change", EDITS)
def test_a_changed_net_is_trained_resumed_evaluated_and_served_as_written(
    change: str, split: Project
) -> None:
    edited(split, NET, EDITS[change])
    if change == "colour":
        edited(split, PREPROCESS, [COLOURED])
        split.stage("preprocess")
    trained(split)
    split.stage("evaluate")
    split.splice("sync", "--wait", "60")
    assert_reported_as_written(split)
    assert_resumed_to_the_same_bytes(split)


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_is_resumed_to_the_same_bytes(recipe: str, split: Project) -> None:
    split.params({f"train.{name}": value for name, value in RECIPES[recipe].items()})
    trained(split)
    assert_resumed_to_the_same_bytes(split)


def test_a_recorded_training_gives_the_weights_of_plain_torch(split: Project) -> None:
    edited(split, NET, EDITS["batch normalization and dropout"])
    weights = []
    for engine in ("auto", "torch"):
        split.params({"train.engine": engine})
        assert f": {'what CUDA has recorded' if engine == 'auto' else 'train.engine is torch'}" in (
            split.stage("train").stdout
        )
        weights.append(load_file(split.model))
    recorded, plain = weights
    assert all(torch.equal(recorded[name], plain[name]) for name in plain)


LAST = "        hidden = self.dropout(hidden)\n"
UNRECORDABLE: dict[str, tuple[str, str]] = {
    "asks the CPU": (
        "        hidden = hidden * 2 if hidden.sum() > 0 else hidden\n",
        "CUDA can't record the Net: ",
    ),
    "counts": (
        "        self.calls = getattr(self, 'calls', 0) + 1\n",
        "the Net counts its passes",
    ),
}


@pytest.mark.parametrize("what", UNRECORDABLE)
def test_a_net_that_cannot_be_recorded_is_trained_by_plain_torch(what: str, split: Project) -> None:
    line, why = UNRECORDABLE[what]
    edited(split, NET, EDITS["batch normalization and dropout"])
    edited(split, NET, [(LAST, LAST + line)])
    trained(split, f"torch on {torch.cuda.get_device_name()}: {why}")
    assert_resumed_to_the_same_bytes(split)


def test_a_net_that_is_no_longer_what_was_recorded_of_it_is_refused(split: Project) -> None:
    line = "        hidden = hidden / 2 if os.path.exists('changed') else hidden\n"
    edited(
        split,
        NET,
        [(THIRD_BLOCK, THIRD_BLOCK + line), ("import torch\n", "import os\nimport torch\n")],
    )
    split.params({"train.batch_size": 8, "train.epochs": 9, "tracking.enabled": False})
    with training(split) as process:
        until(lambda: is_saved(split))
        (split.root / "changed").touch()
        process.join(60)
    assert process.exitcode == 1
    assert "train: the Net no longer computes what was recorded of it" in log(split)
    assert "Traceback" not in log(split)


def trained(project: Project, by: str = "CUDA graph on ") -> None:
    assert f"train: computed by {by}" in project.stage("train").stdout


def assert_resumed_to_the_same_bytes(project: Project) -> None:
    whole = md5(project.model)
    project.params({"tracking.enabled": False})
    project.model.unlink()
    with training(project):
        until(lambda: is_saved(project))
    assert not project.model.exists(), log(project)
    assert "going on after step" in project.stage("train").stdout
    assert md5(project.model) == whole


def test_more_processes_than_gpus_are_refused(split: Project) -> None:
    split.params({"train.processes": torch.cuda.device_count() + 1})
    done = split.stage("train", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "GPUs; lower train.processes" in done.stdout


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_full_gpu_is_one_line(stage: str, on_gpu: Project) -> None:
    on_gpu.dvc("repro", "preprocess" if stage == "train" else "evaluate")
    full = subprocess.Popen(
        [sys.executable, "-c", TAKES_ALL],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with full:
        assert full.stdout is not None
        assert full.stdout.readline() == "full\n"
        done = on_gpu.stage(stage, check=False)
        full.kill()
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert (
        f"{stage}: out of memory on the GPU; close other programs or lower {stage}" in done.stdout
    )
