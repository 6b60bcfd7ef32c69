"""The model's answer to pictures from anywhere, brought into the form it was trained on."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from digits.errors import DataError
from digits.model.weights import load_net
from digits.training.engine import for_answers

BATCH = 500
MAX_PIXELS = 50_000_000  # that a picture may unpack to
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong is said once, by us


class Prediction(NamedTuple):
    """The most probable class, and its probability 0..1."""

    name: str
    probability: float


def predict(model: Path, pictures: list[Path]) -> list[Prediction]:
    """What a model file takes each picture for, on the CPU.

    Raises:
        DataError: the model or a picture is missing, damaged, too large or something else.
    """
    net, description = load_net(model)
    pixels = np.stack([read_picture(path, description["shape"]) for path in pictures])
    images = torch.from_numpy(pixels)
    output = for_answers(net, images).log_probabilities(net, images, BATCH)
    best = output.double().exp().max(1)
    return [
        Prediction(str(description["classes"][index]), probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def read_picture(path: Path, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """A picture as a model takes it: uint8 `[channels, height, width]`, one channel or three.

    Another size is fitted in whole, keeping its proportions; what is transparent counts as white
    paper. Grey ones are light on dark, as the data sets have them: dark on light (judged by the
    border) is inverted. Of several frames, the first.

    Raises:
        DataError: missing, damaged, of no known format, of more than 50 million pixels, or the
            model takes other channels.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"the model takes {channels} channels; pictures have 1 or 3")
    if not path.is_file():
        raise DataError(f"{path} is no file; give the path of a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(
                        f"{path} has {picture.width:,}x{picture.height:,} pixels, "
                        f"allowed are {MAX_PIXELS:,}; make it smaller"
                    )
                found = _converted(
                    ImageOps.exif_transpose(picture), "L" if channels == 1 else "RGB"
                )
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {path}: {error.strerror}; make it readable") from error
        # Pillow's decoders raise whatever a damaged file makes of them.
        raise DataError(
            f"{path} is damaged or no picture ({', '.join(FORMATS)}); save it anew as PNG"
        ) from error
    if channels == 1 and _border(np.asarray(found)) > 127:
        found = ImageOps.invert(found)
    if found.size != (width, height):
        found = ImageOps.pad(found, (width, height), Image.Resampling.LANCZOS, color=0)
    return np.array(found, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith(("I", "F")):  # 16 and 32 bits, which Pillow would cut off at 255
        values = np.asarray(picture, np.float64)
        high = 65535.0 if picture.mode.startswith("I;16") else float(values.max(initial=1.0))
        picture = Image.fromarray((values / high * 255).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert(mode)


def _border(pixels: npt.NDArray[np.uint8]) -> float:
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return float(np.median(np.concatenate(edges)))
