"""What lies in models/ and reports/, as an entry for the outbox, and whether MLflow knows it.

All of it comes from files, so it makes no difference whether the stages ran here or DVC
restored their results.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from digits import lineage, processed, tensorfile
from digits.errors import DataError
from digits.files import md5, read_json
from digits.params import Params
from digits.project import Paths, State
from digits.tracking import outbox

FIGURES = ("loss.png", "confusion.png", "mistakes.png")


def identity(params: Params, paths: Paths) -> dict[str, Any]:
    """What was judged, on what, and how: two evaluations that agree in it are the same one."""
    how = {name: getattr(params.evaluate, name) for name in ("calibration_bins",)}
    return {"model": md5(paths.model), "test": md5(paths.split("test")), "how": how}


def is_told(paths: Paths, box: Path) -> bool:
    """Whether the store, as it is configured now, was told of these results already."""
    told = outbox.told(box)
    return _digest(read_json(paths.reports / "evaluation.json")) in told


def put(params: Params, paths: Paths, state: State) -> Path:
    """Put the results into the outbox; give the entry's folder.

    Raises:
        DataError: a file is missing, or the reports are of another model or test split.
    """
    same = identity(params, paths)
    if read_json(paths.reports / "evaluation.json") != same:
        raise DataError(
            f"{paths.reports} was not written for this model, test split and parameters; "
            "run `dvc repro`"
        )
    _, description = tensorfile.read(paths.model)
    if not {"data", "dataset", "images", "params", "shape"} <= set(description):
        raise DataError(
            f"{paths.model} doesn't say what it was made from; delete it and run `dvc repro`"
        )
    test = processed.read(paths.split("test"))
    files = _artifacts(paths)
    carried = {
        "net.safetensors": paths.model,
        "history/steps.csv": paths.steps,
        "history/epochs.csv": paths.epochs,
    }
    registry = params.section("registry") | {"bins": params.evaluate.calibration_bins}
    if params.registry.promote == "auto":
        carried["test.safetensors"] = paths.split("test")
    digest = _digest(same)
    document = {
        "model": same["model"],
        "identity": digest,
        "time": outbox.now(),
        "experiment": params.tracking.experiment,
        "registry": registry,
        "scores": _flat_scores(paths),
        "params": params.flat("evaluate"),
        "files": sorted(files),
        "example": test.images[:2].tolist(),
        "dataset": {
            "name": f"{test.facts.dataset}-test",
            "digest": same["test"],
            "path": "data/processed/test.safetensors",
            "shape": list(test.images.shape),
        },
        **_lineage(paths, same, description),
    }
    return outbox.put_evaluation(state.outbox, digest, document, files | carried)


def _digest(same: Any) -> str:
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()


def _artifacts(paths: Paths) -> dict[str, Path]:
    names = ("metrics.json", "classes.json", "confusion.csv", "mistakes.csv")
    reports = {name: paths.reports / name for name in names}
    figures = {f"figures/{name}": paths.reports / "figures" / name for name in FIGURES}
    return reports | figures


def _flat_scores(paths: Paths) -> dict[str, float]:
    try:
        test = read_json(paths.reports / "metrics.json")["test"]
        flat = {f"test/{name}": float(value) for name, value in test.items()}
        for label, values in read_json(paths.reports / "classes.json").items():
            flat |= {f"test/{name}/{label}": float(value) for name, value in values.items()}
        return flat
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{paths.reports}/metrics.json or classes.json holds no such numbers as evaluate "
            "writes; run `dvc repro --force --single-item evaluate`"
        ) from error


def _lineage(paths: Paths, same: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """Tags of the evaluation; and name, tags, parameters and data of a run made for the model."""
    at = lineage.commit(paths.root)
    data = description["data"]
    where = {
        "model": ("models/net.safetensors", same["model"]),
        **{name: (f"data/processed/{name}.safetensors", hash_) for name, hash_ in data.items()},
        "test": ("data/processed/test.safetensors", same["test"]),
    }
    note = lineage.how_to_get(paths.root, at, where)
    restored = {
        "name": lineage.run_name(same["model"]).replace("train-", "restored-"),
        "tags": {
            **lineage.tags(paths.root, at),
            "dataset": description["dataset"],
            **{f"dvc.data.{name}": hash_ for name, hash_ in data.items()},
            "mlflow.note.content": "Restored by DVC, not trained here.\n\n" + note,
        },
        "params": description["params"],
        "datasets": {
            name: {
                "name": f"{description['dataset']}-{name}",
                "digest": hash_,
                "path": where[name][0],
                "shape": [description["images"][name], *description["shape"]],
            }
            for name, hash_ in data.items()
            if description["images"][name]
        },
    }
    tags = {"dvc.data.test": same["test"], "git.commit.evaluated": at.id}
    return {"tags": tags, "restored": restored}
