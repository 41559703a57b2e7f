"""A node for a coordinator's graph: state in, partial state out. LangGraph takes it as it is and is not imported.

    from router_ml.serve.node import CoordinatorNode        # 1
    graph.add_node("route", CoordinatorNode())               # 2
    ... client.chat(model=state["model"], ...)               # 3, where one fixed model stood

The node reads the conversation, the tools offered and the model that answered last; it adds `model`, `intent`,
`complexity`, `clarify` and `routing` to the state and leaves every other key alone.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.context import conversation_context
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, policy_parameters
from router_ml.errors import ContextError, QueryError
from router_ml.events.event import Recorder, decision_event
from router_ml.hosts.names import ModelNames
from router_ml.hosts.options import GatewayOptions
from router_ml.messages import Conversation, message_list, read_messages
from router_ml.monitor.watch import open_writer
from router_ml.serve.choose import Decider
from router_ml.serve.clarify import may_ask
from router_ml.serve.order import pin, plain_decision, stick
from router_ml.serve.request import prompt_tokens
from router_ml.settings import Settings, load_settings
from router_ml.tools import read_tools
from router_ml.types import Context, Decision, MachineState

log = logging.getLogger(__name__)

# LangGraph hands the configuration to a parameter of this name and annotation; a plain mapping for other callers.
RunnableConfig: TypeAlias = Mapping[str, Any]

_NO_CONFIG: RunnableConfig = MappingProxyType({})


class IntentClassifier(Protocol):
    """What an assistant may already have: anything that names the intent of a text."""

    def classify(self, text: str, context: Mapping[str, Any]) -> Any:
        """Return the intent of a text. `context` holds `history`, `tools`, `last_model` and `complexity`."""


class ComplexityIntent:
    """The default classifier: the complexity of the query is the intent."""

    def classify(self, text: str, context: Mapping[str, Any]) -> Any:
        """Return the complexity label."""
        return context.get("complexity")


class CoordinatorNode:
    """Chooses the model for the next turn of a conversation. Thread-safe; it decides for any conversation.

    Only for a state without any conversation, under `messages_key` or `query`, it raises `QueryError`.

    `decider` chooses (by default the active bundle's router); `classifier` names the intent; `recorder` gets the
    decisions (by default the event store of the settings; `NullRecorder()` drops them); `machine` gives the state of
    the models (a gateway's `machine`, say); `stick_margin` keeps the model that answered last unless another one's
    utility is higher by more than that. The result of a tool goes to the model that asked for it.
    `clarifying_question` is what the graph asks where `clarify` is true: it is never asked twice in a row, nor in a
    tool loop. What is not given is taken from `settings` (by default the environment's).

    Raises `SettingsError` if a setting cannot be read, and `PolicyError`."""

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
        clarifying_question: str | None = GatewayOptions().clarifying_question,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings = settings or load_settings()
        self._decider = decider
        self._classifier = classifier or ComplexityIntent()
        self._recorder = recorder
        self._policy = policy or settings.policy
        self._machine = machine
        self._catalogue = catalogue
        self._stick_margin = settings.stick_margin if stick_margin is None else stick_margin
        self._messages_key, self._model_key = messages_key, model_key
        self._question = clarifying_question
        self._lock = threading.Lock()
        self._rules: Router | None = None
        self.__name__ = "route"  # what a graph calls a node that was given no name

    def __call__(self, state: Any, config: RunnableConfig = _NO_CONFIG) -> dict[str, Any]:
        """Return the keys this node adds: `model`, `intent`, `complexity`, `clarify`, `routing`.

        Raises `QueryError` if the state has neither the key of the messages nor `query`."""
        if not any(_has(state, key) for key in (self._messages_key, "query")):
            raise QueryError(
                f"the state has neither {self._messages_key!r} nor 'query', only {_keys(state)}; "
                "name the key of the conversation: CoordinatorNode(messages_key=...)"
            )
        turns, conversation = _readable_turns(_read(state, self._messages_key), _read(state, "query"))
        tools = _readable_tools(_read(state, "tools"))
        last_model = _read(state, self._model_key)
        last_model = last_model if isinstance(last_model, str) and last_model else None
        context = _context(state, config, conversation, tools, last_model)
        decision = self._placed(self._decide(conversation.query, context), conversation, last_model)
        self._record(decision, conversation.query, context)
        return {
            self._model_key: decision.model,
            "intent": self._intent(conversation.query, turns[: conversation.query_index], tools, last_model, decision),
            "complexity": decision.complexity,
            "clarify": decision.action == "clarify" and self._may_ask(state, conversation),
            "routing": decision.as_dict(),
        }

    def _placed(self, decision: Decision, conversation: Conversation, last_model: str | None) -> Decision:
        """Return the decision with the model in front that asked for a tool, or that answered last."""
        names = ModelNames(self._models())
        asked = conversation.asked_by
        asking = (asked.model or last_model) if asked else None
        if asking and any(names.same(candidate.model, asking) for candidate in decision.ranked):
            return pin(decision, asking, names, "asked for the tool whose result this is")
        return stick(decision, last_model, self._stick_margin, names)

    def _may_ask(self, state: Any, conversation: Conversation) -> bool:
        history = conversation.history
        just_asked = _read(state, "clarify") is True and bool(history) and history[-1].role == "assistant"
        return not just_asked and may_ask(conversation, self._question)

    def _decide(self, text: str, context: Context) -> Decision:
        try:
            return self._own_decider().decide(text, context, self._policy, self._state())
        except Exception as error:  # the graph continues after any error
            log.warning("the router failed (%s); rules decide", type(error).__name__)
            why = f"the router failed ({type(error).__name__})"
        try:
            return self._by_rules(why).decide(text, context, "balanced")
        except Exception as error:
            log.warning("the rules failed too (%s); the catalogue's order decides", type(error).__name__)
            return plain_decision(self._models(), "balanced", why)

    def _record(self, decision: Decision, text: str, context: Context) -> None:
        try:
            event = decision_event(
                decision,
                unit=context.session_id,
                prompt_tokens=context.prompt_tokens,
                policy_parameters=policy_parameters(self._policy),
                text=text,
                context=context,
            )
            if self._recorder is None:
                self._recorder = settings_recorder(self._settings)
            self._recorder.record(event)
        except Exception as error:
            log.warning("the decision is not recorded (%s)", type(error).__name__)

    def _own_decider(self) -> Decider:
        if self._decider is None:
            with self._lock:
                if self._decider is None:
                    self._decider = Router.load_or_heuristic(settings=self._settings)
        return self._decider

    def _by_rules(self, why: str) -> Router:
        with self._lock:
            if self._rules is None:
                self._rules = Router.heuristic(self._models(), why=why)
            return self._rules

    def _models(self) -> Catalogue:
        if self._catalogue is None:
            known = getattr(self._decider, "catalogue", None)
            self._catalogue = known if isinstance(known, Catalogue) else load_catalogue(self._settings.catalogue)
        return self._catalogue

    def _state(self) -> MachineState | None:
        if self._machine is None:
            return None
        try:
            return self._machine()
        except Exception as error:
            log.warning("the state of the models is unknown (%s)", type(error).__name__)
            return None

    def _intent(
        self, text: str, history: Sequence[Any], tools: Sequence[Any], last_model: str | None, decision: Decision
    ) -> Any:  # fmt: skip
        known = {
            "history": list(history),
            "tools": list(tools),
            "last_model": last_model,
            "complexity": decision.complexity,
        }
        try:
            return self._classifier.classify(text, known)
        except Exception as error:
            log.warning("the intent classifier failed (%s); the complexity is used", type(error).__name__)
            return decision.complexity


@functools.lru_cache(maxsize=4)
def settings_recorder(settings: Settings) -> Recorder:
    """Return this process's writer into the event store of the settings; it is closed at the end of the process."""
    writer = open_writer(settings)
    atexit.register(writer.close)
    return writer


def _read(state: Any, key: str) -> Any:
    """Return one key of a state, which may be a mapping, a dataclass or a pydantic model."""
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def _has(state: Any, key: str) -> bool:
    return key in state if isinstance(state, Mapping) else hasattr(state, key)


def _keys(state: Any) -> str:
    keys = state if isinstance(state, Mapping) else getattr(state, "__dict__", {})
    return ", ".join(repr(key) for key in sorted(map(str, keys))) or "nothing"


def _readable_turns(messages: Any, query: Any) -> tuple[list[Any], Conversation]:
    """Return the messages that can be read, `query` the last of them, and what they say."""
    turns = list(message_list(messages))
    if isinstance(query, str) and query:
        turns.append({"role": "user", "content": query})
    try:
        return turns, read_messages(turns)
    except Exception:  # of objects of whatever library
        turns = [turn for turn in turns if _is_readable(read_messages, turn)]
        return turns, read_messages(turns)


def _readable_tools(tools: Any) -> list[Any]:
    if isinstance(tools, str | Mapping):
        return _readable_tools([tools])
    return [tool for tool in tools if _is_readable(read_tools, tool)] if isinstance(tools, Iterable) else []


def _is_readable(read: Callable[[list[Any]], Any], item: Any) -> bool:
    try:
        read([item])
    except Exception as error:  # of objects of whatever library
        log.warning("a message or tool of type %s is left out (%s)", type(item).__name__, type(error).__name__)
        return False
    return True


def _context(
    state: Any, config: RunnableConfig, conversation: Conversation, tools: Sequence[Any], last_model: str | None
) -> Context:
    """Return what the router may know. A part of the state's `context` that cannot be read is left out."""
    given = _read(state, "context")
    raw: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    configurable = config.get("configurable") if isinstance(config, Mapping) else None
    configurable = configurable if isinstance(configurable, Mapping) else {}
    session = _read(state, "session_id") or configurable.get("session_id") or configurable.get("thread_id")
    if isinstance(session, str | int):
        raw.setdefault("session_id", session)
    if last_model:
        raw["last_model"] = last_model
    while True:
        try:
            context = conversation_context(conversation, raw, tools)
            break
        except (ContextError, RecursionError) as error:
            if not raw:  # the tools together are too much
                return conversation_context(conversation)
            field = getattr(error, "field", None)
            log.warning("a part of the context cannot be read and is left out: %s", field or type(error).__name__)
            raw = {key: value for key, value in raw.items() if key != field} if field in raw else {}
    if context.prompt_tokens is not None:
        return context
    return dataclasses.replace(context, prompt_tokens=prompt_tokens(conversation, context.tools))
