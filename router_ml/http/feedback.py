"""Feedback on answers over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router_ml.http.body import parse_json, read_body
from router_ml.http.problems import Problem
from router_ml.http.service import Service
from router_ml.http.streaming import json_response

_THUMBS = {"up": 1.0, "down": 0.0, True: 1.0, False: 0.0}
_MAX_ID = 64
_MAX_COMMENT = 4000


class FeedbackEndpoint:
    """`POST /feedback`: `decision_id`, and `score` (0 to 1) or `thumb` (up or down), and `comment` if wanted."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        """Record it; `known` says whether the decision is one of this server's latest."""
        body = parse_json(await read_body(request, self._service.options))
        decision_id, comment = body.get("decision_id"), body.get("comment")
        if not isinstance(decision_id, str) or not 0 < len(decision_id) <= _MAX_ID or not decision_id.isprintable():
            raise Problem(
                "invalid", "decision_id must be the id of a decision; answers have it in x-router-ml-decision-id"
            )
        if comment is not None and (not isinstance(comment, str) or len(comment) > _MAX_COMMENT):
            raise Problem("invalid", f"comment must be a text of at most {_MAX_COMMENT} characters")
        score = _score(body)
        known = self._service.gateway.feedback(decision_id, score, comment)
        known = known or self._service.decided.get(decision_id) is not None
        return json_response({"decision_id": decision_id, "score": score, "known": known})


def _score(body: Mapping[str, Any]) -> float:
    score, thumb = body.get("score"), body.get("thumb")
    if (score is None) == (thumb is None):
        raise Problem("invalid", "give either score (0 to 1) or thumb (up or down)")
    if isinstance(thumb, str | bool) and thumb in _THUMBS:
        return _THUMBS[thumb]
    if thumb is not None or isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise Problem("invalid", "score must be a number between 0 and 1, or thumb up or down")
    return float(score)
