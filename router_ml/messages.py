"""Read the messages of a conversation, whichever library wrote them. The gateway, the node and `select_model` use it.

    conversation = read_messages(messages)
    conversation.query, conversation.history, conversation.tokens, conversation.in_tool_loop

A message may be a string, a pair (role, content), a dictionary (OpenAI, Ollama, Anthropic, a LangChain dump) or an
object with the same attributes (LangChain, ollama, pydantic, dataclasses). Content may be a string, None or a list of
parts. Nothing here changes what is sent to a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, TypeGuard

from router_ml.errors import QueryError
from router_ml.harness import user_text
from router_ml.types import Turn

MESSAGE_TOKENS = 4  # what a chat template adds to a message
MAX_DEPTH, MAX_VALUES = 64, 200_000  # of a JSON value that is measured
_ROLES = {
    "user": "user", "human": "user", "humanmessagechunk": "user", "request": "user",
    "assistant": "assistant", "ai": "assistant", "model": "assistant", "bot": "assistant", "gpt": "assistant",
    "chatbot": "assistant", "aimessagechunk": "assistant", "response": "assistant", "function_call": "assistant",
    "reasoning": "assistant", "system": "system", "developer": "system", "systemmessagechunk": "system",
    "tool": "tool", "function": "tool", "toolmessagechunk": "tool", "functionmessagechunk": "tool", "ipython": "tool",
    "function_call_output": "tool", "tool_result": "tool", "message": "user",
}  # fmt: skip
_PREFIXES = ("user", "human", "assistant", "ai", "system")  # that a plain string may begin with, before ": "
_CONTENT_KEYS = ("content", "text", "parts", "value", "output", "summary")
_MESSAGE_KEYS = frozenset({"role", "content", "text", "parts", "value", "output", "arguments", "summary", "tool_calls"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_FILES = frozenset({
    "file", "input_file", "document", "audio", "input_audio", "audio_url", "video", "video_url", "media", "inline_data",
    "inlineData", "file_data",
})  # fmt: skip
_THOUGHTS = ("thinking", "reasoning", "reasoning_content")
_CALLS = frozenset({"tool_use", "tool_call", "server_tool_use", "function_call", "tool-call"})
_RESULTS = frozenset({"tool_result", "function_call_output", "tool-return", "mcp_tool_result"})
_SURROGATE = re.compile("[\ud800-\udfff]")
# About one token a character: Indic, Thai and other scripts of South and East Asia, kana, Han, Hangul, symbols, emoji.
_WIDE = re.compile("[\u0900-\u1cff\u2190-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00010000-\U0010ffff]+")
_HALF = re.compile("[\u0250-\u08ff]+")  # about two characters a token: Greek, Cyrillic, Hebrew, Arabic


class Message(NamedTuple):
    """One message, read."""

    role: str  # "user", "assistant", "system", "tool", or an unknown role as it was written
    text: str = ""
    images: int = 0
    files: tuple[tuple[str, str], ...] = ()  # (name, media type or kind)
    calls: tuple[str, ...] = ()  # ids (else names) of the tools it calls
    answers: str = ""  # id (else name) of the tool call whose result it is
    model: str = ""  # that wrote it, where the message says so
    unread_tokens: float = 0.0  # estimated size of its tool calls, thinking and results, besides the text

    @property
    def tokens(self) -> float:
        """Estimated size in tokens, without images and files."""
        return MESSAGE_TOKENS + estimate_tokens(self.text) + self.unread_tokens


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as the router reads it."""

    messages: tuple[Message, ...]
    query: str  # the last text of the user, without what a harness added; "" if there is none
    query_index: int  # index of the message that holds it; len(messages) if there is none
    history: tuple[Turn, ...]  # before the query, oldest first
    attachment: str  # names of the images and files that came with the query; "" if there are none
    attachment_kind: str  # "image", "audio", "document" or ""
    has_images: bool  # anywhere in the conversation
    tokens: int  # estimated size of the whole conversation
    in_tool_loop: bool  # the last message is the result of a tool

    @property
    def asked_by(self) -> Message | None:
        """The message whose tool call the last message answers; None outside a tool loop."""
        if not self.in_tool_loop:
            return None
        return next((message for message in reversed(self.messages) if message.calls), None)

    @property
    def turn_key(self) -> str:
        """A digest that all requests of one user's turn share: of every message up to the query."""
        digest = blake2b(digest_size=16)
        for message in self.messages[: self.query_index + 1]:
            digest.update(f"{message.role}\0{message.text}\0{message.images}\0".encode())
        return digest.hexdigest()


