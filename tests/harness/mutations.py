"""Feed mutated inputs to every parser; only the defined errors may come out.

    python tests/harness/mutations.py [--count 16000] [--seed 1]

Every input starts as a good file, is damaged by a seeded mutation, and is read. Prints how many
were read, how many were refused by a UserError of one line, and what else came out; exits 1 if
anything else did.
"""

import argparse
import gzip
import io
import json
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from digits import params  # noqa: E402
from digits.data import dataset, formats, storage  # noqa: E402
from digits.data.dataset import PixelFacts, Split  # noqa: E402
from digits.data.picture import read_picture  # noqa: E402
from digits.errors import UserError  # noqa: E402
from digits.model import weights  # noqa: E402
from digits.model.net import Net  # noqa: E402
from digits.training.checkpoint import Checkpoint  # noqa: E402
from splice import outbox  # noqa: E402

Mutation = Callable[[random.Random, bytes], bytes]

TOKENS = [
    *(b"\0 \xff \xff\xff\xff\xff\xff\xff\xff \n \r\n , : - [ ] { } \" ' & * ! | > % @ `").split(
        b" "
    ),
    *b"nan inf -1 1e999 0x 99999999999999999999 null true ~ {} [] !!int !!python/none".split(),
    *b"U8 F32 BF16 F8_E4M3 I64 shape data_offsets dtype __metadata__ metrics close time".split(),
    "٣".encode(),
    "é".encode(),
    b"\xed\xa0\x80",
    b"[" * 3000,
    b"9" * 5000,
]


@dataclass(frozen=True)
class Parser:
    """A reader, a good file for it, and how a damaged one is put on disk."""

    name: str
    read: Callable[[Path], object]
    good: bytes
    mutate: Mutation
    file: str = "file"
    packed: Callable[[bytes], bytes] = bytes


def bit(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :]


