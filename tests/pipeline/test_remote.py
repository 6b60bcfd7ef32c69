"""Data and models shared by a DVC remote on S3, over HTTP, as docs/team.md says."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from conftest import Project
from delivered import ONCE, delivered
from machine import started, until
from servers import FaultyProxy, s3
from splice.files import md5

CLONE = "git", "clone", "--quiet"
NOT_THERE = "data", "status", "--not-in-remote", "--granular"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server's: what a member of the team has in the environment."""
    with s3(tmp_path_factory.mktemp("s3")) as settings:
        yield settings


@pytest.fixture
def bucket(keys: dict[str, str]) -> Any:
    """The bucket, by boto3."""
    named = {name.lower(): keys[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    endpoint = keys["MLFLOW_S3_ENDPOINT_URL"]
    store = boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **named)
    return store.Bucket(keys["S3_BUCKET"])


@pytest.fixture
def member(finished: Project, keys: dict[str, str], tmp_path: Path) -> Project:
    """A checkout with results, whose remote is a prefix of the bucket for this test alone."""
    member = finished.with_env(**keys)
    address = f"s3://{keys['S3_BUCKET']}/{tmp_path.name}"
    member.dvc("remote", "add", "--default", "store", address)
    member.dvc("remote", "modify", "store", "endpointurl", keys["MLFLOW_S3_ENDPOINT_URL"])
    member.dvc("remote", "modify", "store", "verify", "true")
    member.commit("The team's remote")
    return member


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Callable[[Project], Project]]:
    """Another member's checkout of what is committed; its DVC knows of no other."""
    made: list[Project] = []

    def of(original: Project) -> Project:
        root = tmp_path / f"clone-{len(made)}"
        original.run(*CLONE, str(original.root), str(root))
        site = str(tmp_path / f"{root.name}-dvc")
        made.append(replace(original, root=root).with_env(DVC_SITE_CACHE_DIR=site))
        return made[-1]

    yield of
    for project in made:
        project.stop_sender()


def test_what_one_pushes_another_pulls_reproduces_and_rolls_back(
    member: Project, clone: Callable[[Project], Project], tmp_path: Path
) -> None:
    first = md5(member.model)
    member.git("tag", "--annotate", "mnist-net@v1.0.0", "--message", "First release")
    member.params({"train.seed": 301, "train.epochs": 1})
    member.dvc("repro")
    member.commit("Another seed")
    assert "pushed" in member.dvc("push", "--all-tags").stdout
    second = md5(member.model)
    assert second != first

    other = clone(member)
    other.dvc("pull")
    assert md5(other.model) == second
    assert "Running stage" not in other.dvc("repro").stdout
    other.splice("sync", "--wait", "60")
    run = other.store().run_of_model(second)
    assert run is not None
    assert run.data.tags["origin"] == "restored"
    assert delivered(other) == ONCE

    other.git("checkout", "--quiet", "mnist-net@v1.0.0")
    other.dvc("pull")
    assert md5(other.model) == first
    assert "Running stage" not in other.dvc("repro").stdout

    away = replace(member, root=tmp_path / "away")
    away.root.mkdir()
    away.dvc("get", str(member.root), "models/net.safetensors", "--out", "newest")
    assert md5(away.root / "newest") == second
    at = "models/net.safetensors", "--rev", "mnist-net@v1.0.0"
    away.dvc("get", str(member.root), *at, "--out", "first")
    assert md5(away.root / "first") == first
    away.dvc("artifacts", "get", str(member.root), "mnist-net", "--rev", "v1.0.0")
    assert md5(away.root / "net.safetensors") == first


@pytest.mark.long
def test_a_push_that_is_cut_off_is_noticed_and_completed_by_the_next(
    member: Project, keys: dict[str, str], bucket: Any, clone: Callable[[Project], Project]
) -> None:
    def objects() -> int:
        return sum(1 for _ in bucket.objects.filter(Prefix=member.root.parent.name))

    with FaultyProxy(keys["MLFLOW_S3_ENDPOINT_URL"]) as proxy:
        through = "remote", "modify", "--local", "store", "endpointurl"
        member.dvc(*through, proxy.uri)
        push = [str(shutil.which("dvc")), "push", "--jobs", "1"]
        with started(member, *push) as process:
            until(lambda: objects() >= 3)
            proxy.mode = "refuse"  # the server is gone
            assert process.wait(120) != 0
        missing = objects()
        proxy.mode = "pass"
        with started(member, *push) as process:
            until(lambda: objects() > missing)
            process.send_signal(signal.SIGKILL)
    member.dvc(*through, keys["MLFLOW_S3_ENDPOINT_URL"])
    assert "Not in remote" in member.dvc(*NOT_THERE).stdout
    assert "new:" in member.dvc("status", "--cloud").stdout
    assert "pushed" in member.dvc("push").stdout
    assert "Not in remote" not in member.dvc(*NOT_THERE).stdout
    other = clone(member)
    other.dvc("pull")
    assert "up to date" in other.dvc("status").stdout


def test_what_the_remote_lost_or_damaged_is_noticed_and_mended_from_a_cache(
    member: Project, keys: dict[str, str], bucket: Any, clone: Callable[[Project], Project]
) -> None:
    member.dvc("push")
    prefix = f"{member.root.parent.name}/files/md5"
    lost, cut = (
        md5(member.root / name) for name in ("data/raw/dataset.json", "models/net.safetensors")
    )
    bucket.Object(f"{prefix}/{lost[:2]}/{lost[2:]}").delete()
    bucket.Object(f"{prefix}/{cut[:2]}/{cut[2:]}").put(Body=b"half")
    assert "data/raw/dataset.json" in member.dvc(*NOT_THERE).stdout
    other = clone(member)
    assert other.dvc("pull", check=False).returncode != 0
    assert not other.model.exists()

    copy = ["rclone", "copy", "--size-only", ".dvc/cache/files"]
    place = f":s3,provider=Other,env_auth:{keys['S3_BUCKET']}/{member.root.parent.name}/files"
    member.run(*copy, place, RCLONE_S3_ENDPOINT=keys["MLFLOW_S3_ENDPOINT_URL"])
    other.dvc("pull")
    assert md5(other.model) == cut
    assert "up to date" in other.dvc("status").stdout
