"""Bad input at the stages: one line, exit code 1, the cure named, nothing half-written."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Project
from digits.data import description, formats

Damage = Callable[[Path], None]


def gone(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def a_page(path: Path) -> None:
    path.write_text("<!doctype html><title>Sign in</title>")


def not_utf_8(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def flipped_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)


EVERY: list[Damage] = [gone, empty, cut_short, a_folder, a_link_to_nowhere, a_page, not_utf_8]
RAW = "data/raw/mnist_5k.csv.gz"
TRAIN, TEST = "data/processed/train.safetensors", "data/processed/test.safetensors"
MODEL, STEPS = "models/net.safetensors", "reports/history/steps.csv"
STATISTICS = "data/processed/statistics.json"
CASES: list[tuple[str, str, Damage]] = [
    *(("download", "params.yaml", damage) for damage in EVERY),
    *(("preprocess", "data/raw/dataset.json", damage) for damage in EVERY),
    *(("preprocess", RAW, damage) for damage in [*EVERY, a_pickle]),
    *(("train", TRAIN, damage) for damage in (cut_short, a_folder, a_pickle)),
    *(("evaluate", MODEL, damage) for damage in (gone, flipped_header, a_pickle)),
    *(("evaluate", TEST, damage) for damage in (empty, a_link_to_nowhere)),
    *(("evaluate", STEPS, damage) for damage in (a_page, gone)),
    ("evaluate", STATISTICS, a_page),
]
OUTPUTS = ("data", "models", "reports")
REPORTS = [
    "metrics.json",
    "classes.json",
    "evaluation.json",
    "confusion.csv",
    "mistakes.csv",
    "model_card.md",
    "figures",
]
WRITTEN = {
    "preprocess": ["data/processed"],
    "train": [MODEL, "reports/history", "reports/training.json"],
    "evaluate": [f"reports/{name}" for name in REPORTS],
}


@pytest.fixture(scope="module")
def project(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = finished_project.copy(tmp_path_factory.mktemp("stages") / "project")
    project.params({"tracking.enabled": False})
    return project


@pytest.fixture
def mended(project: Project) -> Project:
    """The project as it was before any test."""
    names = [*OUTPUTS, "params.yaml"]
    whole = project.root.parent / "whole"
    if not whole.exists():
        whole.mkdir()
        for name in names:
            copied(project.root / name, whole / name)
    for name in names:
        remove(project.root / name)
        copied(whole / name, project.root / name)
    return project


def copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refusal(project: Project, stage: str, **env: str) -> str:
    """The one line with which a stage refuses; nothing else happened."""
    for name in WRITTEN.get(stage, ()):
        remove(project.root / name)  # as dvc does before it runs a stage
    before = everything(project)
    done = project.stage(stage, check=False, **env)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{stage}: ")
    assert everything(project) == before
    return last


def everything(project: Project) -> dict[str, bytes]:
    return {
        path.relative_to(project.root).as_posix(): path.read_bytes()
        for folder in OUTPUTS
        for path in sorted((project.root / folder).rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("stage", "name", "damage"), CASES)
def test_a_damaged_file_is_named_in_one_line_with_the_cure(
    mended: Project, stage: str, name: str, damage: Damage
) -> None:
    damage(mended.root / name)
    line = refusal(mended, stage)
    assert name in line
    cures = ("dvc repro", "git checkout", "must be a mapping", "YAML", "add it", "allowed")
    assert any(cure in line for cure in cures)


def gzipped(content: bytes) -> Damage:
    def damage(path: Path) -> None:
        path.write_bytes(gzip.compress(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (gzipped(b"1,2,3\n"), "2 pixels in a row, no square"),
        (gzipped(b",".join([b"0"] * 785) + b"\n1,2,3\n"), "line 2 is not 785 whole numbers"),
        (gzipped(b",".join([b"0"] * 784) + b",10\n"), "holds label 10, allowed 0 to 9"),
        (gzipped(b",".join([b"0"] * 784) + b",9\n"), "no training images of class 0, 1, 2"),
    ],
)
def test_numbers_that_are_no_digits_are_named(mended: Project, damage: Damage, words: str) -> None:
    damage(mended.root / RAW)
    assert words in refusal(mended, "preprocess")


def idx(*shape: int, value: int = 0) -> bytes:
    count = 1
    for size in shape:
        count *= size
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    return gzip.compress(header + bytes([value]) * count, 1, mtime=0)  # a test's name has no time


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (idx(3, 28, 28), idx(4), "holds 3 images but"),
        (idx(3, 28, 28), idx(3, value=10), "holds label 10, allowed 0 to 9"),
        (idx(3), idx(3), "has magic 00000801, expected 00000803"),
        (idx(3, 28, 28), idx(3, 28, 28), "has magic 00000803, expected 00000801"),
        (idx(3, 28, 28)[:-9], idx(3), "is not whole gzip data"),
    ],
)
def test_idx_files_that_do_not_fit_one_another_are_named(
    mended: Project, images: bytes, labels: bytes, words: str
) -> None:
    raw = mended.root / "data/raw"
    files = dict.fromkeys(formats.IDX_NAMES, "")
    description.write(raw, replace(description.read(raw), name="mnist", files=files))
    for name in files:
        (raw / name).write_bytes(images if "images" in name else labels)
    assert words in refusal(mended, "preprocess")


def test_images_of_one_size_for_training_and_another_for_test_are_named(mended: Project) -> None:
    raw = mended.root / "data/raw"
    files = dict.fromkeys(formats.IDX_NAMES, "")
    description.write(raw, replace(description.read(raw), name="mnist", files=files))
    for name, content in zip(files, (idx(3, 9, 7), idx(3), idx(3, 9, 8), idx(3)), strict=True):
        (raw / name).write_bytes(content)
    assert "images of 9x7 for training and 9x8 for test" in refusal(mended, "preprocess")


@pytest.mark.parametrize(
    ("name", "value"),
    [("train.epochs", "many"), ("train.batch_size", 0), ("preprocess.validation", 2)],
)
@pytest.mark.parametrize("stage", ["download", "preprocess", "train", "evaluate"])
def test_every_stage_refuses_a_bad_parameter_before_it_works(
    mended: Project, stage: str, name: str, value: object
) -> None:
    mended.params({name: value})
    assert f"{name} in " in refusal(mended, stage)


def test_after_a_mistake_dvc_brings_back_the_results_that_it_removed(finished: Project) -> None:
    before = everything(finished)
    for name, value in (("train.epochs", "many"), ("download.dataset", "mnits")):
        assert f"digits check: {name} in" in mistaken(finished, {name: value})
        said = finished.dvc("repro", check=False).stdout
        assert f"{name} in " in said
        assert "the results of before are in DVC's cache: `dvc checkout` brings them back" in said
        finished.git("checkout", "params.yaml")
        finished.dvc("checkout")
        assert everything(finished) == before


def mistaken(project: Project, params: dict[str, object]) -> str:
    project.params(params)
    return project.digits("check", check=False).stdout


@pytest.mark.parametrize(
    "mirror", ["ftp://reader:s3cret@127.0.0.1/mnist", "http://reader:s3cret@127.0.0.1:1", "none"]
)
def test_a_mirror_that_leads_nowhere_is_said_without_its_password(
    mended: Project, mirror: str
) -> None:
    mended.params({"download.dataset": "mnist", "download.fallback": False})
    unreachable = {"https_proxy": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    line = refusal(mended, "download", DATA_MIRROR=mirror, **unreachable)
    assert "DATA_MIRROR" in line
    assert "s3cret" not in line and "reader" not in line


def test_a_device_that_is_not_there_is_named(mended: Project) -> None:
    mended.params({"train.device": "cuda:42", "evaluate.device": "mps"})
    assert "train.device is cuda:42, but this machine" in refusal(mended, "train")
    assert "evaluate.device is mps, but this machine" in refusal(mended, "evaluate")


@pytest.mark.parametrize("stage", ["download", "preprocess", "train", "evaluate"])
def test_a_python_without_the_packages_says_where_they_come_from(bare: Project, stage: str) -> None:
    done = bare.run("python", "-S", f"src/{stage}.py", check=False)  # no site-packages
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{stage}: ")
    assert re.search("has no package [a-z]+; run `make setup`", line)


def test_a_python_without_the_packages_makes_way_once_for_the_one_in_venv(
    mended: Project,
) -> None:
    python = mended.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def repeated(options: str) -> subprocess.CompletedProcess[str]:
        python.write_text(f'#!/bin/sh\necho started\nexec "{sys.executable}" {options} "$@"\n')
        python.chmod(0o755)
        return mended.run("python", "-S", "src/preprocess.py", check=False)

    assert "preprocess: mnist-5k: train" in repeated("").stdout
    lines = repeated("-S").stdout.splitlines()
    assert lines[0] == "started"
    assert "has no package" in lines[1] and "run `make setup`" in lines[1]
    assert len(lines) == 2
    shutil.rmtree(mended.root / ".venv")


@pytest.mark.parametrize(("stage", "package"), [("preprocess", "numpy"), ("train", "torch")])
def test_ctrl_c_while_a_package_is_imported_is_one_line(
    project: Project, mended: Project, stage: str, package: str
) -> None:
    importing = subprocess.Popen(
        ["python", "-X", "importtime", f"src/{stage}.py"],
        cwd=project.root,
        env=project.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert importing.stderr is not None
    for line in importing.stderr:
        if f" {package}." in line:
            importing.send_signal(signal.SIGINT)
            break
    said = [line for line in importing.stderr if not line.startswith("import time:")]
    assert importing.wait() == 130
    assert said == [f"{stage}: interrupted; the next `dvc repro` goes on from here\n"]