def byte(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([dice.randrange(256)]) + data[place + 1 :]


def token(dice: random.Random, data: bytes) -> bytes:
    place = dice.randrange(len(data) + 1)
    return data[:place] + dice.choice(TOKENS) + data[place + dice.choice((0, 1, 4)) :]


def cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def drop(dice: random.Random, data: bytes) -> bytes:
    start = dice.randrange(len(data))
    return data[:start] + data[start + dice.randint(1, 64) :]


def double(dice: random.Random, data: bytes) -> bytes:
    start = dice.randrange(len(data))
    return data[: start + dice.randint(1, 64)] + data[start:]


def zeros(dice: random.Random, data: bytes) -> bytes:
    start = dice.randrange(len(data))
    length = dice.randint(1, 4096)
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def number(dice: random.Random, data: bytes) -> bytes:
    """Another number in the place of one of the text."""
    places = [place for place in range(len(data)) if data[place : place + 1].isdigit()]
    if not places:
        return byte(dice, data)
    place = dice.choice(places)
    value = dice.choice((b"0", b"-1", b"9" * 19, b"1.5", b"1e400", b"NaN", b'"x"', b"null", b"[]"))
    return data[:place] + value + data[place + 1 :]


MEMBER = "gzip/images.gz"
MUTATIONS = (bit, byte, token, cut, drop, double, zeros, number)


def plain(dice: random.Random, data: bytes) -> bytes:
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        data = dice.choice(MUTATIONS)(dice, data) if data else data
    return data


def zipped(dice: random.Random, data: bytes) -> bytes:
    """Damaged inside the gzip, or the gzip itself."""
    if dice.random() < 0.7:
        return gzip.compress(plain(dice, data), 1)
    return plain(dice, gzip.compress(data, 1))


def archived(data: bytes) -> bytes:
    """As the one member of a zip."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, gzip.compress(data, 1))
    return memory.getvalue()


def in_archive(dice: random.Random, data: bytes) -> bytes:
    """Damaged inside the zip, or the zip itself."""
    return archived(plain(dice, data)) if dice.random() < 0.3 else plain(dice, archived(data))


def tensors(dice: random.Random, data: bytes) -> bytes:
    """Mostly the header, with its length mended or not; sometimes the body."""
    if dice.random() < 0.2:
        return plain(dice, data)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = plain(dice, data[8 : 8 + length]), data[8 + length :]
    if dice.random() < 0.7:
        length = len(header)
    return struct.pack("<Q", length) + header + body


def parsers(folder: Path) -> list[Parser]:
    """Every parser with a small good file, written by the code that writes the real ones."""
    dice = np.random.default_rng(0)
    images = dice.integers(0, 256, (3, 28, 28), np.uint8)
    idx = struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()
    qmnist = struct.pack(">HBB2I", 0, 0x0C, 2, 3, 8) + bytes(3 * 8 * 4)
    row = b",".join(str(value).encode() for value in range(9)) + b"\n"

    def made(write: Callable[[Path], None]) -> bytes:
        path = folder / "good"
        write(path)
        return path.read_bytes()

    drawing = Image.fromarray(images[0])
    facts = PixelFacts("mnist", ("0", "1", "2"), 0.1, 0.3)
    split = Split(images.reshape(-1, 1, 28, 28), np.arange(3, dtype=np.uint8), facts)
    torch.manual_seed(0)
    net = {name: value.clone() for name, value in Net().state_dict().items()}
    classes = {"classes": list("0123456789"), "shape": [1, 28, 28]}
    moments = {"step": torch.tensor(7), "net.fc2.bias": torch.zeros(10)}
    history = {"steps": [[0, 0, 2.3, 0.1]], "epochs": []}
    records = [
        {"open": {"experiment": "mnist", "key": "abc", "tags": {}, "params": {"train.seed": 1}}},
        {"metrics": [["train/loss", 2.3, 0], ["train/loss", 2.2, 1]], "time": 1_700_000_000_000},
        {"close": {"status": "KILLED", "reason": "", "end": 1_700_000_000_001}},
    ]
    journal = b"".join(json.dumps(record).encode() + b"\n" for record in records)

    def read_journal(path: Path) -> None:
        list(outbox.records(path.parent))
        outbox.is_finished(path.parent)

    return [
        Parser("params.yaml", params.load, (ROOT / "params.yaml").read_bytes(), plain),
        Parser(
            "recipe",
            partial(params.overrides, params=ROOT / "params.yaml"),
            (ROOT / "recipes" / "original.yaml").read_bytes(),
            plain,
        ),
        Parser("idx", lambda path: formats.read_idx(path, 3), idx, zipped, packed=gzip.compress),
        Parser(
            "idx in zip",
            lambda path: formats.read_idx(path, 3, MEMBER),
            idx,
            in_archive,
            packed=archived,
        ),
        Parser("qmnist", formats.read_qmnist_labels, qmnist, zipped, packed=gzip.compress),
        Parser("csv", formats.read_csv, row * 5, zipped, packed=gzip.compress),
        Parser("split", dataset.read, made(lambda path: dataset.write(path, split)), tensors),
        Parser(
            "model",
            weights.load_net,
            made(lambda path: weights.save(path, net, classes)),
            tensors,
        ),
        Parser(
            "checkpoint",
            lambda path: Checkpoint(path, "key").read(),
            made(lambda path: Checkpoint(path, "key").write(moments, history)),
            tensors,
        ),
        Parser(
            "table",
            lambda path: storage.read_table(path, ("step", "loss")),
            made(lambda path: storage.write_table(path, ("step", "loss"), [(0, 2.3), (1, None)])),
            plain,
        ),
        *(
            Parser(
                kind,
                partial(read_picture, shape=(1, 28, 28)),
                made(partial(drawing.save, format=kind)),
                plain,
            )
            for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp")
        ),
        Parser("journal", read_journal, journal, plain, outbox.JOURNAL),
    ]


def outcome(parser: Parser, path: Path) -> str:
    """read, refused, or what else came out."""
    try:
        parser.read(path)
    except UserError as error:
        return "refused" if 0 < len(str(error)) < 2000 else f"refused at length: {error!s:.200}"
    except BaseException as error:  # a panic of a native parser is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error!s:.200}"
    return "read"


def main(arguments: list[str] | None = None) -> int:
    """Run, print the counts, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=16_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    total: Counter[str] = Counter()
    print(f"{'parser':12} {'inputs':>7} {'read':>7} {'refused':>8} {'other':>6} {'slowest':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everyone = parsers(folder)
        for one in everyone:
            dice = random.Random(f"{chosen.seed} {one.name}")
            path = folder / one.file
            path.write_bytes(one.packed(one.good))
            if outcome(one, path) != "read":
                raise AssertionError(f"{one.name}: the good file is refused")
            counts: Counter[str] = Counter()
            slowest = 0.0
            for index in range(-(-chosen.count // len(everyone))):
                path.write_bytes(one.mutate(dice, one.good))
                began = time.perf_counter()
                found = outcome(one, path)
                slowest = max(slowest, time.perf_counter() - began)
                counts[found if found in ("read", "refused") else "other"] += 1
                if found not in ("read", "refused"):
                    print(f"{one.name} input {index} of seed {chosen.seed}: {found}")
            path.unlink()
            inputs = sum(counts.values())
            print(
                f"{one.name:12} {inputs:7,} {counts['read']:7,} {counts['refused']:8,} "
                f"{counts['other']:6,} {slowest * 1000:6.0f} ms"
            )
            total += counts
    print(
        f"{'all':12} {sum(total.values()):7,} {total['read']:7,} {total['refused']:8,} "
        f"{total['other']:6,}"
    )
    return 1 if total["other"] else 0


if __name__ == "__main__":
    sys.exit(main())
