"""How fast a host runs a model: one short answer to a prompt of some length, and one with thinking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx

from router_ml.hosts.failure import HostError
from router_ml.hosts.http import api_key_headers, chat_once, http_client
from router_ml.hosts.listing import Listed, run_apart
from router_ml.hosts.rates import was_cold
from router_ml.settings import DEFAULT_HOST_TYPE, host_type, without_credentials

ANSWER_TOKENS = 64  # the longest answer without thinking
THINKING_TOKENS = 512  # and with it
_QUESTION = "A train leaves at 9:40 and takes 2 hours 35 minutes. When does it arrive? Answer in one short sentence."
# About 400 tokens that no server has cached: the time stands in front.
_FILLER = "The quick brown fox jumps over the lazy dog near the river bank while seven clouds drift by. " * 20


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one model. None: not measured, for lack of time or since the host does not say."""

    decode_tokens_per_s: float
    prompt_tokens_per_s: float
    load_s: float | None = None  # None, too, where it was in memory already
    output_tokens: float | None = None  # of the short answer
    thinking_tokens: float | None = None  # of the same with thinking
    context_tokens: int | None = None  # the window it was loaded with
    host: str = ""  # where, without credentials


def measure(listed: Listed, limit_s: float = 60.0) -> Measurement | str:
    """Return the measurement of a model, or why there is none. Takes `limit_s` seconds at most.

    One short call, which also loads it, and one more with thinking where it can think."""
    kind, address = host_type(listed.host)
    if kind != DEFAULT_HOST_TYPE:
        return "its host reports no durations"
    found = run_apart(_measured(listed, address, limit_s))
    return replace(found, host=without_credentials(address)) if isinstance(found, Measurement) else found


async def _measured(listed: Listed, address: str, limit_s: float) -> Measurement | str:
    thinks = "thinking" in (listed.capabilities or ())
    replies: list[Mapping[str, Any]] = []
    ended = ""
    timeout = httpx.Timeout(None, connect=2.0)
    try:
        async with asyncio.timeout(limit_s), http_client(address, timeout, api_key_headers()) as client:
            text = f"{time.time_ns()} {_FILLER}\n{_QUESTION}"
            replies.append(await _chat(client, listed.name, text, False, thinks))
            if thinks:
                replies.append(await _chat(client, listed.name, _QUESTION, True, thinks))
            context = await _context(client, listed.name)
    except TimeoutError:
        context, ended = None, f"it took longer than {limit_s:g} s"
    except (HostError, httpx.HTTPError) as error:
        context, ended = None, " ".join(str(error).split())[:200] or type(error).__name__
    return _measurement(replies, context) or ended or "its host reports no durations"


async def _chat(client: httpx.AsyncClient, model: str, text: str, think: bool, thinks: bool) -> Mapping[str, Any]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "options": {"temperature": 0, "num_predict": THINKING_TOKENS if think else ANSWER_TOKENS},
        **({"think": think} if thinks else {}),
    }
    return await chat_once(client, body)


async def _context(client: httpx.AsyncClient, model: str) -> int | None:
    response = await client.get("/api/ps")
    entries = response.json().get("models", []) if response.is_success else []
    found = next((e.get("context_length") for e in entries if model in (e.get("model"), e.get("name"))), None)
    return found if isinstance(found, int) and found > 0 else None


def _measurement(replies: list[Mapping[str, Any]], context_tokens: int | None) -> Measurement | None:
    if not replies:
        return None
    first = replies[0]
    prompt = _rate(first, "prompt_eval")
    decode = max((rate for reply in replies if (rate := _rate(reply, "eval"))), default=None)
    if prompt is None or decode is None:
        return None
    return Measurement(
        decode_tokens_per_s=decode,
        prompt_tokens_per_s=prompt,
        load_s=load_s if was_cold(load_s := _seconds(first, "load_duration")) else None,
        output_tokens=_count(first, "eval_count"),
        thinking_tokens=_count(replies[1], "eval_count") if len(replies) > 1 else None,
        context_tokens=context_tokens,
    )


def _rate(reply: Mapping[str, Any], what: str) -> float | None:
    count, seconds = _count(reply, f"{what}_count"), _seconds(reply, f"{what}_duration")
    return count / seconds if count and seconds else None


def _count(reply: Mapping[str, Any], key: str) -> float | None:
    value = reply.get(key)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _seconds(reply: Mapping[str, Any], key: str) -> float | None:
    value = reply.get(key)
    return value / 1e9 if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
