"""Stage `fit`: a plane through June's readings, by gradient descent."""

from pathlib import Path

import numpy as np
import yaml

import splice


def main() -> None:
    """Write the plane and the curve of its error, and log both."""
    params = yaml.safe_load(Path("params.yaml").read_text())["fit"]
    readings = np.loadtxt("data/june.csv", delimiter=",", skiprows=1)
    weather, watts = readings[:, :-1], readings[:, -1]
    plane = np.random.default_rng(params["seed"]).normal(size=weather.shape[1] + 1)
    curve = []
    with splice.here().training(params=params, data={"train": "data/june.csv"}) as run:
        for step in range(params["rounds"]):
            error = weather @ plane[:-1] + plane[-1] - watts
            plane -= params["rate"] * np.append(error @ weather, error.sum()) / len(watts)
            if step % (params["rounds"] // 10) == 0:
                curve.append((step, float((error**2).mean())))
                run.points([("loss", curve[-1][1], step)])
        for folder in ("model", "reports"):
            Path(folder).mkdir(exist_ok=True)
        np.savez("model/plane.npz", plane=plane)
        np.savetxt(
            "reports/curve.csv", curve, ["%d", "%.17g"], ",", header="step,loss", comments=""
        )
        run.model(example=weather[:2].tolist())


if __name__ == "__main__":
    splice.run("fit", main)
