"""The models a double serves, and what they say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_PIECES = re.compile(r"\s*\w+|\s*[^\w\s]+|\s+")


@dataclass(frozen=True)
class Reply:
    """What a model generates for one request."""

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # {"name", "arguments"}
    output_tokens: int | None = None  # where absent, pieces plus the end token
    logprob: float = 0.0  # of every token, where log-probabilities are asked for

    @property
    def content_pieces(self) -> list[str]:
        return _PIECES.findall(self.content)

    @property
    def thinking_pieces(self) -> list[str]:
        return _PIECES.findall(self.thinking)


@dataclass(frozen=True)
class DoubleModel:
    """One model: what it can do, how fast it is, and how it answers.

    `reply` gets the request body and returns a `Reply` or plain text; without it the model says `text`."""

    name: str
    text: str = "Here is the answer."
    thinking_text: str = "Let me think.\n"
    capabilities: frozenset[str] = frozenset({"completion", "tools"})
    size_gb: float = 2.0
    load_s: float = 0.0
    prompt_tokens_per_s: float = 1e6
    decode_tokens_per_s: float = 1e5
    parallel: int = 1
    context_tokens: int = 4096
    family: str = "llama"
    prompt_overhead_tokens: int = 11
    gives_logprobs: bool = True  # as Ollama does from 0.12 on
    reply: Callable[[Mapping[str, Any]], Reply | str] | None = field(default=None, compare=False)

    def answer(self, body: Mapping[str, Any]) -> Reply:
        """The whole reply to a request, before any limit on its length."""
        if self.reply is not None:
            made = self.reply(body)
            return Reply(made) if isinstance(made, str) else made
        if body.get("tools"):
            first = body["tools"][0]["function"]
            required = (first.get("parameters") or {}).get("required") or []
            return Reply(tool_calls=({"name": first["name"], "arguments": dict.fromkeys(required, "Paris")},))
        thinks = "thinking" in self.capabilities and body.get("think", True) not in (False, "none")
        return Reply(self.text, self.thinking_text if thinks else "")


def default_models() -> tuple[DoubleModel, ...]:
    """The three models of the default catalogue, quick enough for tests."""
    return (
        DoubleModel("llama3.2:3b-instruct", "The llama says hello.", size_gb=2.0),
        DoubleModel("qwen2.5:3b-instruct", "Qwen two says hello.", size_gb=1.9, family="qwen2"),
        DoubleModel(
            "qwen3:8b", "Qwen three says hello!", size_gb=5.2, family="qwen3",
            capabilities=frozenset({"completion", "tools", "thinking"}),
        ),
    )  # fmt: skip
