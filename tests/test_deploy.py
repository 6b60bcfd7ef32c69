"""The files for clusters say what Slurm and Kubernetes take, and fit one another."""

import json
import re
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from conftest import HERE

MANIFEST = HERE / "deploy" / "kubernetes" / "train.yaml"
SCHEMA = json.loads((HERE / "tests" / "schemas" / "kubernetes.json").read_text(encoding="utf-8"))
SBATCH = HERE / "deploy" / "train.sbatch"
DIRECTIVE = re.compile(
    r"#SBATCH --((job-name=[\w-]+)|(nodes|ntasks-per-node|gpus-per-node|cpus-per-task)=[1-9]\d*"
    r"|time=\d\d:\d\d:\d\d|requeue)"
)


def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "TrainingRuntime", "TrainJob"])
def test_each_manifest_fits_its_schema(kind: str) -> None:
    jsonschema.validate(manifests()[kind], SCHEMA)


@pytest.mark.parametrize(
    "change", [{"numNodes": "2"}, {"numProcsPerNode": 4}, {"command": "torchrun"}]
)
def test_a_mistake_in_a_manifest_is_noticed(change: dict[str, Any]) -> None:
    job = manifests()["TrainJob"]
    job["spec"]["trainer"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_the_manifests_refer_to_one_another() -> None:
    claim, runtime, job = manifests().values()
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert node["name"] == container["name"] == "node"  # by which Trainer finds it
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes}
    claimed = volumes["project"]["persistentVolumeClaim"]["claimName"]
    assert claimed == claim["metadata"]["name"]
    trainer = job["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    assert (HERE / trainer["args"][0]).is_file()


def test_the_slurm_file_is_bash_that_asks_for_one_torchrun_a_machine() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    lines = SBATCH.read_text(encoding="utf-8").splitlines()
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash"
    assert max(directives) < min(commands)  # behind them Slurm reads none
    assert [lines[i] for i in directives if not DIRECTIVE.fullmatch(lines[i])] == []
    assert "#SBATCH --ntasks-per-node=1" in lines
