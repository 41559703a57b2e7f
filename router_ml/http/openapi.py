"""The OpenAPI description of the endpoints of this project; Ollama, OpenAI and Anthropic describe theirs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router_ml.http.streaming import json_response
from router_ml.types import LABELS

Json = Mapping[str, Any]

_TEXT: Json = {"type": "string"}
_SHARE: Json = {"type": "number", "minimum": 0, "maximum": 1}
_OBJECT: Json = {"type": "object"}
_MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant", "system", "tool"]}, "content": _TEXT},
    },
}
_DECISION: Json = {
    "type": "object",
    "required": ["model", "complexity", "complexity_probabilities", "ranked", "reason", "decision_id"],
    "properties": {
        "model": _TEXT,
        "complexity": {"enum": list(LABELS)},
        "complexity_probabilities": {"type": "object", "additionalProperties": _SHARE},
        "ranked": {"type": "array", "items": _OBJECT},
        "reason": _TEXT,
        "decision_id": _TEXT,
    },
}
_ERROR: Json = {"type": "object", "required": ["error"], "properties": {"error": {"type": ["string", "object"]}}}
_QUESTION: Json = {
    "type": "object",
    "required": ["type", "instructions", "criteria"],
    "properties": {
        "type": {"enum": ["choice", "score"]},
        "instructions": _TEXT,
        "criteria": {
            "oneOf": [
                {"type": "object", "minProperties": 2, "additionalProperties": {"type": ["string", "null"]}},
                {"type": "array", "minItems": 2, "items": _TEXT},
            ]
        },
    },
}
_OPENAI_QUESTION: Json = {
    "type": "object",
    "required": ["type", "instructions"],
    "properties": {
        "type": {"enum": ["choice", "score", "predicate"]},
        "name": _TEXT,
        "instructions": _TEXT,
        "choices": {
            "type": "array",
            "items": {"type": "object", "required": ["value"], "properties": {"value": _TEXT}},
        },
        "levels": {"type": "array", "items": {"type": "object", "required": ["label"], "properties": {"label": _TEXT}}},
    },
}
_ANSWERS: Json = {"type": "object", "required": ["model", "answers", "usage"]}


async def openapi(request: Request) -> Response:
    """Serve `/openapi.json`."""
    return json_response(description())


@cache
def description() -> dict[str, Any]:
    """Return the description as a JSON-ready object."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "router-ml",
            "version": "1",
            "description": "Chats go to the paths of Ollama's, OpenAI's and Anthropic's APIs, with the model `auto`.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/decide": {"post": _operation("Decide on a model without calling any", _DECISION, _decide())},
            "/v1/systemone": {"post": _operation("Answer System One's questions", _ANSWERS, _systemone())},
            "/v1/decisions": {"post": _operation("Answer OpenAI's questions", _ANSWERS, _decisions())},
            "/decisions/{decision_id}": {
                "parameters": [{"name": "decision_id", "in": "path", "required": True, "schema": _TEXT}],
                "get": _operation("Return a decision with its outcome and feedback", {"required": ["decision_id"]}),
            },
            "/feedback": {"post": _operation("Say what an answer was worth", {"required": ["known"]}, _feedback())},
            "/healthz": {"get": _operation("Whether the process serves", {"required": ["status"]})},
            "/readyz": {"get": _operation("Whether a host answers and a bundle decides", {"required": ["status"]})},
            "/metrics": {"get": _operation("Figures in Prometheus' text format", None)},
            "/admin/log-level": {
                "get": _operation("The level of the log", {"required": ["level"]}),
                "put": _operation("Set the level of the log", {"required": ["level"]}, _log_level()),
            },
        },
    }


def _operation(summary: str, answer: Json | None, body: Json | None = None) -> dict[str, Any]:
    content = {"text/plain": {"schema": _TEXT}} if answer is None else {"application/json": {"schema": answer}}
    problem = {"description": "Refused; the body says why", "content": {"application/json": {"schema": _ERROR}}}
    refused = ("400", "401", "403", "404", "408", "413", "422", "429", "503")
    described: dict[str, Any] = {
        "summary": summary,
        "security": [{}, {"key": []}],
        "responses": {"200": {"description": "Done", "content": content}, **dict.fromkeys(refused, problem)},
    }
    if "Whether a host" in summary:
        described["responses"]["503"] = {"description": "Not ready", "content": content}
    if body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return described


def _decide() -> Json:
    return {
        "type": "object",
        "anyOf": [{"required": ["query"]}, {"required": ["messages"]}],
        "properties": {
            "query": _TEXT,
            "messages": _MESSAGES,
            "tools": {"type": "array", "items": _OBJECT},
            "context": _OBJECT,
            "policy": _TEXT,
        },
    }


def _systemone() -> Json:
    state = {"type": ["string", "object", "array"]}
    questions = {"type": "object", "minProperties": 1, "additionalProperties": _QUESTION}
    properties = {"model": _TEXT, "state": state, "questions": questions}
    return {"type": "object", "required": ["state", "questions"], "properties": properties}


def _decisions() -> Json:
    questions = {"type": "array", "minItems": 1, "items": _OPENAI_QUESTION}
    properties = {"model": _TEXT, "input": {"type": ["string", "array"], "items": _OBJECT}, "questions": questions}
    return {"type": "object", "required": ["model", "input", "questions"], "properties": properties}


def _feedback() -> Json:
    return {
        "type": "object",
        "required": ["decision_id"],
        "oneOf": [{"required": ["score"]}, {"required": ["thumb"]}],
        "properties": {
            "decision_id": {"type": "string", "minLength": 1, "maxLength": 64},
            "score": _SHARE,
            "thumb": {"enum": ["up", "down"]},
            "comment": {"type": "string", "maxLength": 4000},
        },
    }


def _log_level() -> Json:
    return {
        "type": "object",
        "required": ["level"],
        "properties": {"level": {"enum": ["DEBUG", "INFO", "WARNING", "ERROR"]}},
    }
