"""What a host answers: a whole reply, or one part of a streamed one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router_ml.numbers import is_number

_NS = 1e-9
MIN_LOGPROB = -30.0  # of one token, that the mean may count
_MAX_COUNT = 10**9  # tokens; larger counts are ignored


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, or one part of it. Durations are in seconds, sizes in tokens; None: the host did not say.

    `wire` is the reply as an Ollama server sends it (`/api/chat`); clients of Ollama read it from there."""

    wire: Mapping[str, Any] = field(repr=False)
    model: str = ""
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    done: bool = True
    done_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    total_s: float | None = None
    load_s: float | None = None
    prompt_eval_s: float | None = None
    eval_s: float | None = None

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Reply:
        """Return the reply that an object of `/api/chat` stands for.

        Raises `ValueError` if it is not one. Counts and durations that cannot be true are left out."""
        message = wire.get("message")
        if not isinstance(message, Mapping):
            raise ValueError("it has no message")
        content, thinking = message.get("content") or "", message.get("thinking") or ""
        calls = message.get("tool_calls") or ()
        model, reason = wire.get("model") or "", wire.get("done_reason")
        if not all(isinstance(text, str) for text in (content, thinking, model)):
            raise ValueError("its model, content or thinking is not text")
        if not isinstance(calls, Sequence) or not all(_is_call(call) for call in calls):
            raise ValueError("its tool calls have no function with a name and arguments")
        if not isinstance(message.get("role"), str):
            wire = {**wire, "message": {**message, "role": "assistant"}}
        return cls(
            _plausible(wire),
            model,
            content,
            thinking,
            tuple(calls),
            wire.get("done") is True,
            reason if isinstance(reason, str) else None,
            _count(wire.get("prompt_eval_count")),
            _count(wire.get("eval_count")),
            _seconds(wire.get("total_duration")),
            _seconds(wire.get("load_duration")),
            _seconds(wire.get("prompt_eval_duration")),
            _seconds(wire.get("eval_duration")),
        )

    @classmethod
    def joined(cls, parts: Sequence[Reply]) -> Reply:
        """Return the whole reply of a stream: texts joined, tool calls together, the figures of the last part."""
        last = parts[-1]
        content, thinking = "".join(part.content for part in parts), "".join(part.thinking for part in parts)
        calls = tuple(call for part in parts for call in part.tool_calls)
        message = {**last.wire["message"], "content": content}
        message.pop("thinking", None)
        message.update({key: value for key, value in (("thinking", thinking), ("tool_calls", list(calls))) if value})
        logprobs = [entry for part in parts for entry in part.wire.get("logprobs") or ()]
        wire = {**last.wire, "message": message, **({"logprobs": logprobs} if logprobs else {})}
        return dataclasses.replace(last, wire=wire, content=content, thinking=thinking, tool_calls=calls)

    def end(self) -> Reply:
        """Return the last part of a stream of this reply: its figures, without content."""
        message = {"role": "assistant", "content": ""}
        return dataclasses.replace(self, wire={**self.wire, "message": message}, content="", thinking="", tool_calls=())

    def without_logprobs(self) -> Reply:
        """Return the reply for a caller who did not ask for log-probabilities."""
        if "logprobs" not in self.wire:
            return self
        return dataclasses.replace(self, wire={key: value for key, value in self.wire.items() if key != "logprobs"})

    @property
    def logprob_mean(self) -> float | None:
        """Return the mean log-probability of the tokens, thinking included; None where the host gave none."""
        return mean_logprob(self.wire.get("logprobs"))

    @property
    def queue_s(self) -> float | None:
        """Return the seconds the host let the request wait: its total less loading, prompt and generation."""
        if self.total_s is None:
            return None
        return max(0.0, self.total_s - sum(part or 0.0 for part in (self.load_s, self.prompt_eval_s, self.eval_s)))


def mean_logprob(entries: Any) -> float | None:
    """Return the mean of `logprob` over entries as Ollama lists them; None without any, or if one is no number.

    A token's is at most 0, and taken as `MIN_LOGPROB` below that: servers write -3.4e38 for "never"."""
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        return None
    values: list[Any] = [entry.get("logprob") if isinstance(entry, Mapping) else None for entry in entries]
    if not all(is_number(value) and value == value for value in values):
        return None
    return math.fsum(min(max(float(value), MIN_LOGPROB), 0.0) for value in values) / len(values)


_COUNTS = ("prompt_eval_count", "eval_count")
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def _plausible(wire: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the object without counts and durations that are not whole numbers, which clients refuse to read."""
    odd = [key for key in (*_COUNTS, *_DURATIONS) if key in wire and not _whole(wire[key])]
    odd += [key for key in ("created_at", "done_reason") if not isinstance(wire.get(key, ""), str)]
    return {key: value for key, value in wire.items() if key not in odd} if odd else wire


def _whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return False
    return isinstance(function.get("name"), str) and isinstance(function.get("arguments"), Mapping)


def _count(value: Any) -> int | None:
    return value if _whole(value) and value is not None and 0 <= value <= _MAX_COUNT else None


def _seconds(nanoseconds: Any) -> float | None:
    if not _whole(nanoseconds) or nanoseconds is None or not 0 <= nanoseconds < 2**63:
        return None
    seconds = nanoseconds * _NS
    return seconds if math.isfinite(seconds) else None
