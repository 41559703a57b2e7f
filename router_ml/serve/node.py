"""A node for a coordinator's graph: state in, partial state out. LangGraph takes it as it is and is not imported.

    from router_ml.serve.node import CoordinatorNode        # 1
    graph.add_node("route", CoordinatorNode())               # 2
    ... client.chat(model=state["model"], ...)               # 3, where one fixed model stood

The node reads the conversation, the tools offered and the model that spoke last; it adds `model`, `intent`,
`complexity`, `clarify` and `routing` to the state and leaves every other key alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.context import parse_context, shows_image
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, policy_parameters
from router_ml.errors import ContextError, QueryError
from router_ml.events.event import NullRecorder, Recorder, decision_event
from router_ml.hosts.names import ModelNames
from router_ml.serve import Decider
from router_ml.serve.order import plain_decision, stick
from router_ml.settings import load_settings
from router_ml.types import EMPTY_CONTEXT, Context, Decision, MachineState

log = logging.getLogger(__name__)

# LangGraph hands the configuration to a parameter of this name and annotation; a plain mapping for everybody else.
RunnableConfig: TypeAlias = Mapping[str, Any]

_NO_CONFIG: RunnableConfig = MappingProxyType({})
_USER_ROLES = frozenset({"user", "human"})


class IntentClassifier(Protocol):
    """What an assistant may already have: anything that says what a text is about."""

    def classify(self, text: str, context: Mapping[str, Any]) -> Any:
        """The intent of a text. `context` holds `history`, `tools`, `last_model` and `complexity`."""


class ComplexityIntent:
    """Our own classifier: the complexity the router read is the intent."""

    def classify(self, text: str, context: Mapping[str, Any]) -> Any:
        """The complexity label."""
        return context.get("complexity")


class CoordinatorNode:
    """Chooses the model for the next turn of a conversation. Thread-safe; whatever a conversation holds, it decides.
    Only for a state without any conversation, under `messages_key` or `query`, it raises `QueryError`.

    `decider` chooses (by default the active bundle's router); `classifier` names the intent; `machine` gives the
    state of the models (a gateway's `machine`, say); `stick_margin` keeps the model that spoke last unless another
    one's utility is higher by more than that."""

    def __init__(
        self,
        decider: Decider | None = None,
        *,
        classifier: IntentClassifier | None = None,
        recorder: Recorder | None = None,
        policy: Policy | str | None = None,
        machine: Callable[[], MachineState] | None = None,
        catalogue: Catalogue | None = None,
        stick_margin: float | None = None,
        messages_key: str = "messages",
        model_key: str = "model",
    ) -> None:
        self._decider = decider
        self._classifier = classifier or ComplexityIntent()
        self._recorder = recorder or NullRecorder()
        self._policy = policy
        self._machine = machine
        self._catalogue = catalogue
        self._stick_margin = stick_margin
        self._messages_key, self._model_key = messages_key, model_key
        self._lock = threading.Lock()
        self._rules: Router | None = None
        self.__name__ = "route"  # what a graph calls a node that was given no name

    def __call__(self, state: Any, config: RunnableConfig = _NO_CONFIG) -> dict[str, Any]:
        """The keys this node adds: `model`, `intent`, `complexity`, `clarify`, `routing`.

        Raises `QueryError` where the state has neither the key of the messages nor `query`."""
        if not any(_has(state, key) for key in (self._messages_key, "query")):
            raise QueryError(
                f"the state has neither {self._messages_key!r} nor 'query', only {_keys(state)}; "
                "name the key of the conversation: CoordinatorNode(messages_key=...)"
            )
        turns = _turns(_read(state, self._messages_key), _read(state, "query"))
        text, history = _split(turns)
        last_model = _read(state, self._model_key)
        last_model = last_model if isinstance(last_model, str) else None
        context = _context(state, config, turns, len(history), last_model)
        decision = self._decide(text, context)
        decision = stick(decision, last_model, self._stick_margin, ModelNames(self._models()))
        intent = self._intent(text, history, state, last_model, decision)
        self._recorder.record(
            decision_event(
                decision,
                unit=context.session_id,
                prompt_tokens=context.prompt_tokens,
                policy_parameters=policy_parameters(self._policy or load_settings().policy),
                text=text,
                context=context,
            )
        )
        return {
            self._model_key: decision.model,
            "intent": intent,
            "complexity": decision.complexity,
            "clarify": decision.action == "clarify",
            "routing": decision.as_dict(),
        }

    def _decide(self, text: str, context: Context) -> Decision:
        policy = self._policy or load_settings().policy
        try:
            return self._own_decider().decide(text, context, policy, self._state())
        except Exception as error:  # whatever breaks, the graph goes on
            log.warning("the router failed, deciding by rules: %s", error)
            why = f"the router failed ({type(error).__name__})"
        try:
            return self._by_rules(why).decide(text, context, "balanced")
        except Exception as error:
            log.warning("the rules failed too, taking the catalogue's order: %s", error)
            return plain_decision(self._models(), "balanced", why)

    def _own_decider(self) -> Decider:
        if self._decider is None:
            with self._lock:
                if self._decider is None:
                    self._decider = Router.load_or_heuristic()
        return self._decider

    def _by_rules(self, why: str) -> Router:
        with self._lock:
            if self._rules is None:
                self._rules = Router.heuristic(self._models(), why=why)
            return self._rules

    def _models(self) -> Catalogue:
        if self._catalogue is None:
            known = getattr(self._decider, "catalogue", None)
            self._catalogue = known if isinstance(known, Catalogue) else load_catalogue(load_settings().catalogue)
        return self._catalogue

    def _state(self) -> MachineState | None:
        if self._machine is None:
            return None
        try:
            return self._machine()
        except Exception as error:
            log.warning("the state of the machine is unknown: %s", error)
            return None

    def _intent(
        self, text: str, history: Sequence[Any], state: Any, last_model: str | None, decision: Decision
    ) -> Any:  # fmt: skip
        seen = {
            "history": list(history),
            "tools": list(_read(state, "tools") or ()),
            "last_model": last_model,
            "complexity": decision.complexity,
        }
        try:
            return self._classifier.classify(text, seen)
        except Exception as error:
            log.warning("the intent classifier failed; the complexity stands in: %s", error)
            return decision.complexity


def _read(state: Any, key: str) -> Any:
    """One key of a state, which may be a mapping, a dataclass or a pydantic model."""
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def _has(state: Any, key: str) -> bool:
    return key in state if isinstance(state, Mapping) else hasattr(state, key)


def _keys(state: Any) -> str:
    keys = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
    return ", ".join(repr(key) for key in sorted(map(str, keys))) or "nothing"


def _turns(messages: Any, query: Any) -> list[Any]:
    turns = [messages] if isinstance(messages, str) else list(messages or ())
    if isinstance(query, str) and query:
        turns.append({"role": "user", "content": query})
    return turns


def _split(turns: Sequence[Any]) -> tuple[str, list[Any]]:
    """The latest words of the user, and the turns before them."""
    for index in range(len(turns) - 1, -1, -1):
        role, text = _spoken(turns[index])
        if role in _USER_ROLES:
            return text, list(turns[:index])
    return "", list(turns)


def _spoken(turn: Any) -> tuple[str, str]:
    if isinstance(turn, str):
        return "user", turn
    if isinstance(turn, Mapping):
        role, content = turn.get("role") or turn.get("type"), turn.get("content")
    elif isinstance(turn, tuple | list) and len(turn) == 2:
        role, content = turn
    else:
        role = getattr(turn, "role", None) or getattr(turn, "type", None)
        content = getattr(turn, "content", None)
    return str(role or "user"), _text(content)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return " ".join(_text(part.get("text") if isinstance(part, Mapping) else part) for part in content)
    return ""


def _context(
    state: Any, config: RunnableConfig, turns: Sequence[Any], n_before: int, last_model: str | None
) -> Context:
    """What the router may know: of the turns, `n_before` come before the query. A part of the state it cannot read is
    left out."""
    configurable = (config or {}).get("configurable") or {}
    given = _read(state, "context")
    raw: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    history = [dict(zip(("role", "content"), _spoken(turn), strict=True)) for turn in turns[:n_before]]
    raw.setdefault("history", history)
    if any(map(shows_image, turns)):
        raw.setdefault("has_images", True)
    if any(map(shows_image, turns[n_before:])):
        raw.setdefault("attachment", "image")
    tools = _read(state, "tools")
    if tools:
        raw.setdefault("tools", [_tool(tool) for tool in tools])
    session = _read(state, "session_id") or configurable.get("session_id") or configurable.get("thread_id")
    if session is not None:
        raw.setdefault("session_id", session)
    if last_model:
        raw["last_model"] = last_model
    while raw:
        try:
            return parse_context(raw)
        except ContextError as error:
            log.warning("a part of the context is left out: %s", error)
            if error.field not in raw:
                break
            del raw[error.field]
    return EMPTY_CONTEXT


def _tool(tool: Any) -> Any:
    """A tool as a context takes it; objects of chat frameworks by their name and description."""
    if isinstance(tool, str | Mapping) or (hasattr(tool, "model_dump") and not hasattr(tool, "args_schema")):
        return tool
    name = getattr(tool, "name", None) or getattr(tool, "__name__", "tool")
    arguments = getattr(tool, "args", None)
    described = {
        "name": str(name),
        "description": str(getattr(tool, "description", None) or getattr(tool, "__doc__", None) or ""),
    }
    if isinstance(arguments, Mapping):
        return {**described, "parameters": {"type": "object", "properties": dict(arguments)}}
    return described
