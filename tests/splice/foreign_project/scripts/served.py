"""What MLflow runs when the plane is loaded or served."""

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class Plane(PythonModel):
    """Sun, temperature and dust `[N, 3]` to watts `[N]`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the plane from the file beside the model."""
        self.plane = np.load(context.artifacts["plane"])["plane"]

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002
        """Watts; MLflow wants these names."""
        return model_input @ self.plane[:-1] + self.plane[-1]


mlflow.models.set_model(Plane())
