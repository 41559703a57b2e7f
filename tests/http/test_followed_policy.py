"""Policies of the server while their files change."""

from __future__ import annotations

from pathlib import Path

from router_ml.catalogue import Catalogue
from router_ml.http.routed_models import RoutedModels


def test_a_changed_policy_serves_at_once_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "house.toml"
    path.write_text("latency_budget_s = 4.0\n")
    models = RoutedModels(Catalogue(()), str(path), (path,))
    assert models.default.latency_budget_s == models.policies["house"].latency_budget_s == 4.0
    path.write_text("latency_budget_s = 25.0\n")
    assert models.default.latency_budget_s == models.policies["house"].latency_budget_s == 25.0
    path.write_text("latency_budget_s = 'soon'\n")
    assert models.default.latency_budget_s == 25.0
