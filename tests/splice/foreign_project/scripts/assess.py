"""Stage `assess`: how far the plane is from July's readings."""

import json
from pathlib import Path

import numpy as np
import yaml

import splice


def main() -> None:
    """Write the error, and hand it over."""
    readings = np.loadtxt("data/july.csv", delimiter=",", skiprows=1)
    plane = np.load("model/plane.npz")["plane"]
    error = readings[:, :-1] @ plane[:-1] + plane[-1] - readings[:, -1]
    join = splice.here()
    Path("reports/error.json").write_text(json.dumps({"error": float(abs(error).mean())}))
    Path("reports/assessed.json").write_text(json.dumps(join.identity()))
    join.evaluation(results(Path()))
    if reason := join.wait():
        print(f"assess: not delivered to MLflow yet: {reason}; `splice sync` tries again")


def results(root: Path) -> splice.Evaluation:
    """What lies in the project's files, made here or brought back by DVC."""
    june = np.loadtxt(root / "data/june.csv", delimiter=",", skiprows=1)
    curve = np.loadtxt(root / "reports/curve.csv", delimiter=",", skiprows=1)
    return splice.Evaluation(
        of=json.loads((root / "reports/assessed.json").read_text()),
        metrics=json.loads((root / "reports/error.json").read_text()),
        example=june[:2, :-1].tolist(),
        trained=splice.Trained(
            params=yaml.safe_load((root / "params.yaml").read_text())["fit"],
            data={"train": splice.Data("data/june.csv")},
            points=[("loss", loss, int(step)) for step, loss in curve],
        ),
    )


if __name__ == "__main__":
    splice.run("assess", main)
