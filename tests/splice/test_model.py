"""MLflow's copy of a model stands on its own: raw pixels in, log-probabilities out, no pickle."""

import io
import json
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import torch

from conftest import Project
from digits.data import dataset
from digits.model.weights import load_net
from splice.files import md5

IN_A_FRESH_PROCESS = """
import json, sys
sys.modules["digits"] = None  # importing it fails, installed or not
import mlflow.pyfunc, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
images = numpy.load(sys.argv[2])
print(json.dumps([numpy.asarray(model.predict(images[:n])).tolist() for n in (1, 3, 7)]))
"""


def test_the_logged_model_needs_none_of_this_project_and_answers_as_the_net(
    finished: Project, tmp_path: Path
) -> None:
    store = finished.store()
    run = store.run_of_model(md5(finished.model))
    assert run is not None
    model_id = store.model_id(run.info.run_id)
    images = dataset.read(finished.root / "data/processed/test.safetensors").images[:7]
    np.save(tmp_path / "images.npy", images)
    done = finished.run(
        "python",
        "-P",
        "-c",
        IN_A_FRESH_PROCESS,
        f"models:/{model_id}",
        str(tmp_path / "images.npy"),
        MLFLOW_TRACKING_URI=store.uri,
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    net, _ = load_net(finished.model)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    for count, answer in zip((1, 3, 7), answers, strict=True):
        np.testing.assert_allclose(answer, expected[:count], rtol=0, atol=1e-5)


def test_the_logged_model_holds_no_pickled_object(finished: Project) -> None:
    store = finished.store()
    run = store.run_of_model(md5(finished.model))
    assert run is not None
    logged = store.client.get_logged_model(str(store.model_id(run.info.run_id)))
    folder = Path(logged.artifact_location.removeprefix("file://"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    records = {path.name: path.read_bytes() for path in files}
    assert "model.pt2" in records
    with zipfile.ZipFile(io.BytesIO(records.pop("model.pt2"))) as archive:
        records |= {name: archive.read(name) for name in archive.namelist()}
    for name, content in records.items():
        if name == "model/data/sample_inputs/model.pt":  # which torch.export.load unpickles
            with zipfile.ZipFile(io.BytesIO(content)) as saved:
                told = pickletools.genops(saved.read("archive/data.pkl"))
                assert [opcode.name for opcode, *_ in told] == ["PROTO", "EMPTY_TUPLE", "STOP"]
        else:
            assert not name.endswith((".pkl", ".pickle", ".pth", ".pt"))
            assert not zipfile.is_zipfile(io.BytesIO(content))
            assert content[:1] != b"\x80" or name.startswith("model/data/weights/")
    configs = [name for name in records if name.endswith("_config.json")]
    assert len(configs) == 2
    for name in configs:
        entries = json.loads(records[name])["config"].values()
        assert not [entry for entry in entries if entry["use_pickle"] is not False]
