"""Requests made up from our own description: none ends in a fault of the server, and answers are as described."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from tests.http.conftest import Running
from tests.timing import PATIENCE_S

CASES = 30  # an operation


def fuzz(server: Running, cases: int, mode: schemathesis.GenerationMode) -> int:
    """Send made-up requests, well formed or not, to every operation; how many."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    sent = 0
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.body:
            sent += _fuzz_one(server, operation.as_strategy(generation_mode=mode), cases, checks)
    return sent


def _fuzz_one(server: Running, strategy: Any, cases: int, checks: list[Any]) -> int:
    sent = 0

    @hypothesis.settings(max_examples=cases, deadline=None, derandomize=True, database=None,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(case=strategy)
    def one(case: schemathesis.Case) -> None:
        nonlocal sent
        sent += 1
        case.validate_response(case.call(base_url=server.url, timeout=PATIENCE_S), checks=checks)

    one()
    return sent


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_made_up_requests_are_answered_as_described(server: Running, mode: schemathesis.GenerationMode) -> None:
    assert fuzz(server, CASES, mode) > 3 * CASES
