"""The registered form of a bundle: a model from code, so that loading it unpickles nothing.

MLflow runs this file when it loads the model; the bundle lies beside it as an artifact and is verified first.
"""

from __future__ import annotations

import json
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from router_ml.router import Router


class RouterModel(PythonModel):  # type: ignore[misc]
    """Answers a column of queries with decisions as JSON, one a row."""

    def load_context(self, context: Any) -> None:
        self._router = Router.load(context.artifacts["bundle"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Decisions as JSON texts. Unannotated: MLflow reads annotations of this method as a schema of its own."""
        texts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
        policy = (params or {}).get("policy", "balanced")
        return [json.dumps(decision.as_dict()) for decision in self._router.decide_many(texts, policy=policy)]


mlflow.models.set_model(RouterModel())
