"""Printed digits on photographed paper, and how many of them the model reads.

python tests/harness/pages.py [--pages 1000] [--least 0.97] [--model models/net.safetensors]

Exits with 1 if less than the least share was read, of either kind of type.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from digits.paths import ROOT, Paths
from digits.predict import predict
from digits.source import of_file

FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"
SANS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSans-Bold", "cmtt10", "cmss10")
SERIF = ("DejaVuSerif", "STIXGeneral", "STIXGeneralItalic", "cmr10")


def page(
    dice: np.random.Generator, text: str, font: str, *, photo: bool = True
) -> npt.NDArray[np.uint8]:
    """A text in dark ink: on white, or on uneven, shadowed, noisy paper."""
    width, height = (int(side) for side in dice.integers(250, 700, 2))
    width *= 1 + len(text) // 2
    size = int(min(width / len(text), height) * dice.uniform(0.35, 0.75))
    letters = ImageFont.truetype(str(FONTS / f"{font}.ttf"), size)
    layer = Image.new("L", (width, height))
    left, top, right, bottom = ImageDraw.Draw(layer).textbbox((0, 0), text, font=letters)
    x = dice.uniform(0.1, 0.9) * (width - right + left)
    y = dice.uniform(0.1, 0.9) * (height - bottom + top)
    ImageDraw.Draw(layer).text((x - left, y - top), text, font=letters, fill=255)
    middle = x + (right - left) / 2, y + (bottom - top) / 2
    layer = layer.rotate(dice.uniform(-8, 8) / len(text), Image.Resampling.BICUBIC, center=middle)
    slant = dice.uniform(-0.15, 0.15)
    shear = (1, slant, -slant * middle[1], 0, 1, 0)
    layer = layer.transform(
        layer.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC
    ).filter(ImageFilter.GaussianBlur(dice.uniform(0.3, 2)))
    ink = np.asarray(layer, float) / 255
    if not photo:
        return (255 * (1 - ink)).round().astype(np.uint8)
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    paper = dice.uniform(150, 235) + dice.uniform(-60, 60) * across + dice.uniform(-60, 60) * down
    edge = (across - dice.uniform(0, 1)) * dice.normal() + (
        down - dice.uniform(0, 1)
    ) * dice.normal()
    paper = np.maximum(
        paper - dice.uniform(15, 50) / (1 + np.exp(-edge * dice.uniform(5, 60))), 110
    )
    grey = paper * (1 - ink) + dice.uniform(10, 70) * ink
    noisy = grey + dice.normal(0, dice.uniform(2, 8), ink.shape)
    return np.asarray(noisy.clip(0, 255), np.uint8)


def main() -> None:
    """Print how many pages were read right, by kind of font."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=1000, help="of each kind")
    parser.add_argument("--least", type=float, default=0.97, help="share, 0 to 1")
    parser.add_argument("--model", type=Path, default=Paths(ROOT).model)
    arguments = parser.parse_args()
    model = of_file(arguments.model, "")
    dice = np.random.default_rng(1)
    least = 1.0
    for kind, fonts in (("sans", SANS), ("serif", SERIF)):
        right, wrong = 0, Counter[str]()
        with tempfile.TemporaryDirectory() as folder:
            paths, truths = [], []
            for number in range(arguments.pages):
                truths.append(str(number % 10))
                pixels = page(dice, truths[-1], fonts[number % len(fonts)], photo=number % 3 > 0)
                paths.append(Path(folder, f"{number}.png"))
                Image.fromarray(pixels).save(paths[-1])
            for truth, answer in zip(truths, predict(model, paths), strict=True):
                said = "".join(guess.name for guess in answer.guesses)
                right += said == truth
                wrong.update([f"{truth} as {said or 'nothing'}"] if said != truth else [])
        often = ", ".join(f"{what} {count} times" for what, count in wrong.most_common(3))
        share = f"{right} of {arguments.pages} pages read, {right / arguments.pages:.1%}"
        print(f"{kind}: {share}; {often}")
        least = min(least, right / arguments.pages)
    sys.exit(int(least < arguments.least))


if __name__ == "__main__":
    main()
