"""A folder of one's own images through the whole pipeline, as its owner would use it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import download
import preprocess
from conftest import Project
from digits.data import dataset
from digits.errors import DataError, NetError
from digits.params import load
from digits.paths import ROOT, Paths, State
from digits.training.loop import new_net
from machine import started, until
from splice.files import md5

COLOURS = {"leaf": (40, 180, 60), "red apple": (200, 40, 40), "sky": (60, 90, 220)}
KINDS = ("png", "jpg", "webp", "bmp", "gif", "tiff")
SETTINGS = {
    "download.dataset": "folder",
    "folder.size": 32,
    "folder.channels": 3,
    "train.epochs": 4,
    "train.batch_size": 16,
}


def paint(root: Path, images: int) -> Path:
    """Noisy pictures of a colour a class, of several formats and sizes."""
    dice = np.random.default_rng(1)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(images):
            noise = dice.normal(colour, 40, (36 + number % 5, 30, 3))
            pixels = noise.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{KINDS[number % len(KINDS)]}")
    return root


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def test_own_images_are_learned_named_and_followed_when_they_change(bare: Project) -> None:
    own = paint(bare.root / "data/own", 20)
    bare.params(SETTINGS)
    told = bare.dvc("repro").stdout
    assert "own, 60 images of 3 classes" in told
    assert "every class has 20 images" in told
    assert bare.metrics()["accuracy"] > 0.8
    assert list(json.loads((bare.root / "reports/classes.json").read_text())) == list(COLOURS)
    answers = bare.digits("predict", str(own / "sky/0.png"), str(own / "red apple/1.jpg")).stdout
    assert [line.split(": ")[1].split(" (")[0] for line in answers.splitlines()] == [
        "sky",
        "red apple",
    ]
    bare.deliver()
    run = bare.store().run_of_model(md5(bare.model))
    assert run is not None
    assert run.data.tags["dataset"] == "folder"
    assert bare.store().scored(run)["test/recall/red apple"] > 0.5
    assert run.data.params["folder.size"] == "32"
    assert bare.git("status", "--porcelain", "--", "data") == ""

    assert ran(bare.dvc("repro").stdout) == []
    Image.new("RGB", (9, 9), COLOURS["sky"]).save(own / "sky/0.png")
    assert ran(bare.dvc("repro").stdout) == ["download", "preprocess", "train", "evaluate"]


def test_a_killed_preprocess_goes_on_to_the_same_bytes_and_reads_no_picture_twice(
    bare: Project,
) -> None:
    own, kept = bare.root / "data/own", bare.root / ".digits/pictures"
    for split, images in (("train", 60), ("validation", 1), ("test", 2)):
        paint(own / split, images)
    late = own / "train/sky/9.bmp"  # of the third block
    late_pixels = late.read_bytes()
    (own / "train/leaf/0.png").write_bytes(b"no picture")
    bare.params({**SETTINGS, "folder.skip_unreadable": True, "tracking.enabled": False})
    bare.run("python", "src/download.py")

    def made() -> dict[str, str]:
        return {path.name: md5(path) for path in (bare.root / "data/processed").glob("[!.]*")}

    bare.run("python", "src/preprocess.py")
    undisturbed = made()
    assert list(kept.iterdir()) == []
    shutil.rmtree(bare.root / "data/processed")
    late.unlink()
    os.mkfifo(late)  # who reads it waits for ever
    with started(bare, "python", "src/preprocess.py") as stage:
        until(lambda: len(list(kept.glob("*/*/*.safetensors"))) == 2)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    late.unlink()
    late.write_bytes(late_pixels)
    for name in ("leaf", "red apple"):  # which were read
        shutil.rmtree(own / "train" / name)
    told = bare.run("python", "src/preprocess.py").stdout
    assert "going on with the pictures that were not read yet" in told
    assert "1 of the pictures can't be read" in told
    assert made() == undisturbed
    assert list(kept.iterdir()) == []


def prepared(root: Path, **settings: object) -> None:
    """The two stages that know of the folder, in a project that is nothing else."""
    params = load(Paths(ROOT).params)
    own = replace(params.folder, **{"path": "own", "size": 16, **settings})  # type: ignore[arg-type]
    params = replace(params, download=replace(params.download, dataset="folder"), folder=own)
    for stage in (download.main, preprocess.main):
        stage(params, Paths(root), State(root), Mock())


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def broken(root: Path) -> None:
    for number in range(5):
        (root / "leaf" / f"{number}.png").write_bytes(b"no picture" + bytes([number]))


def one_image(root: Path) -> None:
    for path in list((root / "sky").iterdir())[1:]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (one_image, "class sky has too few images, 1: 1 to train and 0 to test; add some"),
        (lambda root: (root / "empty").mkdir(), "class empty has too few images, 0: 0 to train"),
        (
            broken,
            r"5 of the pictures can't be read: .*\.png is damaged or no .* and 2 more",
        ),
        (
            lambda root: (root / "sky/large.png").write_bytes(png(10_000, 10_000, bytes(9))),
            r"1 of the pictures .*sky/large\.png has more than 50,000,000 pixels; make it smaller",
        ),
        (
            lambda root: (root / "sky/bomb.png").write_bytes(png(100_000, 100_000, bytes(1 << 20))),
            r"sky/bomb\.png has more than 50,000,000 pixels; make it smaller",
        ),
    ],
    ids=["one image", "no image", "broken", "100 megapixels", "bomb"],
)
def test_pictures_that_can_not_be_used_are_named_in_one_line_and_nothing_is_written(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(paint(tmp_path / "own", 10))
    with pytest.raises(DataError, match=words) as caught:
        prepared(tmp_path)
    assert len(str(caught.value)) < 1000
    assert list((tmp_path / "data").rglob("*.safetensors")) == []
    assert list((tmp_path / "data").rglob("*.tmp")) == []


def test_what_is_unreadable_is_left_out_if_told_and_doubles_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = paint(tmp_path / "drawn", 10)
    for split in ("train", "test"):
        shutil.copytree(drawn, tmp_path / "own" / split)
    for path in (tmp_path / "own/test").glob("*/[1-9].*"):
        path.unlink()
    (tmp_path / "own/train/sky/1.jpg").write_bytes(b"no picture")
    prepared(tmp_path, skip_unreadable=True)
    told = capsys.readouterr().err
    assert "LEFT OUT, as folder.skip_unreadable says: 1 of the pictures can't be read: " in told
    assert "3 of test also in train" in told
    assert "classes have 10 (sky) to 11 (leaf) images: 1.1 times as many" in told
    splits = [dataset.read(Paths(tmp_path).split(name)) for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == 32
    assert len(splits[2]) == 3
    assert [split.facts.classes for split in splits] == [tuple(COLOURS)] * 3
    first = [Paths(tmp_path).split(name).read_bytes() for name in ("train", "validation", "test")]
    prepared(tmp_path, skip_unreadable=True)
    again = [Paths(tmp_path).split(name).read_bytes() for name in ("train", "validation", "test")]
    assert again == first


def test_images_too_small_for_the_net_are_refused_by_their_shape() -> None:
    new_net(1, 3, (1, 16, 16), 0.5, 0.5)
    with pytest.raises(NetError, match=r"for images \[1, 15, 15\]: .*; bring larger images"):
        new_net(1, 3, (1, 15, 15), 0.5, 0.5)
