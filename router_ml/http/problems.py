"""What went wrong with a request, in the form of each API: status, `Retry-After` and the body of its own form."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, TypeAlias

from router_ml.errors import DeadlineExceeded, InputError, NoModelAvailable, Overloaded, RouterError, StreamInterrupted

Kind: TypeAlias = Literal[
    "invalid", "authentication", "permission", "not_found", "method", "timed_out", "too_large", "unprocessable",
    "rate_limit", "internal", "upstream", "overloaded", "deadline",
]  # fmt: skip
Api: TypeAlias = Literal["ollama", "openai", "anthropic"]

STATUS: dict[Kind, int] = {
    "invalid": 400, "authentication": 401, "permission": 403, "not_found": 404, "method": 405, "timed_out": 408,
    "too_large": 413, "unprocessable": 422, "rate_limit": 429, "internal": 500, "upstream": 502, "overloaded": 503,
    "deadline": 504,
}  # fmt: skip
_OPENAI_TYPE: dict[Kind, str] = {
    "authentication": "authentication_error", "permission": "permission_error", "not_found": "not_found_error",
    "rate_limit": "rate_limit_error", "internal": "api_error", "upstream": "api_error",
    "overloaded": "overloaded_error", "deadline": "timeout_error",
}  # fmt: skip
_ANTHROPIC_TYPE: dict[Kind, str] = {**_OPENAI_TYPE, "too_large": "request_too_large"}
_ANTHROPIC_OVERLOADED = 529


class Problem(Exception):
    """A request that is not served; the message is for its caller."""

    def __init__(
        self, kind: Kind, message: str, *, retry_after_s: float | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after_s = retry_after_s
        self.code = code

    def status(self, api: Api) -> int:
        """Return the HTTP status that the API uses for it."""
        return _ANTHROPIC_OVERLOADED if api == "anthropic" and self.kind == "overloaded" else STATUS[self.kind]

    def body(self, api: Api) -> dict[str, Any]:
        """Return the JSON body in the form of the API."""
        if api == "ollama":
            return {"error": self.message}
        if api == "anthropic":
            kind = _ANTHROPIC_TYPE.get(self.kind, "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = _OPENAI_TYPE.get(self.kind, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return `Retry-After` in whole seconds if a retry may succeed."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}

    def encoded(self, api: Api) -> bytes:
        """Return the body as bytes."""
        return json.dumps(self.body(api), ensure_ascii=False).encode("utf-8", "replace")


def api_of(path: str) -> Api:
    """Return the API that a path belongs to."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"


def problem_of(error: BaseException) -> Problem:
    """Return the problem that stands for an error of the router."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, InputError):
        return Problem("invalid", str(error))
    if isinstance(error, Overloaded):
        return Problem("overloaded", str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, DeadlineExceeded):
        return Problem("deadline", str(error))
    if isinstance(error, NoModelAvailable):
        return Problem("overloaded", str(error), retry_after_s=1.0)
    if isinstance(error, StreamInterrupted | RouterError):
        return Problem("upstream", str(error))
    return Problem("internal", f"the server failed ({type(error).__name__}); its log says more")
