"""Decisions over HTTP: our own API, and two that other routers call to choose a model or a tier."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router_ml.decide.choices import OptionShares, choice_question
from router_ml.decide.selection.policy import Policy
from router_ml.errors import QueryError, StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import as_dict, decision_event
from router_ml.events.store import EventFilter
from router_ml.http.access_log import note
from router_ml.http.body import lenient_json, parse_json, read_body
from router_ml.http.caller import caller_of
from router_ml.http.headers import decision_headers
from router_ml.http.openai_chat import objects
from router_ml.http.openai_responses import messages_of
from router_ml.http.problems import Problem
from router_ml.http.proxy import TAGS_TTL_S
from router_ml.http.service import Service
from router_ml.http.streaming import json_response
from router_ml.messages import read_messages
from router_ml.types import Decision

_MAX_STATE_BYTES = 64 * 2**10
_QUERY_KEYS = ("query", "text", "prompt", "input", "question", "message", "user_request", "request")
_LITELLM_FRAME = "Classify this message:\n"  # LiteLLM's classifier puts the user's text after it


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """The query of a decision request, and the context it implies."""

    query: str
    context: Mapping[str, Any]


class DecisionEndpoints:
    """`/v1/decide`, `/v1/systemone`, `/v1/decisions` and `/decisions/{id}`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def decide(self, request: Request) -> Response:
        """Return a complete decision for a query or messages, without calling any model."""
        body = parse_json(await read_body(request, self._service.options))
        subject = _decision_input(body)
        caller = caller_of(request)
        policy = self._policy(caller.policy or body.get("policy"))
        given = body.get("context")
        if given is not None and not isinstance(given, Mapping):
            raise Problem("invalid", f"context must be an object, found {type(given).__name__}")
        tools = {"tools": body["tools"]} if body.get("tools") is not None else {}
        decision = await self._decision(
            subject.query, {**subject.context, **tools, **(given or {}), **caller.context}, policy
        )
        self._service.decided.remember(decision)
        self._service.watch.recorder.record(decision_event(decision, unit=caller.session_id, text=subject.query))
        note(request, model=decision.model, decision_id=decision.decision_id)
        return json_response(decision.as_dict(), headers=decision_headers(decision, decision.model, decision.think))

    async def systemone(self, request: Request) -> Response:
        """Serve System One's API; a model that a host has answers on that host."""
        raw = await read_body(request, self._service.options)
        if await self._elsewhere(raw):
            return await self._service.proxy.forward(request, raw)
        if len(raw) > _MAX_STATE_BYTES:
            raise Problem("too_large", "request body must not exceed 64 KiB")
        body = parse_json(raw)
        questions = body.get("questions")
        if not isinstance(questions, Mapping) or not questions:
            raise Problem("invalid", "questions must be an object of at least one question")
        subject = _state(body.get("state"))
        answers = {
            name: _systemone(q, await self._shares(name, *_systemone_options(name, q), subject))
            for name, q in questions.items()
        }
        usage = {"input_tokens": len(raw) // 4, "output_tokens": 0}
        return json_response({"model": self._name(body), "answers": answers, "usage": usage})

    async def openai(self, request: Request) -> Response:
        """Serve OpenAI's API."""
        raw = await read_body(request, self._service.options)
        if await self._elsewhere(raw):
            return await self._service.proxy.forward(request, raw)
        body = parse_json(raw)
        questions = objects(body, "questions")
        if not questions:
            raise Problem("invalid", "questions must be a list of at least one question")
        subject = _of_messages(messages_of({"input": body.get("input")}))
        answers = [_openai(q, await self._shares(q.get("name"), *_openai_options(q), subject)) for q in questions]
        tokens = len(raw) // 4
        usage = {
            "input_tokens": tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens,
        }  # fmt: skip
        return json_response({"model": self._name(body), "answers": answers, "usage": usage})

    async def lookup(self, request: Request) -> Response:
        """Return a recorded decision by its id, with its outcome and its feedback."""
        decision_id = request.path_params["decision_id"]
        decision = self._service.decided.get(decision_id)
        events = await asyncio.to_thread(self._stored, decision_id)
        kinds = ("outcome", "feedback", "attempt")
        found = {kind: [row for row in events if row["event"] == kind] for kind in kinds}
        made = decision.as_dict() if decision else next((row for row in events if row["event"] == "decision"), None)
        if made is None and not any(found.values()):
            raise Problem("not_found", "no such decision; it may be some seconds until it is in the event store")
        return json_response({"decision_id": decision_id, "decision": made, "outcomes": found["outcome"],
                              "attempts": found["attempt"], "feedback": found["feedback"]})  # fmt: skip

    def _stored(self, decision_id: str) -> list[dict[str, Any]]:
        settings = self._service.settings
        try:
            store = open_store(settings.events or settings.state_dir, key_dir=settings.state_dir, read_only=True)
        except StoreError:
            return []
        try:
            return [as_dict(stored.event) for stored in store.read(EventFilter(decision_id=decision_id), limit=100)]
        finally:
            store.close()

    async def _decision(self, query: str, context: Mapping[str, Any], policy: Policy) -> Decision:
        machine = self._service.gateway.machine()
        return await asyncio.to_thread(self._service.decider.decide, query, context, policy, machine)

    def _policy(self, name: object) -> Policy:
        if name is None:
            return self._service.models.default
        if not isinstance(name, str):
            raise Problem("invalid", f"policy must be the name of a policy, found {type(name).__name__}")
        return self._service.models.named(name)

    async def _elsewhere(self, raw: bytes) -> bool:
        """Return whether a host has the model that is to answer."""
        model = lenient_json(raw).get("model")
        if not isinstance(model, str) or self._service.models.policy(model) is not None:
            return False
        return model in {str(m.get("model") or m.get("name")) for m in await self._service.proxy.models(TAGS_TTL_S)}

    def _name(self, body: Mapping[str, Any]) -> str:
        return str(body.get("model") or getattr(self._service.decider, "name", "auto"))

    async def _shares(self, name: object, kind: str, options: Sequence[str], subject: DecisionInput) -> OptionShares:
        """Return the probabilities of a question's options. Raises `Problem` (422) if it is not one we can answer."""
        try:
            question = choice_question(str(name), options, self._service.catalogue, ordered=kind != "choice")
        except QueryError as error:
            raise Problem("unprocessable", str(error)) from error
        machine, decide = self._service.gateway.machine(), self._service.decider.decide
        return await asyncio.to_thread(
            question.answer, lambda policy: decide(subject.query, subject.context, policy, machine), self._policy(None)
        )


def _systemone_options(name: str, question: Any) -> tuple[str, list[str]]:
    kind = question.get("type") if isinstance(question, Mapping) else None
    criteria = question.get("criteria") if isinstance(question, Mapping) else None
    if kind == "choice" and isinstance(criteria, Mapping):
        return "choice", [str(option) for option in criteria]
    if kind == "score" and isinstance(criteria, list):
        return "score", [str(level) for level in criteria]
    if kind == "noul":
        return "noul", []
    raise Problem("invalid", f"question {name!r:.60} must be of type choice, score or noul, with its criteria")


def _systemone(question: Mapping[str, Any], shares: OptionShares) -> dict[str, Any]:
    if question["type"] == "choice":
        options = list(question["criteria"])
        probabilities = dict(zip(options, shares.probabilities, strict=True))
        return {"type": "choice", "choice": options[shares.choice], "probabilities": probabilities,
                "confidence": shares.confidence}  # fmt: skip
    levels = {str(i): level for i, level in enumerate(question["criteria"])}
    probabilities = {str(i): p for i, p in enumerate(shares.probabilities)}
    return {"type": "score", "score": shares.expected, "legend": levels, "probabilities": probabilities,
            "confidence": shares.confidence}  # fmt: skip


def _openai_options(question: Mapping[str, Any]) -> tuple[str, list[str]]:
    kind = question.get("type")
    if kind == "choice":
        return "choice", [str(choice.get("value")) for choice in objects(question, "choices")]
    if kind == "score":
        return "score", [str(level.get("label")) for level in objects(question, "levels")]
    if kind == "predicate":
        return "predicate", []
    raise Problem("invalid", "a question must be of type predicate, choice or score")


def _openai(question: Mapping[str, Any], shares: OptionShares) -> dict[str, Any]:
    named = {"type": question["type"], "name": question.get("name")}
    if question["type"] == "choice":
        values = [choice.get("value") for choice in question["choices"]]
        listed = [{"value": v, "probability": p} for v, p in zip(values, shares.probabilities, strict=True)]
        return {**named, "choice": values[shares.choice], "probabilities": listed, "confidence": shares.confidence}
    labels = [level.get("label") for level in question["levels"]]
    levels = [
        {"value": i, "label": label, "probability": p}
        for i, (label, p) in enumerate(zip(labels, shares.probabilities, strict=True))
    ]
    return {**named, "score": shares.expected, "probabilities": levels, "confidence": shares.confidence}


def _decision_input(body: Mapping[str, Any]) -> DecisionInput:
    if isinstance(body.get("query"), str):
        return DecisionInput(body["query"], {})
    if body.get("messages") is not None:
        return _of_messages(objects(body, "messages"))
    raise Problem("invalid", "give a query (a text) or messages (a list)")


def _state(state: Any) -> DecisionInput:
    """Return the query in System One's state: a text, messages, or an object that holds one of them."""
    if isinstance(state, str) and state.strip():
        return DecisionInput(state.rpartition(_LITELLM_FRAME)[2].strip() or state, {})
    if isinstance(state, list) and state and all(isinstance(item, Mapping) and "role" in item for item in state):
        return _of_messages(state)
    if isinstance(state, Mapping) and state:
        if isinstance(state.get("messages"), list) and state["messages"]:
            return _state(state["messages"])
        found = next(
            (state[key] for key in _QUERY_KEYS if isinstance(state.get(key), str) and state[key].strip()), None
        )
        return DecisionInput(found or json.dumps(state, ensure_ascii=False), {})
    if isinstance(state, list) and state:
        return DecisionInput("\n".join(item if isinstance(item, str) else json.dumps(item) for item in state), {})
    raise Problem("invalid", "state must not be empty")


def _of_messages(messages: Sequence[Mapping[str, Any]]) -> DecisionInput:
    """Return the user's last message and the turns before it. Raises `Problem` if there is no user message."""
    read = read_messages(messages)
    if read.query_index >= len(read.messages):
        raise Problem("invalid", "messages must hold at least one of role user")
    context = {"history": [turn._asdict() for turn in read.history], "attachment": read.attachment or None}
    return DecisionInput(read.query, {**context, "has_images": read.has_images, "prompt_tokens": read.tokens})
