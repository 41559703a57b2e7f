"""The registered form of a bundle: a model from code, so that loading it unpickles nothing.

MLflow runs this file when it loads the model; the bundle is an artifact beside it and is verified first.
"""

from __future__ import annotations

import json
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from router_ml.decide.router import Router
from router_ml.settings import load_settings


class RouterModel(PythonModel):  # type: ignore[misc]
    """Decisions as JSON texts, under the policy of ROUTER_ML_POLICY."""

    def load_context(self, context: Any) -> None:
        """Verify and load the bundle."""
        self._router = Router.load(context.artifacts["bundle"])
        self._policy = load_settings().policy

    def predict(self, context: Any, model_input: list[str]) -> list[str]:
        """Return one decision per query."""
        return [
            json.dumps(decision.as_dict()) for decision in self._router.decide_many(model_input, policy=self._policy)
        ]


mlflow.models.set_model(RouterModel())
