"""Pictures to predict on: any size, either ground; bad ones refused in one line."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from conftest import Project
from digits import ink
from digits.data import dataset
from digits.data.picture import read_picture
from digits.errors import DataError
from digits.model.weights import load_net
from digits.predict import reader_for
from harness import pages

READ = reader_for({"dataset": "mnist", "shape": [1, 28, 28]})


def grey(path: Path) -> npt.NDArray[np.uint8]:
    (found,) = READ(path)
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


def test_a_clean_stroke_of_any_size_and_place_becomes_an_image_as_mnist_has_them(
    digit: Image.Image, tmp_path: Path
) -> None:
    found = []
    for side, place in ((200, (20, 10)), (600, (380, 30)), (900, (5, 600))):
        canvas = Image.new("L", (side, side), 255)
        stroke = digit.resize((side // 4, side // 4), Image.Resampling.NEAREST)
        canvas.paste(0, place, stroke)
        found.append(grey(saved(canvas, tmp_path / f"{side}.png")).astype(int))
    for image in found:
        rows, columns = np.nonzero(image > 127)
        assert np.ptp(rows) in (16, 17)
        assert abs(rows.mean() - 13.5) < 1
        assert abs(columns.mean() - 13.5) < 1
        assert 2 <= np.ptp(columns) + 1 <= 4


@pytest.mark.parametrize("photo", [False, True])
def test_printed_digits_on_any_paper_are_found_one_by_one_and_in_order(photo: bool) -> None:
    dice = np.random.default_rng(1)
    found = [len(ink.find(pages.page(dice, "5", "DejaVuSans", photo=photo), 28)) for _ in range(25)]
    assert found.count(1) >= 24
    several = [ink.find(pages.page(dice, "4071", "cmtt10", photo=photo), 28) for _ in range(12)]
    assert [len(images) for images in several].count(4) >= 11
    one = next(images[3] for images in several if len(images) == 4)
    assert np.ptp(np.nonzero(one > 127)[1]) < 14  # the narrow one is the last


@pytest.mark.parametrize("noise", [0, 3, 25])
def test_a_blank_page_has_nothing_on_it(noise: int) -> None:
    dice = np.random.default_rng(1)
    slope = np.mgrid[0:300, 0:400][1] / 8
    blank = (200 - slope + dice.normal(0, noise, (300, 400))).clip(0, 255).astype(np.uint8)
    assert ink.find(blank, 28) == []
    assert ink.find(blank[:1, :1], 28) == []


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
    net, _ = load_net(finished_project.model)
    with torch.no_grad():
        probability = net.eval()(torch.from_numpy(test.images[:40])).exp().max(1).values
    as_json = finished_project.digits("predict", "--json", str(tmp_path)).stdout.splitlines()
    answers = {answer["picture"]: answer["found"] for answer in map(json.loads, as_json)}
    assert len(answers) == 40
    for path, expected in zip(paths, probability, strict=True):
        (guess,) = answers[str(path)]
        assert guess["probability"] == pytest.approx(float(expected), abs=1e-5)
        assert guess["runner_up_probability"] < guess["probability"]
    unsure = finished_project.digits("predict", str(paths[0]), "--sure", "1").stdout
    assert unsure.startswith(f"{paths[0]}: not known: ")


def test_a_program_is_told_of_each_thing_whether_it_is_known_and_of_the_rest_what_is_wrong(
    finished_project: Project, tmp_path: Path
) -> None:
    test = dataset.read(finished_project.root / "data" / "processed" / "test.safetensors")
    one = saved(Image.fromarray(test.images[0][0]), tmp_path / "one.png")
    dice = np.random.default_rng(1)
    line = saved(Image.fromarray(pages.page(dice, "407", "DejaVuSans")), tmp_path / "line.png")
    blank = saved(Image.new("L", (90, 60), 255), tmp_path / "blank.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"GIF89a")
    given = [str(path) for path in (one, line, blank, broken)]

    def asked(*arguments: str) -> tuple[list[str], list[str]]:
        """What is printed for programs, and for people on stderr."""
        done = finished_project.digits("predict", *arguments, check=False)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout
        lines = done.stdout.splitlines()
        ours = [line for line in lines if line.startswith("digits predict: ")]
        return [line for line in lines if line not in ours], ours

    as_text, complaints = asked(*given)
    assert complaints[0].startswith(f"digits predict: {broken} is damaged or no picture")
    assert complaints[1:] == ["digits predict: 1 of 4 pictures could not be read"]
    assert as_text[2:] == [f"{blank}: nothing on it"]

    as_json = [json.loads(line) for line in asked("--json", *given)[0]]
    assert [answer["picture"] for answer in as_json] == given
    assert [len(answer["found"]) for answer in as_json] == [1, 3, 0, 0]
    assert [answer["error"] for answer in as_json[:3]] == ["", "", ""]
    assert as_json[3]["error"] in complaints[0]
    found = [each for answer in as_json for each in answer["found"]]
    assert [each["known"] for each in found] == [each["probability"] >= 0.5 for each in found]
    several = as_json[1]["found"]
    for key in ("name", "runner_up"):
        assert "".join(each[key] for each in several) in as_text[1]

    least = min(each["probability"] for each in found)
    rows = [*csv.DictReader(asked("--csv", "--sure", str(least + 1e-9), *given)[0])]
    assert [(row["picture"], row["place"]) for row in rows] == [
        *((given[0], "1"), (given[1], "1"), (given[1], "2"), (given[1], "3")),
        *((given[2], ""), (given[3], "")),
    ]
    assert [row["name"] for row in rows[:4]] == [each["name"] for each in found]
    assert [row["known"] for row in rows[:4]].count("False") == 1
    assert [row["note"] for row in rows] == [*[""] * 4, "nothing on it", as_json[3]["error"]]


@pytest.mark.parametrize("sure", ["1.5", "-0.1", "nan", "50"])
def test_a_probability_that_is_none_is_refused_in_a_line(sure: str, bare: Project) -> None:
    refused = bare.digits("predict", "a.png", f"--sure={sure}", check=False)
    assert refused.returncode == 1
    assert refused.stdout == (
        f"digits predict: --sure is {sure}, which is no probability; give one from 0 to 1\n"
    )
