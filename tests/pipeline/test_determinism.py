"""The same commit, data and parameters give the same bytes: elsewhere, later, with any threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Project, prepared
from splice.files import md5

STAGES = ("download", "preprocess", "train", "evaluate")
OUTPUTS = ("data", "models", "reports")


def run(project: Project, *stages: str) -> dict[str, str]:
    """Run stages without dvc; the MD5 of every file they wrote."""
    for name in stages:
        project.stage(name)
    return {
        path.relative_to(project.root).as_posix(): md5(path)
        for folder in OUTPUTS
        for path in sorted((project.root / folder).rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }


@pytest.fixture(scope="module")
def original(bare_project: Project, common: Path) -> Project:
    """One in which every stage ran once, untracked; only to be copied."""

    def run_all(project: Project) -> None:
        project.params({"tracking.enabled": False, "train.threads": 2})
        run(project, *STAGES)

    return prepared(bare_project, common / "original", run_all)


def test_every_output_is_the_same_bytes_elsewhere_later_with_other_threads_and_hash_seeds(
    original: Project, bare_project: Project, tmp_path: Path
) -> None:
    expected = run(original)
    elsewhere = bare_project.copy(tmp_path / "another folder" / "named otherwise")
    elsewhere.params({"tracking.enabled": False, "train.threads": 1})
    for path in elsewhere.root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (1_000_000_000, 1_000_000_000))
    another = elsewhere.with_env(
        OMP_NUM_THREADS="7",
        MKL_NUM_THREADS="3",
        PYTHONHASHSEED="4711",
        TZ="Asia/Tokyo",
        LC_ALL="C",
        USER="another",
    )
    for name in STAGES:
        another.run("python", f"src/{name}.py")
    found = run(elsewhere)
    assert found == expected
    kinds = {Path(name).suffix for name in found}
    assert {".gz", ".safetensors", ".json", ".csv", ".png"} <= kinds


def changed(project: Project, values: dict[str, object]) -> set[str]:
    """The files that differ after a change of parameters."""
    before = run(project)
    project.params(values)
    after = run(project, *STAGES)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_the_seed_of_the_training_alone_changes_the_model_and_no_data(
    original: Project, copy_of: Callable[[Project], Project]
) -> None:
    found = changed(copy_of(original), {"train.seed": 2})
    assert "models/net.safetensors" in found
    assert not [name for name in found if name.startswith("data/")]


def test_how_often_it_is_checkpointed_and_how_it_is_judged_changes_no_model(
    original: Project, copy_of: Callable[[Project], Project]
) -> None:
    project = copy_of(original)
    found = changed(project, {"checkpoint.every_steps": 3, "evaluate.batch_size": 77})
    assert found <= {"reports/evaluation.json"}  # which says how it was judged
