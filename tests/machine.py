"""Processes and disks of this machine, as tests need them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

import forked
from conftest import Project

WAIT_SECONDS = 100.0

T = TypeVar("T")


def until(what: Callable[[], T | None]) -> T:
    """Wait until something is so; give it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError("what was waited for never came")


def log_file(project: Project) -> Path:
    """Where a command in the background says what it says: beside the project."""
    return project.root.parent / f"{project.root.name}.log"


def log(project: Project) -> str:
    return log_file(project).read_text()


@contextmanager
def started(project: Project, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, in a process group of its own."""
    with log_file(project).open("w") as log:
        process = subprocess.Popen(
            command, cwd=project.root, env=project.env, stdout=log, stderr=log, text=True,
            process_group=0,
        )  # fmt: skip
    try:
        yield process
    finally:
        for one in family(process.pid):
            one.kill()
        process.wait()


@contextmanager
def training(project: Project) -> Iterator[BaseProcess]:
    """Stage `train` in the background, without dvc; killed if it hasn't ended."""
    log = log_file(project)
    log.touch()
    process = forked.start("src/train.py", folder=project.root, env=project.env, output=log)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def workers(pid: int) -> dict[str, psutil.Process]:
    """The processes below one that train together, by their rank."""
    found = {}
    for one in family(pid):
        try:
            if one.cmdline()[-1].endswith("src/train.py") and "RANK" in one.environ():
                found[one.environ()["RANK"]] = one
        except (psutil.Error, IndexError):  # it has just ended
            continue
    return found


def is_saved(project: Project) -> bool:
    return any(project.root.glob(".digits/checkpoints/*.safetensors"))


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, soon full."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
