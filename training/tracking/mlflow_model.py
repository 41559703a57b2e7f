"""The registered form of a bundle: a model from code, so that loading it unpickles nothing.

MLflow runs this file when it loads the model; the bundle is an artifact beside it and is verified first.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from router_ml.decide.router import Router
from router_ml.settings import load_settings

warnings.filterwarnings("ignore", message=".*ype hint")  # the signature is stored with the model, not read from hints


class RouterModel(PythonModel):  # type: ignore[misc]
    """Decisions as JSON texts. Input: columns `text` and `context` (a JSON object, or none); parameter: `policy`."""

    def load_context(self, context: Any) -> None:
        """Verify and load the bundle."""
        self._router = Router.load(context.artifacts["bundle"])
        self._policy = load_settings().policy

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """Return one decision per row, under the given policy, else that of ROUTER_ML_POLICY.

        A list of texts, or of rows as dictionaries, is taken as well as a table."""
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else list(model_input)
        rows = [{"text": row} if isinstance(row, str) else row for row in rows]
        contexts = [_context(row.get("context")) for row in rows]
        policy = (params or {}).get("policy") or self._policy
        decisions = self._router.decide_many([row["text"] for row in rows], contexts, policy=policy)
        return [json.dumps(decision.as_dict()) for decision in decisions]


def _context(given: Any) -> Any:
    """Return the context of a cell; a table holds NaN where it is empty."""
    if isinstance(given, str):
        return json.loads(given) if given.strip() else None
    return given if isinstance(given, dict) else None


mlflow.models.set_model(RouterModel())
