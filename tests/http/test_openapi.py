"""Requests made up from our own description: none ends in a fault of the server, and answers are as described."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import schemathesis
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from tests.http.conftest import Running

CASES = 30  # an operation


def fuzz(server: Running, cases: int) -> int:
    """Send made-up requests to every operation; how many."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    sent = 0
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.path == "/readyz":
            continue

        @hypothesis.settings(max_examples=cases, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
        @hypothesis.given(case=operation.as_strategy(
            generation_mode=schemathesis.GenerationMode.POSITIVE))  # fmt: skip
        def one(case: schemathesis.Case) -> None:
            nonlocal sent
            sent += 1
            answer = case.call(base_url=server.url, timeout=10)
            case.validate_response(
                answer, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
            )

        one()
    return sent


def test_made_up_requests_are_answered_as_described(server_of: Callable[..., Running]) -> None:
    assert fuzz(server_of(), CASES) > 3 * CASES
