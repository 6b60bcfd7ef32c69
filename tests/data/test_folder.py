"""A folder of one's own images: what it may hold, and how pictures become arrays of one shape."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from digits.data import dataset, folder, picture
from digits.data.dataset import Facts, PixelFacts
from digits.data.picture import read_picture, read_pictures, read_resumably
from digits.errors import DataError
from splice.files import md5

SHAPE = (3, 16, 16)
RED = (200, 0, 0)


def painted(path: Path, colour: object = RED, mode: str = "RGB", size: object = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def filled(root: Path, names: Iterable[str]) -> Path:
    """A picture of its own for each name."""
    for number, name in enumerate(names):
        painted(root / name, (number % 256, number // 256, 9), size=(1, 1))
    return root


def test_classes_are_folders_and_splits_are_folders_above_them(tmp_path: Path) -> None:
    flat = filled(tmp_path / "flat", ["cat/1.png", "dog/1.png", "dog/.hidden.png", "train/1.png"])
    (flat / "LICENSE.txt").write_text("Free")
    found = folder.describe(flat)
    assert found.classes == ("cat", "dog", "train")
    assert found.files == {name: md5(flat / name) for name in found.files}
    assert [(folder.split_of(name), folder.class_of(name)) for name in found.files] == [
        ("", "cat"),
        ("", "dog"),
        ("", "train"),
    ]
    above = filled(tmp_path / "above", ["train/cat/1.png", "train/dog/1.png", "test/dog/2.png"])
    found = folder.describe(above)
    assert found.classes == ("cat", "dog")
    assert [folder.split_of(name) for name in found.files] == ["test", "train", "train"]


def emptied(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def linked_out(root: Path) -> None:
    (root / "cat" / "out.png").symlink_to(painted(root.parent / "elsewhere.png"))


def undecodable(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/\xff.png")).write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "which is no folder"),
        (emptied, "holds 0 folders of classes"),
        (lambda root: shutil.rmtree(root / "cat"), "holds 1 folders of classes, allowed are 2 to"),
        (lambda root: filled(root, [f"{n}/1.png" for n in range(1000)]), "holds 1,002 folders"),
        (lambda root: painted(root / "1.png"), r"1\.png lies in no class"),
        (lambda root: painted(root / "cat/more/1.png"), "more is a folder within a class"),
        (lambda root: painted(root / "a$b/1.png"), r"class a\$b in .* rename"),
        (lambda root: shutil.copy(root / "cat/1.png", root / "dog/9.png"), "cat/1.png and dog/9"),
        (linked_out, r"out\.png is a link to nowhere or out of"),
        (undecodable, r"'\\udcff.png', a name that isn't printable UTF-8"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name_with_the_cure(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    root = filled(tmp_path / "images", ["cat/1.png", "cat/2.png", "dog/1.png"])
    damage(root)
    with pytest.raises(DataError, match=words) as caught:
        folder.describe(root)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mode_is_brought_to_the_channels_asked_for(tmp_path: Path) -> None:
    deep = np.full((20, 20), 200 * 257, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    paths = [
        tmp_path / "deep.png",
        painted(tmp_path / "grey.png", 200, "L"),
        painted(tmp_path / "colour.png", (200, 200, 200)),
        painted(tmp_path / "solid.png", (200, 200, 200, 255), "RGBA"),
        painted(tmp_path / "cmyk.tiff", (55, 55, 55, 0), "CMYK"),
        painted(tmp_path / "palette.gif", (200, 200, 200)),
        painted(tmp_path / "bits.bmp", (200, 200, 200)),
        painted(tmp_path / "web.webp", (200, 200, 200)),
    ]
    for path in paths:
        for channels in (1, 3):
            found = read_picture(path, (channels, 16, 16))
            assert found.shape == (channels, 16, 16)
            assert np.abs(found.astype(int) - 200).max() <= 2, path


def test_a_picture_is_turned_as_exif_says_and_padded_or_cropped(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = RED  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    padded = read_picture(tmp_path / "a.png", SHAPE)[0]
    assert padded[:7, 4:12].min() > 150
    assert max(padded[9:].max(), padded[:, :4].max(), padded[:, 12:].max()) < 5
    assert read_picture(tmp_path / "a.png", SHAPE, "crop")[0][:6].min() > 150


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (5000, 2)])
def test_a_picture_that_is_hardly_more_than_a_line_stays_one(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    found = read_picture(painted(tmp_path / "line.png", size=size), SHAPE)[0]
    assert (found > 150).sum() == 16
    assert (found == 0).sum() == 15 * 16


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_photograph_is_made_as_small_as_its_whole_self_would_be(
    tmp_path: Path, fit: picture.Fit
) -> None:
    dice = np.random.default_rng(1)
    soft = Image.fromarray(dice.integers(0, 256, (6, 8, 3), np.uint8)).resize((800, 600))
    exif = Image.Exif()
    exif[0x0112] = 6
    soft.save(tmp_path / "a.jpg", quality=90, exif=exif)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png", exif=exif)
    for channels in (1, 3):
        small, whole = (
            read_picture(tmp_path / name, (channels, 28, 28), fit).astype(int)
            for name in ("a.jpg", "a.png")
        )
        assert np.abs(small - whole).max() <= 2


def test_many_pictures_come_in_order_and_in_bounds_from_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "BLOCK_IMAGES", 3)
    paths = [painted(tmp_path / f"{n}.png", (n, 0, 0)) for n in range(20)]
    paths[7].write_bytes(b"no picture")
    blocks = list(read_pictures([(path, md5(path)) for path in paths], SHAPE, "pad"))
    assert [len(block.readable) for block in blocks] == [3, 3, 3, 3, 3, 3, 2]
    values = np.concatenate([block.images[:, 0, 8, 8] for block in blocks])
    assert values.tolist() == [n for n in range(20) if n != 7]
    assert [reason for block in blocks for reason in block.reasons] == [
        f"{paths[7]} is damaged or no picture ({', '.join(picture.FORMATS)}); save it anew as PNG"
    ]
    with pytest.raises(DataError, match=r"2\.png has changed since the download stage"):
        list(read_pictures([(paths[2], md5(paths[3]))], SHAPE, "pad"))


def test_what_was_kept_of_pictures_is_taken_while_whole_and_read_again_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "BLOCK_IMAGES", 2)
    monkeypatch.setattr(picture, "_cores", lambda: 1)
    paths = [painted(tmp_path / f"{n}.png", (9 * n, 0, 0), size=(4, 4)) for n in range(5)]
    paths[1].write_bytes(b"no picture")
    files = [(path, md5(path)) for path in paths]

    def read() -> list[object]:
        blocks = list(read_resumably(files, (3, 4, 4), "pad", tmp_path / "kept"))
        images = np.concatenate([block.images for block in blocks]).tolist()
        return [images, *([block[1:] for block in blocks])]

    once = read()
    paths[0].unlink()
    assert read() == once
    kept = tmp_path / "kept/2.safetensors"
    whole = kept.read_bytes()
    for place in range(0, len(whole), 9):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read() == once
        assert kept.read_bytes() == whole


@pytest.mark.parametrize("classes", [2, 256, 257, 1000])
@pytest.mark.parametrize("odd", ["class {}", "клас «{}»"])
def test_a_split_that_grew_is_read_as_one_that_was_written_whole(
    tmp_path: Path, classes: int, odd: str
) -> None:
    known = Facts("folder", tuple(odd.format(number) for number in range(classes)))
    facts = PixelFacts(known.dataset, known.classes, 1 / 3, 1 / 7)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 3), np.uint8)
    labels = np.array([0, 1, classes - 1] * 2 + [1], dataset.label_type(classes))
    blocks: list[npt.NDArray[np.uint8]] = [images[:0], images[:5], images[5:]]
    path = tmp_path / "train.safetensors"
    dataset.write_growing(path, blocks, known, lambda: (labels, facts))
    found = dataset.read(path)
    assert found.facts == facts
    assert np.array_equal(found.images, images)
    assert np.array_equal(found.labels, labels)
