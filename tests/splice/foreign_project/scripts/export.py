"""The plane as an MLflow model: MLflow keeps a copy of served.py and of the .npz, no pickle."""

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.models import infer_signature

SERVED = Path(__file__).with_name("served.py")


def export(model: Path, example: Any, folder: Path) -> None:
    """Write an MLflow model folder."""
    inputs = np.array(example)
    mlflow.pyfunc.save_model(
        folder,
        python_model=SERVED,
        artifacts={"plane": str(model)},
        signature=infer_signature(inputs, inputs[:, 0]),
        pip_requirements=["mlflow", "numpy"],
    )
