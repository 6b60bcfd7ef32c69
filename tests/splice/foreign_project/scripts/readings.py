"""Stage `readings`: what a solar panel would give, by sun, temperature and dust."""

from pathlib import Path

import numpy as np
import yaml

HEADER = "sun,temperature,dust,watts"


def main() -> None:
    """Write a month to learn from and a month to be judged on."""
    days = yaml.safe_load(Path("params.yaml").read_text())["readings"]["days"]
    for seed, month in enumerate(("june", "july")):
        random = np.random.default_rng(seed)
        weather = random.uniform(0, 1, (days, 3))
        watts = weather @ [200, -30, -50] + 20 + random.normal(0, 5, days)
        rows = np.column_stack([weather, watts])
        Path("data").mkdir(exist_ok=True)
        np.savetxt(f"data/{month}.csv", rows, "%.4f", ",", header=HEADER, comments="")


if __name__ == "__main__":
    main()
