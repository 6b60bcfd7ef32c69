"""The logged model where nothing but its own requirements is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from conftest import Project
from digits.data import dataset
from digits.model.weights import load_net
from splice.files import md5

SERVED = """
import importlib.util, json, sys
import uvicorn, mlflow.pyfunc
from mlflow.pyfunc import scoring_server
model = mlflow.pyfunc.load_model(sys.argv[1])
body = open(sys.argv[2]).read()
schema = model.metadata.get_input_schema()
answer = scoring_server.invocations(body, "application/json", model, schema)
others = [name for name in ("digits", "splice", "dvc", "torchvision", "safetensors")
          if importlib.util.find_spec(name)]
print(json.dumps([answer.status, json.loads(answer.response), model.metadata.metadata, others]))
"""


def needed(requirements: list[str], seen: set[str]) -> Iterator[Distribution]:
    """What an installer would bring for requirements, as it is installed here."""
    for text in requirements:
        wanted = Requirement(text)
        extras = wanted.extras or {""}
        if wanted.marker and not any(wanted.marker.evaluate({"extra": each}) for each in extras):
            continue
        key = f"{wanted.name.lower()}{sorted(extras)}"
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # then it fails there if it is missed
        assert wanted.specifier.contains(found.version, prereleases=True), text
        yield found
        inner = [
            line
            for line in found.requires or ()
            if not (marker := Requirement(line).marker)
            or any(marker.evaluate({"extra": each}) for each in extras)
        ]
        yield from needed([line.partition(";")[0] for line in inner], seen)


def environment(folder: Path, requirements: list[str]) -> Path:
    """A new environment with requirements and what they need, linked from this one; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for found in needed(requirements, set()):
        for name in {path.parts[0] for path in found.files or () if path.parts[0] != ".."}:
            source = Path(str(found.locate_file(name)))
            if source.exists() and not (site / name).exists():
                (site / name).symlink_to(source)
    return folder / "bin" / "python"


@pytest.mark.long
def test_its_own_requirements_are_enough_to_load_and_to_serve_it(
    finished: Project, tmp_path: Path
) -> None:
    run = finished.store().run_of_model(md5(finished.model))
    assert run is not None
    logged = finished.store().client.get_logged_model(
        str(finished.store().model_id(run.info.run_id))
    )
    folder = Path(logged.artifact_location.removeprefix("file://"))
    requirements = (folder / "requirements.txt").read_text().splitlines()
    images = dataset.read(finished.root / "data/processed/test.safetensors").images[:3]
    (tmp_path / "body.json").write_text(json.dumps({"inputs": images.tolist()}))
    python = environment(tmp_path / "new", requirements)
    env = finished.env | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [python, "-I", "-c", SERVED, folder, tmp_path / "body.json"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    status, answer, metadata, others = json.loads(done.stdout.splitlines()[-1])
    assert (status, others) == (200, [])
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    net, _ = load_net(finished.model)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(answer["predictions"], expected, rtol=0, atol=1e-4)