def read_messages(messages: Any) -> Conversation:
    """Return the conversation in `messages`: a string, one message, a list of them, or an object that holds them.

    Raises `QueryError` for a value that is not a message."""
    read = [_read(item, place) for place, item in enumerate(message_list(messages))]
    if read and not read[-1].role:
        read[-1] = read[-1]._replace(role="user")
    whole = tuple(_with_roles(read))
    place, query = _last_user_text(whole)
    recent = whole[place:]
    kinds = [kind for message in recent for kind in _kinds(message)]
    last = whole[-1] if whole else Message("")
    return Conversation(
        whole,
        query,
        place,
        tuple(turn_of(message) for message in whole[:place]),
        ", ".join(name for message in recent for name in _names(message)),
        next((kind for kind in ("image", "audio", "document") if kind in kinds), ""),
        any(message.images for message in whole),
        int(MESSAGE_TOKENS + sum(message.tokens for message in whole)) if whole else 0,
        last.role == "tool" or bool(last.answers),
    )


def read_history(history: Iterable[Any]) -> list[Message]:
    """Return the messages before a query, oldest first. Turns without a role alternate backwards from the assistant.

    Raises `QueryError` for a value that is not a message."""
    return _with_roles([_read(item, place) for place, item in enumerate(history)])


def turn_of(message: Message) -> Turn:
    """Return a message as a turn of the history; of a user message only the user's own text."""
    return Turn(message.role, (user_text(message.text) if message.role == "user" else "") or message.text)


def alternating(roles: Sequence[str]) -> list[str]:
    """Return the roles of a history with each unknown one ("") filled in, backwards from the query (a user's)."""
    filled, following = list(roles), "user"
    for place in range(len(filled) - 1, -1, -1):
        filled[place] = filled[place] or ("assistant" if following == "user" else "user")
        if filled[place] in ("user", "assistant"):
            following = filled[place]
    return filled


def clean_text(text: str) -> str:
    """Return the text with each unpaired surrogate, which no encoding can write, replaced by U+FFFD; a pair becomes the
    character it stands for."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def estimate_tokens(text: str) -> float:
    """Estimate how many tokens a text has, by its scripts: four Latin characters, two Cyrillic, Greek, Arabic or
    Hebrew ones, one Chinese, Japanese, Korean, Thai or Indic character a token."""
    if text.isascii():
        return len(text) / 4
    wide = sum(map(len, _WIDE.findall(text)))
    half = sum(map(len, _HALF.findall(text)))
    return (len(text) - wide - half) / 4 + wide + half / 2


def json_text(value: Any) -> str:
    """Return any value as JSON. Raises ValueError if it is too large, too deep or holds itself."""
    check_bounded(value)
    return json.dumps(value, default=shown, skipkeys=True, ensure_ascii=False)


def check_bounded(value: Any, max_values: int = MAX_VALUES, max_depth: int = MAX_DEPTH) -> int:
    """Return how many values are within a value. Raises ValueError as soon as there are too many, or too deep ones.

    Parts that are shared count each time, as they would be written; a value that holds itself is too deep."""
    level, n_values = [value] if isinstance(value, _CONTAINERS) else [], 0
    for _ in range(max_depth):
        below: list[Any] = []
        for item in level:
            n_values += len(item)
            if n_values > max_values:
                raise ValueError(f"it holds more than {max_values:,} values, or itself")
            for part in item.values() if isinstance(item, dict) else item:
                if type(part) not in PLAIN_TYPES and isinstance(part, _CONTAINERS):  # the first test is the cheaper one
                    below.append(part)  # noqa: PERF401 - most levels are short, and hold nothing to append
        if not below:
            return n_values
        level = below
    raise ValueError(f"it nests deeper than {max_depth} levels, or holds itself")


_CONTAINERS = (dict, list, tuple, set, frozenset)
PLAIN_TYPES = frozenset({str, int, float, bool, type(None)})


def shown(value: Any) -> str:
    """Represent a value that is not JSON by its type's name; its size is not counted."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else type(value).__name__


def message_list(messages: Any) -> Iterable[Any]:
    """Return the messages in a list of them, one message alone, or an object that holds them; none for None."""
    if messages is None:
        return ()
    if hasattr(messages, "to_messages"):  # LangChain's prompt values
        messages = messages.to_messages()
    if isinstance(messages, Mapping) and "messages" in messages and "role" not in messages:
        messages = messages["messages"]
    one = isinstance(messages, str | Mapping) or not isinstance(messages, Iterable) or hasattr(messages, "content")
    return (messages,) if one else messages


