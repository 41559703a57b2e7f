"""The registered form of a bundle: a model from code, so that loading it unpickles nothing.

MLflow runs this file when it loads the model; the bundle is an artifact beside it and is verified first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from router_ml.decide.router import Router
from router_ml.settings import load_settings


class RouterModel(PythonModel):  # type: ignore[misc]
    """Decisions as JSON texts, under the policy of the row, else of the parameter `policy`, else of ROUTER_ML_POLICY.

    It takes queries, or a table with `text` and, where wanted, `context` (a dictionary or a JSON text) and `policy`."""

    def load_context(self, context: Any) -> None:
        """Verify and load the bundle."""
        self._router = Router.load(context.artifacts["bundle"])
        self._policy = load_settings().policy

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """Return one decision per row, in order. Raises `QueryError`, `ContextError` or `PolicyError`.

        MLflow asks for the type of `model_input` at every load, with a warning; it gives what `_rows` takes."""
        rows, usual = _rows(model_input), (params or {}).get("policy") or self._policy
        policies = [_given(row.get("policy")) or usual for row in rows]
        decisions: list[str] = [""] * len(rows)
        for policy in dict.fromkeys(policies):
            places = [place for place, name in enumerate(policies) if name == policy]
            texts, contexts = [_text(rows[i]) for i in places], [_context(rows[i]) for i in places]
            for place, decision in zip(places, self._router.decide_many(texts, contexts, policy), strict=True):
                decisions[place] = json.dumps(decision.as_dict())
        return decisions


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a pandas table, of an array, or of a list of queries or rows."""
    if hasattr(model_input, "columns"):
        model_input = model_input.to_dict("records")
    return [row if isinstance(row, Mapping) else {"text": row} for row in model_input]


def _text(row: Mapping[str, Any]) -> Any:
    """Return the query; a table without names has it in its first column."""
    text = row["text"] if "text" in row else next(iter(row.values()))
    return str(text) if isinstance(text, str) else text  # numpy's strings are strings


def _context(row: Mapping[str, Any]) -> Any:
    context = _given(row.get("context"))
    return json.loads(context) if isinstance(context, str) else context


def _given(value: Any) -> Any:
    """Return a cell's value; an empty cell is None, NaN or an empty text."""
    return None if value is None or value == "" or value != value else value


mlflow.models.set_model(RouterModel())
