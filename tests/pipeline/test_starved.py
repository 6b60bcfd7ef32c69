"""Without room, memory or rights a training stops with a word, and the next one is whole."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from conftest import Project
from digits import stage
from digits.data import dataset
from digits.data.dataset import PixelFacts, Split
from digits.errors import DivergedError, UserError
from digits.params import Params, load
from digits.paths import Paths, State
from digits.training.checkpoint import Checkpoint
from machine import small_disk
from splice import Config, Join, outbox
from splice.files import md5
from trainings import some

CLASSES = tuple("0123456789")


@pytest.fixture
def params() -> Params:
    found = load(Path(__file__).resolve().parents[2] / "params.yaml")
    recipe = replace(
        found.train, epochs=2, batch_size=16, threads=1, device="cpu", precision="float32"
    )
    return replace(found, train=recipe, checkpoint=replace(found.checkpoint, every_steps=1))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "project")
    dice = np.random.default_rng(0)
    for name in ("train", "validation", "test"):
        images = dice.integers(0, 256, (40, 1, 28, 28), np.uint8)
        labels = np.arange(40, dtype=np.uint8) % 10
        facts = PixelFacts("mnist-5k", CLASSES, 0.13, 0.31)
        dataset.write(paths.split(name), Split(images, labels, facts))
    paths.params.write_text("")
    return paths


@pytest.fixture(autouse=True)
def restore_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def outputs(paths: Paths) -> dict[str, bytes]:
    folders = (paths.model.parent, paths.reports)
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {file.relative_to(paths.root).as_posix(): file.read_bytes() for file in files}


def state(paths: Paths, name: str = "state") -> State:
    return State(paths.root.parent / name)


def join(paths: Paths, name: str = "state") -> Join:
    home = paths.root.parent / name
    return Join(Config(root=paths.root, home=home, model="models/net.safetensors"))


@pytest.mark.long
def test_a_full_disk_at_any_moment_is_said_and_the_next_training_is_as_if_it_never_was(
    params: Params, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(params, train=replace(params.train, epochs=1, batch_size=20))
    train.main(params, paths, state(paths, "undisturbed"), join(paths, "undisturbed"))
    expected = outputs(paths)
    sync = os.fsync
    written = 0

    def fail_at(moment: int) -> None:
        nonlocal written
        written = 0

        def full(descriptor: int) -> None:
            nonlocal written
            written += 1
            if written == moment:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", full)

    moment, failures = 0, 0
    while moment == 0 or written >= moment:
        moment += 1
        for name in expected:
            (paths.root / name).unlink(missing_ok=True)
        fail_at(moment)
        try:
            train.main(
                params, paths, state(paths, f"state-{moment}"), join(paths, f"state-{moment}")
            )
        except (UserError, OSError) as error:
            assert os.strerror(errno.ENOSPC) in str(error)
            failures += 1
        else:
            assert written < moment, "an error of the disk went unnoticed"
            break
        halves = outputs(paths)
        assert halves == {name: expected[name] for name in halves}
        monkeypatch.setattr(os, "fsync", sync)
        train.main(params, paths, state(paths, f"state-{moment}"), join(paths, f"state-{moment}"))
        assert outputs(paths) == expected
    assert failures > 10


def test_divergence_keeps_the_last_good_checkpoint(
    params: Params, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(
        params.train, optimizer="sgd", learning_rate=100.0, schedule="constant", log_every=1000
    )
    saved: list[dict[str, torch.Tensor]] = []
    write = Checkpoint.write

    def keep(checkpoint: Checkpoint, tensors: Any, history: Any) -> None:
        write(checkpoint, tensors, history)
        saved.append({name: tensor.clone() for name, tensor in tensors.items()})

    monkeypatch.setattr(Checkpoint, "write", keep)
    with pytest.raises(DivergedError, match=r"diverged; lower train\.learning_rate"):
        train.main(
            replace(params, train=replace(wild, epochs=20)), paths, state(paths), join(paths)
        )
    assert not paths.model.exists()
    for tensors in saved:
        weights = [value for name, value in tensors.items() if name.startswith("net.")]
        assert all(bool(torch.isfinite(value).all()) for value in weights)
    assert saved
    assert len(list(state(paths).checkpoints.glob("*.safetensors"))) == 1


def test_a_training_that_learned_nothing_says_so_and_so_does_its_run(
    params: Params, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("train", 0), ("validation", 1)):
        images, labels = some(200, seed=seed)
        facts = PixelFacts("mnist-5k", CLASSES, 0.13, 0.31)
        dataset.write(
            paths.split(name), Split(images.numpy(), labels.numpy().astype(np.uint8), facts)
        )

    def warned(rate: float) -> str:
        # In few large steps, as weights decay by the rate.
        wild = replace(params.train, learning_rate=rate, batch_size=256, weight_decay=0.01)
        recipe = replace(params, train=wild)
        work = join(paths, f"rate-{rate}")
        train.main(recipe, paths, state(paths, f"rate-{rate}"), work)
        (entry,) = outbox.entries(work.config.box)
        (model,) = [record["model"] for record, _ in outbox.records(entry) if "model" in record]
        tag: str = model["tags"].get("warning", "")
        assert (f"train: WARNING: {tag}\n" in capsys.readouterr().err) == bool(tag)
        return tag

    assert not warned(0.008)
    tag = warned(50.0)
    assert "is no better than always answering the commonest class" in tag
    assert tag.endswith("try a lower train.learning_rate")


CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 12 GB"


def test_another_error_of_torch_is_not_taken_for_too_little_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        stage.run("train", fail_with(RuntimeError("shapes cannot be multiplied")))


def fail_with(error: BaseException) -> Callable[..., None]:
    def main(*_arguments: object) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("a\nb"), "train: a b"),
        (MemoryError(), "train: out of memory; close other programs or lower train.batch_size"),
        (RuntimeError(CPU), "train: out of memory; close other programs or lower train.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "train: out of memory on the GPU; "),
        (
            torch.AcceleratorError("CUDA error: out of memory\nS"),
            "train: out of memory on the GPU; ",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "cannot read or write x: No space"),
        (OSError("odd"), "cannot read or write: odd"),
    ],
)
def test_what_a_stage_cannot_mend_is_one_line(
    error: BaseException, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        stage.run("train", fail_with(error))
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert words in said
    assert said.count("\n") == 1


def one_line(done: subprocess.CompletedProcess[str], name: str) -> str:
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{name}: ")
    return last


@pytest.fixture
def on_a_small_disk(bare: Project, tmp_path: Path) -> Iterator[Project]:
    """A checkout on a file system of 4 MB, with everything but the room for its data."""
    with small_disk(tmp_path / "disk", 4096) as disk:
        for name in ("src", "params.yaml", "pyproject.toml", "dvc.yaml"):
            subprocess.run(["cp", "-r", str(bare.root / name), str(disk)], check=True)
        project = Project(disk, bare.env)
        project.params({"tracking.enabled": False})
        yield project


def test_a_full_disk_stops_a_stage_with_one_line_and_nothing_half_written(
    on_a_small_disk: Project,
) -> None:
    root = on_a_small_disk.root
    on_a_small_disk.stage("download")
    line = one_line(on_a_small_disk.stage("preprocess", check=False), "preprocess")
    assert "No space left on device; make room" in line
    assert not list(root.rglob("*.tmp"))
    raw = md5(root / "data/raw/mnist_5k.csv.gz")
    with (root / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.tell() < 8_000_000:
            filler.write(bytes(4096))
    line = one_line(on_a_small_disk.stage("download", check=False), "download")
    assert "No space left on device; make room" in line
    assert md5(root / "data/raw/mnist_5k.csv.gz") == raw


@pytest.mark.parametrize("name", ["download", "preprocess"])
def test_a_read_only_disk_stops_a_stage_with_one_line(on_a_small_disk: Project, name: str) -> None:
    on_a_small_disk.stage("download")
    on_a_small_disk.params({"tracking.enabled": True})
    subprocess.run(["mount", "-o", "remount,ro", str(on_a_small_disk.root)], check=True)
    done = on_a_small_disk.stage(name, check=False, PYTHONDONTWRITEBYTECODE="1")
    assert "Read-only file system; make room or make" in one_line(done, name)
