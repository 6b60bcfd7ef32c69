"""What a training holds in memory of its own is not its images: they stay in their file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits.data import dataset
from digits.data.dataset import Facts

FEW, MANY = 1_000, 200_000  # images, of 784 bytes
TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from digits.data import dataset
from trainings import SMALL, Images, first_net, for_training, prepare, train, Group

def own_memory():
    status = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon", "RssShmem")))

split = dataset.read(Path(sys.argv[1]))
images = Images(torch.from_numpy(split.images), torch.from_numpy(split.labels).long())
recipe = replace(SMALL, engine=sys.argv[2], shift=1, log_every=5)
net, machine = first_net(recipe), prepare(recipe, Group())
engine = for_training(net, *images, recipe, machine)
few = Images(images.images[:64], images.labels[:64])
events = train(net, images, few, recipe, machine, engine)
next(events), next(events)
held = own_memory()
if engine.name != "torch":
    answers = engine.log_probabilities(net, images.images, 500)
print(held, own_memory())
"""


def split_of(count: int, path: Path) -> Path:
    labels = np.arange(count, dtype=np.uint8) % 10
    facts = Facts("generated", tuple("0123456789"))
    blocks = (np.full((some.size, 1, 28, 28), 20, np.uint8) for some in np.array_split(labels, 50))
    dataset.write_growing(path, blocks, facts, lambda: (labels, facts))
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_images_are_trained_on_and_answered_where_they_lie(tmp_path: Path, engine: str) -> None:
    held = []
    for count in (FEW, MANY):
        path = split_of(count, tmp_path / f"{count}.safetensors")
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, path, engine],
            env={"PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        held.append([1024 * int(kilobytes) for kilobytes in done.stdout.split()])
    for few, many in zip(*held, strict=True):
        assert many - few < MANY * 784 / 3  # labels and order have 8 bytes each, an answer 40
