"""Changes that readers make to the Net, and what must hold whatever they make of it."""

from __future__ import annotations

import json

import pytest

from conftest import HERE, Project
from splice.files import md5

AS_WRITTEN = HERE / "tests/pipeline/as_written.py"
Edit = tuple[str, str]
NET, PREPROCESS = "src/digits/model/net.py", "src/preprocess.py"
LAST_LAYER = "        self.fc2 = nn.Linear(500, classes)\n"
FIRST_BLOCK = "        hidden = F.relu(F.max_pool2d(self.conv1(pixels), 2))\n"
SECOND_BLOCK = "        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))\n"
THIRD_BLOCK = "        hidden = F.relu(self.fc1(hidden.flatten(1)))\n"

EDITS: dict[str, list[Edit]] = {
    "other activations": [
        (FIRST_BLOCK, FIRST_BLOCK.replace("relu", "silu")),
        (THIRD_BLOCK, THIRD_BLOCK.replace("F.relu", "torch.tanh")),
    ],
    "fewer filters": [("(20, 50, 5)", "(20, 32, 5)"), ("50 * places", "32 * places")],
    "a third convolution": [
        (LAST_LAYER, LAST_LAYER + "        self.conv3 = nn.Conv2d(50, 50, 3, padding=1)\n"),
        (SECOND_BLOCK, SECOND_BLOCK + "        hidden = F.relu(self.conv3(hidden))\n"),
    ],
    "wider": [
        ("(channels, 20, 5)", "(channels, 32, 5)"),
        ("(20, 50, 5)", "(32, 64, 5)"),
        ("50 * places", "64 * places"),
    ],
    "batch normalization and dropout": [
        (LAST_LAYER, LAST_LAYER + "        self.norm = nn.BatchNorm2d(20)\n"),
        (LAST_LAYER, LAST_LAYER + "        self.dropout = nn.Dropout(0.3)\n"),
        ("self.conv1(pixels)", "self.norm(self.conv1(pixels))"),
        (THIRD_BLOCK, THIRD_BLOCK + "        hidden = self.dropout(hidden)\n"),
    ],
    "a layer of its own": [
        (LAST_LAYER, LAST_LAYER + "        self.scale = nn.Parameter(torch.randn(50, 1, 1))\n"),
        (SECOND_BLOCK, SECOND_BLOCK + "        hidden = hidden * (1 + 0.1 * self.scale)\n"),
    ],
    "colour": [],
}
COLOURED = (
    "Split(part.images[:, None], part.labels, carried)",
    "Split(np.stack([part.images, 255 - part.images, part.images // 2], 1), part.labels, carried)",
)


def edited(project: Project, name: str, edits: list[Edit]) -> None:
    path = project.root / name
    text = path.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def assert_reported_as_written(project: Project) -> None:
    """What metrics.json and MLflow's model say is what net.py gives with the weights saved."""
    store = project.store()
    run = store.run_of_model(md5(project.model))
    assert run is not None
    model = f"models:/{store.model_id(run.info.run_id)}"
    source = str(project.root / "src")
    done = project.python(str(AS_WRITTEN), model, MLFLOW_TRACKING_URI=store.uri, PYTHONPATH=source)
    found = json.loads(done.stdout.splitlines()[-1])
    metrics = project.metrics()
    assert metrics["accuracy"] == pytest.approx(found["accuracy"], abs=1e-6)
    assert metrics["loss"] == pytest.approx(found["loss"], abs=1e-5)
    assert run.data.metrics["test/accuracy"] == metrics["accuracy"]
    assert found["served"] < 1e-4
    assert metrics["accuracy"] > 0.5
