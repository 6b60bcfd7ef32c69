"""The model card: what Hugging Face reads of it, that it leads back, and that it claims no more."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard

from conftest import Project
from digits.data.storage import read_arrays
from digits.evaluation import card
from digits.paths import Paths
from digits.training.history import History
from splice.files import md5


def made_in(root: Path) -> bytes:
    paths = Paths(root)
    card.write(paths, card.origin(paths), read_arrays(paths.model)[1], History.read(paths))
    return (paths.reports / "model_card.md").read_bytes()


def test_the_card_is_of_this_result_for_hugging_face_for_dvc_for_mlflow_and_for_python(
    finished: Project,
) -> None:
    path = finished.root / "reports" / "model_card.md"
    found = ModelCard.load(path)
    assert found.data.to_dict() == yaml.safe_load(found.content.split("---")[1])
    assert (found.data["license"], found.data["datasets"]) == ("cc-by-sa-3.0", ["mnist-5k"])
    results = {result.metric_type: result for result in found.data["eval_results"]}
    assert all(isinstance(result, EvalResult) for result in results.values())
    metrics = finished.metrics()
    assert {name: metrics[name] for name in results} == {
        name: result.metric_value for name, result in results.items()
    }
    assert f"**{metrics['accuracy']:.2%}**" in found.text

    locked = yaml.safe_load((finished.root / "dvc.lock").read_text())["stages"]["evaluate"]
    hashes = {known["path"]: known["md5"] for known in locked["deps"]}
    table = dict(re.findall(r"`(\S+)` \| `(\w{32})`", found.text))
    assert table["models/net.safetensors"] == md5(finished.model)
    assert {path: hash_ for path, hash_ in hashes.items() if path in table}.items() <= table.items()
    assert {out["path"]: out["md5"] for out in locked["outs"]}["reports/model_card.md"] == md5(path)

    for figure in re.findall(r"\]\((\S+)\)", found.text):
        assert (path.parent / figure).exists()
    (run,) = finished.store().tagged({"dvc.model": md5(finished.model)})
    assert finished.store().artifact(run.info.run_id, path.name) == path.read_bytes()
    assert f"path={path.name}" in run.data.tags["mlflow.note.content"]

    (example,) = re.findall(r"```python\n(.*?)```", found.text, re.DOTALL)
    (finished.root / "example.py").write_text(example)
    answered = finished.python("example.py", PYTHONPATH=str(finished.root / "src")).stdout
    assert re.fullmatch(r"\['\d', '\d', '\d'\]\n", answered)


def test_the_same_result_gives_the_same_card_in_another_folder(
    finished: Project, tmp_path: Path
) -> None:
    before = (finished.root / "reports" / "model_card.md").read_bytes()
    assert str(finished.root.parent).encode() not in before
    finished.root.rename(tmp_path / "elsewhere")
    assert made_in(tmp_path / "elsewhere") == before
    (tmp_path / "elsewhere").rename(finished.root)


def test_of_somebodys_own_images_the_card_says_that_it_knows_no_licence_and_keeps_odd_names(
    finished: Project,
) -> None:
    described = finished.root / "data" / "raw" / "dataset.json"
    document = json.loads(described.read_text())
    own = {"name": "folder", "title": "a|b_*c*", "source": "a folder of images"}
    own |= {"licence": "not stated"}
    described.unlink()
    described.write_text(json.dumps(document | own))
    text = made_in(finished.root).decode()
    found = ModelCard(text)
    assert (found.data["license"], found.data["datasets"]) == ("unknown", None)
    assert found.data["eval_results"][0].dataset_name == "a|b_*c*"
    assert "- a\\|b\\_\\*c\\*\n- Source: a folder of images\n- Licence: not stated\n" in text
    assert "somebody's own images" in text
    assert "MNIST" not in text
