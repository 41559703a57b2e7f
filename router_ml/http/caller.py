"""The caller of a request: user, session, policy and budget from its headers and API key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from router_ml.http.problems import Problem

SESSION_HEADERS = (
    "x-router-ml-session", "x-session-id", "session-id", "session_id", "thread-id", "x-claude-code-session-id",
    "x-task-id", "x-openwebui-chat-id",
)  # fmt: skip
USER_HEADERS = ("x-router-ml-user", "x-openwebui-user-id")
_MAX_NAME = 200  # characters of a session or user; more is cut
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's origin."""

    session_id: str | None = None
    user_id: str | None = None
    policy: str | None = None  # a policy the server knows by name; None: that of the model that was asked for
    budget_s: float | None = None

    @property
    def context(self) -> dict[str, Any]:
        """The caller's part of the decision context."""
        known = {"session_id": self.session_id, "user_id": self.user_id, "latency_budget_s": self.budget_s}
        return {name: value for name, value in known.items() if value is not None}


def caller_of(request: Request, session_id: str | None = None, user_id: str | None = None) -> Caller:
    """Return the caller of a request; `session_id` and `user_id` are those of its body.

    A key's user and policy win over what the caller claims, and sessions of different keys never meet.
    Raises `Problem` for a budget that is not a number of seconds."""
    key = request.scope.get("router_ml.key")
    session = _first(request.headers, SESSION_HEADERS) or _name(session_id)
    user = _first(request.headers, USER_HEADERS) or _name(user_id)
    policy = request.headers.get("x-router-ml-policy")
    if key is not None:
        user, policy = key.user, key.policy or policy
        session = None if session is None else f"{key.user}:{session}"
    return Caller(session, user, policy, _budget_s(request.headers.get("x-router-ml-budget-s")))


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := _name(headers.get(name)))), None)


def _name(value: object) -> str | None:
    return _CONTROL.sub("", value)[:_MAX_NAME] or None if isinstance(value, str) else None


def _budget_s(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1e6:
        raise Problem("invalid", f"x-router-ml-budget-s must be a number of seconds above 0, found {value!r:.40}")
    return seconds
