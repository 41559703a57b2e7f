"""Prompts longer than the window a model was loaded with: Ollama cuts them from the front and answers all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_ml.catalogue import Model
from router_ml.hosts.backend import Backend
from router_ml.hosts.reply import Reply

DEFAULT_WINDOW_TOKENS = 4_096  # of an Ollama server on a machine with less than 23 GiB of video memory
_ANSWER_TOKENS = 512  # reserved for the answer
_STEP_TOKENS = 4_096  # windows are asked for in steps, so that a growing conversation seldom reloads the model
_CUT_SHARE = 0.75  # of the estimate; fewer tokens read than this were not all of the prompt
_CUT_TOKENS = 256  # a smaller difference may be an error of the estimate


def widened(
    arguments: dict[str, Any], prompt_tokens: int | None, model: Model | None, backend: Backend, max_num_ctx: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the arguments with `num_ctx` raised where the prompt would be cut, and the names of what was changed.

    A window the caller or the settings gave stays. It is never raised above what the model can read, nor above
    `max_num_ctx`; within those, a window already loaded is not lowered."""
    options = arguments.get("options") or {}
    if prompt_tokens is None or "num_ctx" in options:
        return arguments, ()
    needed = prompt_tokens + _ANSWER_TOKENS
    loaded = backend.host.context_tokens(backend.model)
    if needed <= (loaded or DEFAULT_WINDOW_TOKENS):
        return arguments, ()
    able = None if model is None else model.max_context_tokens or model.context_window_tokens
    wanted = min(-(-needed // _STEP_TOKENS) * _STEP_TOKENS, max_num_ctx, able or max_num_ctx)
    if wanted <= (loaded or DEFAULT_WINDOW_TOKENS):
        return arguments, ()
    return {**arguments, "options": {**options, "num_ctx": wanted}}, ("num_ctx",)


def prompt_was_cut(reply: Reply, prompt_tokens: int | None, arguments: Mapping[str, Any], backend: Backend) -> bool:
    """Return whether the model read far fewer tokens than the prompt has, as many as its window holds."""
    if prompt_tokens is None or reply.prompt_tokens is None:
        return False
    sent = (arguments.get("options") or {}).get("num_ctx")
    window = sent or backend.host.context_tokens(backend.model) or DEFAULT_WINDOW_TOKENS
    missing = prompt_tokens - reply.prompt_tokens
    return prompt_tokens > window and missing > max(_CUT_TOKENS, (1 - _CUT_SHARE) * prompt_tokens)
