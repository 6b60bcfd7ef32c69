"""The Makefile makes, fills and removes one folder, the project's .venv, and harms no neighbour.

Make, venv, pip and uv are the real ones. Only the lock is another: its one package puts the
environment that runs these tests behind the new one, so nothing is downloaded.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import HERE, Project
from splice.files import write_json

PIPELINE = """
stages:
  where:
    cmd: python -c "import sys; print(sys.prefix)" > where.txt
    outs: [where.txt]
"""
A_TEST = "import digits\n\n\ndef test_nothing():\n    assert digits.__file__\n"


def wheel_of_everything(folder: Path) -> str:
    """Put a wheel named uv there: this environment's uv, its packages by reference; its SHA-256."""
    here = Path(sys.prefix)
    files = {
        "uv-1.0.data/scripts/uv": f'#!/bin/sh\nexec "{here}/bin/uv" "$@"\n',
        "everything.pth": f"{Path(pytest.__path__[0]).parent}\n",
        "uv-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: uv\nVersion: 1.0\n",
        "uv-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{name},sha256={_base64(hashlib.sha256(text.encode()).digest())},{len(text)}"
        for name, text in files.items()
    ]
    files["uv-1.0.dist-info/RECORD"] = "\n".join([*record, "uv-1.0.dist-info/RECORD,,", ""])
    wheel = folder / "uv-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0o100755 << 16  # a file that may be run
            archive.writestr(member, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def _base64(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def light(
    tmp_path_factory: pytest.TempPathFactory,
    bare_project: Project,
    clean_environment: dict[str, str],
) -> Project:
    """A checkout with a small lock, one quick stage and one quick test; only to be copied."""
    folder = tmp_path_factory.mktemp("light")
    digest = wheel_of_everything(folder)
    env = {key: value for key, value in clean_environment.items() if not key.startswith("MAKE")}
    env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    env |= {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(folder)}
    env |= {"PATH": os.environ["PATH"], "UV_CACHE_DIR": str(folder / "cache")}
    project = bare_project.copy(folder / "project")
    project = Project(project.root, env)
    (project.root / "dvc.yaml").write_text(PIPELINE)
    project.params({"download.dataset": "mnist"})
    words = {"title": "", "source": "", "licence": "", "classes": ["0", "1"], "files": {}}
    write_json(project.root / "data/raw/dataset.json", {"name": "mnist-5k", **words})
    (project.root / "requirements.lock").write_text(
        f"uv==1.0 \\\n    --hash=sha256:{digest}\n# the end\n"
    )
    (project.root / "tests").mkdir()
    (project.root / "tests" / "test_nothing.py").write_text(A_TEST)
    project.commit("Less of everything")
    return project


def at(folder: Path, light: Project) -> Project:
    """A copy of the project in this very folder."""
    shutil.copytree(light.root, folder, symlinks=True)
    return Project(folder, light.env)


def contents(folder: Path, but: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None, but for one of them."""
    found: dict[str, bytes | None] = {}
    for at_, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(at_, name) != but]
        found |= {str(Path(at_, name)): None for name in folders}
        found |= {str(Path(at_, name)): Path(at_, name).read_bytes() for name in files}
    return found


def test_make_alone_lists_what_can_be_made() -> None:
    text = (HERE / "Makefile").read_text(encoding="utf-8")
    told = re.findall(r"^([a-z]+):.*##", text, re.MULTILINE)
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=HERE, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in listed.splitlines()] == told
    phony = " ".join(re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE)).split()
    assert sorted(phony) == sorted({*told, "original", "made-elsewhere"})


@pytest.mark.parametrize("path", ["keep copy", '#;&*%41\'s "$HOME" ü /-x '])
def test_setup_repro_test_and_clean_leave_the_neighbours_as_they_were(
    tmp_path: Path, light: Project, path: str
) -> None:
    project = at(tmp_path / path, light)
    for name in ("keep", "copy", "copy/.venv", "x", "-x", "%23"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("not to be had again\n")
    neighbours = contents(tmp_path, but=project.root)

    for target in ("setup", "repro", "test"):
        said = project.run("make", target).stdout
        assert contents(tmp_path, but=project.root) == neighbours, said
        assert (project.root / ".venv" / "bin" / "python").exists()
        if target == "repro":
            *_, last = said.splitlines()
            assert last.startswith("digits next: all this is of mnist-5k, taken when mnist could")
    assert "1 passed" in said
    environment = (project.root / "where.txt").read_text()
    assert environment == f"{project.root / '.venv'}\n"  # the stage's python is the project's own

    project.params({"train.epochs": "many"})
    refused = project.run("make", "repro", check=False)
    assert refused.returncode != 0
    assert "digits check: train.epochs in " in refused.stdout
    assert "Running stage" not in refused.stdout
    project.git("checkout", "params.yaml")

    project.run("make", "clean")
    assert contents(tmp_path, but=project.root) == neighbours
    assert not (project.root / ".venv").exists()
    assert project.git("ls-files", "--others", "--exclude-standard") == "dvc.lock"


@pytest.mark.parametrize("kind", ["folder", "link", "link to one made here", "file"])
def test_a_venv_that_somebody_else_made_is_refused_by_setup_and_left_alone_by_clean(
    tmp_path: Path, light: Project, kind: str
) -> None:
    project = at(tmp_path / "project", light)
    theirs = project.root / ".venv"
    if kind == "file":
        theirs.write_text("not to be had again\n")
    else:
        folder = theirs if kind == "folder" else tmp_path / "theirs"
        folder.mkdir()
        (folder / "precious.txt").write_text("not to be had again\n")
    if kind.startswith("link"):
        theirs.symlink_to(tmp_path / "theirs")
    if kind == "link to one made here":
        (theirs / ".done").touch()
    before = contents(tmp_path, but=project.root / ".git")

    refused = project.run("make", "setup", check=False)
    cleaned = project.run("make", "clean")

    assert refused.returncode
    assert "Makefile and stays as it is; move it elsewhere" in refused.stdout.splitlines()[0]
    assert ".venv stays" in cleaned.stdout
    assert contents(tmp_path, but=project.root / ".git") == before
    assert theirs.is_symlink() == kind.startswith("link")


def test_a_moved_projects_environment_is_made_anew_and_then_left_in_peace(
    tmp_path: Path, light: Project
) -> None:
    project = at(tmp_path / "before", light)
    (project.root / ".venv").mkdir()
    (project.root / ".venv" / ".done").touch()  # by an earlier Makefile, which left no other mark
    (project.root / ".venv" / "stale").touch()
    project.run("make", "setup")
    assert not (project.root / ".venv" / "stale").exists()

    moved = Project(project.root.rename(tmp_path / "after"), project.env)
    moved.run("make", "setup")

    helped = moved.run(str(moved.root / ".venv/bin/digits"), "--help").stdout
    assert "usage: digits" in helped
    where = moved.run(str(moved.root / ".venv/bin/python"), "-c", "import digits; print(digits)")
    assert str(moved.root) in where.stdout
    assert "Nothing to be done" in moved.run("make", "setup").stdout


def test_an_interrupted_setup_is_taken_up_again(tmp_path: Path, light: Project) -> None:
    project = at(tmp_path / "project", light)
    failed = project.run("make", "setup", check=False, PIP_FIND_LINKS=str(tmp_path))
    assert failed.returncode
    assert not (project.root / ".venv" / ".done").exists()
    project.run("make", "setup")
    assert (project.root / ".venv" / ".done").exists()