def _with_roles(messages: list[Message]) -> list[Message]:
    if all(message.role for message in messages):
        return messages
    roles = alternating([message.role for message in messages])
    return [message._replace(role=role) for message, role in zip(messages, roles, strict=True)]


def _last_user_text(messages: Sequence[Message]) -> tuple[int, str]:
    """Return the index and the text of the last message with text of the user, else of the last user message."""
    fallback = len(messages)
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if message.role != "user":
            continue
        text = user_text(message.text)
        if text or message.images or message.files:
            return place, text
        fallback = place if fallback == len(messages) else fallback
    return fallback, messages[fallback].text if fallback < len(messages) else ""


def _names(message: Message) -> list[str]:
    return ["image"] * bool(message.images) + [name for name, _ in message.files]


def _kinds(message: Message) -> list[str]:
    kinds = ["audio" if "audio" in kind else "document" for _, kind in message.files]
    return ["image"] * bool(message.images) + kinds


def _read(item: Any, place: int) -> Message:
    message = _message(item)
    if message is None:
        raise QueryError(
            f"message {place} must be a string, a pair (role, content), or a mapping or object with a role and "
            f"content; found {type(item).__name__}"
        )
    return message


def _message(item: Any, depth: int = 0) -> Message | None:
    if isinstance(item, str):
        prefix, _, spoken = item.partition(": ")
        known = spoken and prefix.lower() in _PREFIXES
        return Message(_ROLES[prefix.lower()], clean_text(spoken)) if known else Message("", clean_text(item))
    if isinstance(item, tuple | list):
        if len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], str | list | tuple):
            return _Reader(_role(item[0]), item[1], lambda key: None).message()
        return None
    if isinstance(item, Mapping):
        if len(item) == 2 and isinstance(text := item.get("content"), str) and isinstance(item.get("role"), str):
            return Message(_role(item["role"] or "user"), clean_text(text))  # by far the commonest
        return _mapping(item, depth)
    speaker, inner = getattr(item, "role", None) or getattr(item, "type", None), getattr(item, "message", None)
    if isinstance(speaker, str) and any(hasattr(item, key) for key in _CONTENT_KEYS):
        return _Reader(_role(speaker), None, lambda key: getattr(item, key, None)).message()
    return _message(inner, depth + 1) if inner is not None and depth < 2 else None


def _mapping(item: Mapping[Any, Any], depth: int) -> Message | None:
    for key, role in (("data", item.get("type")), ("kwargs", (item.get("id") or ("",))[-1:]), ("message", "")):
        inner = item.get(key)
        if isinstance(inner, Mapping) and "content" not in item and depth < 2:  # a dump of LangChain's, or a reply
            named = role if isinstance(role, str) else str(role[0] if role else "").removesuffix("Message").lower()
            return _mapping({"type": named, **inner}, depth + 1)
    if _MESSAGE_KEYS.isdisjoint(item):
        return None
    role = item.get("role") or item.get("type") or item.get("from") or item.get("kind") or "user"
    return _Reader(_role(role if isinstance(role, str) else "user"), None, item.get).message()


def _role(written: str) -> str:
    return _ROLES.get(written.lower()) or clean_text(written)


