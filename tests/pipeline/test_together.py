"""A training of two processes through the pipeline: one run, one model; killed, it goes on."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from conftest import Project, prepared
from delivered import ONCE, delivered
from machine import WAIT_SECONDS, log, log_file, started, training, until, workers
from splice.files import md5
from splice.mlflow_store import MODEL

TOGETHER = {"train.processes": 2, "train.epochs": 5, "checkpoint.every_steps": 5}


@pytest.fixture(scope="module")
def together(finished_project: Project, common: Path) -> Project:
    """One in which two processes are to train; only to be copied."""

    def choose(project: Project) -> None:
        project.params(TOGETHER)
        project.commit("Two processes")

    return prepared(finished_project, common / "together", choose)


@pytest.fixture(scope="module")
def whole(together: Project, common: Path) -> Project:
    """One in which they did, undisturbed."""

    def train(project: Project) -> None:
        try:
            log_file(project).write_text(project.dvc("repro").stdout)
            project.deliver()
        finally:
            project.stop_sender()

    return prepared(together, common / "whole", train)


def test_two_processes_speak_with_one_voice_and_make_one_run(whole: Project) -> None:
    said = log(whole)
    assert said.count("train: ") == said.count("train: computed by torch") + sum(
        said.count(f"train: {word}") for word in ("epoch ", "trained in ", "done in ")
    )
    for line, times in (("computed by torch", 1), ("epoch ", 5), ("done in ", 1)):
        assert said.count(f"train: {line}") == times
    assert "arning" not in said
    assert delivered(whole) == ONCE
    (run,) = whole.store().tagged({MODEL: md5(whole.model)})
    assert (run.data.tags["processes"], run.data.tags["engine"]) == ("2", "torch")


def in_training(project: Project, pid: int) -> dict[str, psutil.Process]:
    """The processes that train, once they have written another checkpoint."""
    before = newest_checkpoint(project)
    until(lambda: newest_checkpoint(project) > before)
    found = workers(pid)
    assert found, log(project)
    return found


def newest_checkpoint(project: Project) -> int:
    """When it was written; 0 if there is none."""
    files = project.root.glob(".digits/checkpoints/*.safetensors")
    return max((file.stat().st_mtime_ns for file in files), default=0)


def are_over(processes: dict[str, psutil.Process]) -> bool:
    return not any(
        one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes.values()
    )


@pytest.mark.long
def test_whoever_of_them_is_killed_none_is_left_and_the_bytes_are_the_same(
    together: Project, whole: Project, copy_of: Callable[[Project], Project]
) -> None:
    project = copy_of(together)
    with training(project) as leader:
        assert leader.pid is not None
        for rank in ("1", "0"):
            members = in_training(project, leader.pid)
            members[rank].kill()
            until(partial(are_over, members))
        members = in_training(project, leader.pid)
        os.kill(leader.pid, signal.SIGINT)
        leader.join(WAIT_SECONDS)
        assert leader.exitcode == 130
        assert are_over(members)
    assert log(project).count("train: going on after step") == 2
    assert log(project).count("train: interrupted; the next `dvc repro` goes on from here") == 1
    with started(project, "dvc", "repro", "train") as dvc:
        members = in_training(project, dvc.pid)
        dvc.kill()
        until(partial(are_over, members))
    assert "Traceback" not in log(project)
    project.splice("unlock")
    assert "train: going on after step" in project.dvc("repro", "train").stdout
    project.deliver()
    assert md5(project.model) == md5(whole.model)
    assert delivered(project) == ONCE


def test_what_one_of_them_meets_is_said_once_in_a_line(
    together: Project, copy_of: Callable[[Project], Project]
) -> None:
    project = copy_of(together)
    project.params({"train.engine": "compiled", "tracking.enabled": False})
    done = project.stage("train", check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "train: train.engine is compiled, but the kernels don't train in a process group (of 2); "
        "set it to auto or torch"
    ]


SCONTROL = "#!/bin/bash\necho 127.0.0.1\n"
SRUN = """#!/bin/bash
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & started+=($!); done
for one in "${started[@]}"; do wait "$one" || exit; done
"""


@pytest.mark.long
def test_the_slurm_file_trains_on_two_machines_to_the_bytes_of_two_processes_on_one(
    together: Project, whole: Project, copy_of: Callable[[Project], Project], tmp_path: Path
) -> None:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    project = copy_of(together).sooner()
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    done = project.run(
        "bash",
        "deploy/train.sbatch",
        PATH=os.pathsep.join([str(tmp_path), project.env["PATH"]]),
        SLURM_SUBMIT_DIR=str(project.root),
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_ID=str(free_port(range(20_000, 30_000)) - 20_000),
        GLOO_SOCKET_IFNAME=loopback,
    )
    assert done.stdout.count("train: computed by torch") == 1
    assert md5(project.model) == md5(whole.model)
    assert "up to date" in project.dvc("status").stdout
    project.deliver()
    assert delivered(project) == ONCE


def free_port(ports: range) -> int:
    return next(port for port in ports if not is_open(port))


def is_open(port: int) -> bool:
    with socket.socket() as one:
        return not one.connect_ex(("127.0.0.1", port))


@pytest.mark.long
def test_when_a_machine_leaves_for_good_the_others_go_on_and_the_run_says_so(
    together: Project, copy_of: Callable[[Project], Project]
) -> None:
    project = copy_of(together)
    project.params({"train.epochs": 8})
    port = free_port(range(20_000, 30_000))
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    command = (
        "torchrun", "--nnodes", "1:2", "--max-restarts", "3", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job", "--local-addr", "127.0.0.1",
        "--rdzv-conf", "last_call_timeout=20,keep_alive_interval=1", "src/train.py",
    )  # fmt: skip
    machine = project.with_env(GLOO_SOCKET_IFNAME=loopback)
    with started(machine, *command) as stays:
        until(lambda: is_open(port))  # it is the one where they meet
        with started(machine, *command) as leaves:
            in_training(project, leaves.pid)
            leaves.kill()
            assert stays.wait(WAIT_SECONDS) == 0, log(project)
    assert "train: processes: 1 instead of 2" in log(project)
    project.deliver()
    assert delivered(project) == ONCE
    (run,) = project.store().tagged({MODEL: md5(project.model)})
    assert run.data.tags["processes"] == "2, then 1"
