"""Pictures to predict on: any size, either ground; bad ones refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from conftest import Project
from digits.data import dataset
from digits.data.picture import read_picture
from digits.errors import DataError


def grey(path: Path) -> npt.NDArray[np.uint8]:
    found = read_picture(path, (1, 28, 28), drawn=True)
    return found.reshape(28, 28)


@pytest.fixture
def digit() -> Image.Image:
    """A light stroke on black, as the data set has them."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[6:22, 13:15] = 255
    return Image.fromarray(pixels)


def saved(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


def test_a_picture_of_the_right_size_is_taken_as_it_is(digit: Image.Image, tmp_path: Path) -> None:
    assert np.array_equal(grey(saved(digit, tmp_path / "a.png")), np.asarray(digit))


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a.pgm", "a.tiff", "a.webp", "a.jpg"])
def test_every_format_gives_the_same_picture(digit: Image.Image, tmp_path: Path, name: str) -> None:
    found = grey(saved(digit, tmp_path / name)).astype(int)
    assert np.abs(found - np.asarray(digit)).mean() < 3  # JPEG and WebP lose a little


def test_dark_on_light_is_inverted_and_transparent_is_paper(
    digit: Image.Image, tmp_path: Path
) -> None:
    light = np.asarray(digit)
    paper = saved(Image.fromarray(255 - light), tmp_path / "paper.png")
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[..., 3] = light
    clear = saved(Image.fromarray(ink), tmp_path / "clear.png")
    deep = saved(Image.fromarray(light.astype(np.uint16) * 257), tmp_path / "deep.png")
    for path in (paper, clear, deep):
        assert np.array_equal(grey(path), light), path


def test_another_size_is_fitted_in_whole(digit: Image.Image, tmp_path: Path) -> None:
    large = digit.resize((280, 280), Image.Resampling.NEAREST)
    wide = Image.new("L", (560, 280))
    wide.paste(large, (140, 0))
    found = grey(saved(large, tmp_path / "large.png")).astype(int)
    assert np.abs(found - np.asarray(digit)).mean() < 6
    narrow = grey(saved(wide, tmp_path / "wide.png"))
    assert not narrow[:7].any()
    assert not narrow[-7:].any()
    assert narrow[8:20].any()


def test_a_model_of_three_channels_gets_colours(tmp_path: Path) -> None:
    red = saved(Image.new("RGB", (20, 40), (200, 0, 0)), tmp_path / "red.png")
    found = read_picture(red, (3, 16, 16))
    assert found.shape == (3, 16, 16)
    assert found[0, 8, 8] == 200
    assert not found[1:].any()
    with pytest.raises(DataError, match="takes 4 channels"):
        read_picture(red, (4, 16, 16))


def bomb(path: Path) -> None:
    """A few bytes that promise 10,000 million pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def half(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "damage",
    [
        lambda _path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        lambda path: path.write_text("<!doctype html><title>Sign in</title>"),
        lambda path: path.symlink_to("/nowhere/at/all"),
        half,
        bomb,
    ],
    ids=["missing", "folder", "empty", "bytes", "page", "link", "half", "bomb"],
)
def test_what_is_no_picture_is_refused_by_name(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.png"
    damage(path)
    with pytest.raises(DataError, match=r"a\.png"):
        grey(path)


def test_the_command_names_the_digits_of_the_test_split(
    finished_project: Project, tmp_path: Path
) -> None:
    test = dataset.read(finished_project.root / "data" / "processed" / "test.safetensors")
    paths = [tmp_path / f"{index}.png" for index in range(40)]
    for path, image in zip(paths, test.images, strict=False):
        Image.fromarray(image[0]).save(path)
    lines = finished_project.digits("predict", *map(str, paths)).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == list(map(str, paths))
    right = sum(
        line.split(": ")[1][0] == str(label)
        for line, label in zip(lines, test.labels, strict=False)
    )
    assert right > 20  # of 40; a small training on few images, but far from chance

    paths[3].write_bytes(b"GIF89a")
    refused = finished_project.digits("predict", *map(str, paths), check=False)
    assert refused.returncode == 1
    assert refused.stdout.strip().splitlines()[-1].startswith(f"digits predict: {paths[3]} is ")
    assert "Traceback" not in refused.stdout