class _Reader:
    """Collects what the parts of one message hold."""

    def __init__(self, role: str, content: Any, get: Callable[[str], Any]) -> None:
        self._role, self._get = role, get
        self._content = content if content is not None else next((v for v in map(get, _CONTENT_KEYS) if v), None)
        self._texts: list[str] = []
        self._results: list[str] = []
        self._files: list[tuple[str, str]] = []
        self._calls: list[str] = []
        self._images, self._unread, self._answers = 0, 0.0, ""

    def message(self) -> Message:
        """Return the message. What a part does not say is left out; no part is expanded more than twice."""
        get = self._get
        self._add_content(self._content)
        images = get("images")
        self._images += len(images) if isinstance(images, Sequence) and not isinstance(images, str) else bool(images)
        calls = get("tool_calls") or (get("function_call"),)
        for call in calls if isinstance(calls, Sequence) and not isinstance(calls, str) else ():
            self._add_call(call)
        if get("type") in _CALLS:
            self._add_call({key: get(key) for key in ("call_id", "id", "name", "arguments", "input")})
        self._unread += sum(estimate_tokens(thought) for key in _THOUGHTS if isinstance(thought := get(key), str))
        named = (get(key) for key in ("tool_call_id", "call_id", "tool_name", "name"))
        answers = self._answers or next((value for value in named if isinstance(value, str) and value), "")
        return self._made(answers)

    def _made(self, answers: str) -> Message:
        text, results = " ".join(self._texts), " ".join(self._results)
        role, unread = self._role, self._unread
        if results and not user_text(text):
            role, text = "tool", results
        elif results:
            unread += estimate_tokens(results)
        if role != "tool":
            answers = ""
        files, calls = tuple(self._files), tuple(self._calls)
        return Message(role, clean_text(text), self._images, files, calls, answers, self._model(), unread)

    def _model(self) -> str:
        metadata = self._get("response_metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        named = (self._get("model"), metadata.get("model_name"), metadata.get("model"))
        return next(filter(_is_name, named), "")

    def _add_content(self, content: Any, into: list[str] | None = None, depth: int = 0) -> None:
        into = self._texts if into is None else into
        if isinstance(content, str):
            into.append(content)
        elif isinstance(content, bytes | bytearray):
            into.append(content.decode("utf-8", "replace"))
        elif isinstance(content, Mapping):
            self._add_part(content, into, depth)
        elif isinstance(content, Sequence):
            for part in content:
                if isinstance(part, str):
                    into.append(part)
                elif depth < 2:
                    self._add_part(part if isinstance(part, Mapping) else _Attributes(part), into, depth)
        elif content is not None and isinstance(content, int | float):
            into.append(str(content))

    def _add_part(self, part: Mapping[str, Any], into: list[str], depth: int) -> None:
        kind = part.get("type") or part.get("part_kind") or ""
        kind = kind if isinstance(kind, str) else ""
        media = _media_type(part)
        if kind in _CALLS:
            self._add_call(part)
        elif kind in _RESULTS:
            self._answers = str(part.get("tool_use_id") or part.get("tool_call_id") or part.get("call_id") or "tool")
            self._add_content(part.get("content", part.get("output")), self._results, depth + 1)
        elif kind in _IMAGES or media.startswith("image/") or (not kind and any(key in part for key in _IMAGES)):
            self._images += 1
        elif kind in _FILES or media or (not kind and any(key in part for key in _FILES)):
            self._files.append((_file_name(part, media or kind), media or kind))
        elif isinstance(thought := part.get("thinking") or part.get("reasoning"), str):
            self._unread += estimate_tokens(thought)
        else:
            self._add_content(part.get("text") or part.get("refusal") or part.get("content"), into, depth + 1)

    def _add_call(self, call: Any) -> None:
        if call is None:
            return
        call = call if isinstance(call, Mapping) else _Attributes(call)
        inner = call.get("function")
        function = inner if isinstance(inner, Mapping) else call if inner is None else _Attributes(inner)
        name: str = next(filter(_is_name, (call.get("call_id"), call.get("id"), function.get("name"))), "call")
        self._calls.append(name)
        arguments = next((v for key in ("arguments", "args", "input") if (v := function.get(key))), "")
        try:
            said = arguments if isinstance(arguments, str) else json_text(arguments)
        except ValueError as error:
            raise QueryError(f"the arguments of the tool call {name!r:.60} cannot be read: {error}") from error
        self._unread += estimate_tokens(said) + MESSAGE_TOKENS


class _Attributes(Mapping[str, Any]):
    """The attributes of an object as a mapping."""

    def __init__(self, item: Any) -> None:
        self._item = item

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self._item, key)
        except AttributeError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        return iter(getattr(self._item, "__dict__", ()))

    def __len__(self) -> int:
        return len(getattr(self._item, "__dict__", ()))


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value)


def _inner(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a part, and the object in which most formats keep the data of a file."""
    yield part
    for key in ("source", *_FILES):
        if isinstance(inner := part.get(key), Mapping):
            yield inner


def _media_type(part: Mapping[str, Any]) -> str:
    for layer in _inner(part):
        for key in ("mime_type", "media_type", "mimeType", "mediaType"):
            if isinstance(given := layer.get(key), str) and given:
                return given.lower()
        for key in ("url", "file_data", "data"):
            if isinstance(given := layer.get(key), str) and given.startswith("data:"):
                return given[5:70].split(";")[0].split(",")[0].lower()
    return ""


def _file_name(part: Mapping[str, Any], kind: str) -> str:
    names = (layer.get(key) for layer in _inner(part) for key in ("filename", "file_name", "name", "title"))
    return clean_text(next(filter(_is_name, names), "audio" if "audio" in kind else "file"))
