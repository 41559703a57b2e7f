"""One generation that passes through to a host: its slot there, its duration, and the recorded outcome."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from router_ml.events.event import OutcomeEvent, new_id
from router_ml.hosts.breaker import Breaker, Permit
from router_ml.hosts.gate import Gate
from router_ml.hosts.names import normal

_TAIL_BYTES = 256 * 2**10  # of an answer, held to find its figures
_NEWEST_SHARE = 0.2  # of the latest call in the mean service time


@dataclass
class HostedModel:
    """One model on one host: the gate, the breaker and the load of calls that pass through."""

    gate: Gate
    breaker: Breaker
    service_s: float = 1.0  # mean seconds of a call
    calls: int = 0  # running and waiting


class NamedCall:
    """One call, begun with a permit of the breaker. The first call of `ended` counts; later ones are ignored."""

    def __init__(
        self,
        model: str,
        hosted: HostedModel,
        permit: Permit,
        record: Callable[[OutcomeEvent], None],
        decision_id: str | None,
    ) -> None:
        self._model, self._hosted, self._permit, self._record = normal(model), hosted, permit, record
        self._named = decision_id is None  # by the caller: nothing was decided
        self.decision_id = decision_id or new_id()[:16]
        self._began = time.monotonic()
        hosted.calls += 1
        self._inside = self._over = False
        self._first_s: float | None = None

    async def enter(self, patience_s: float) -> None:
        """Wait for a slot. Raises `Shed` if none becomes free in time."""
        await self._hosted.gate.enter(patience_s, self._hosted.service_s)
        self._inside = True

    async def passed(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the bytes of the answer as they come."""
        tail = bytearray()
        try:
            async for data in answer.aiter_raw():
                if self._first_s is None:
                    self._first_s = time.monotonic() - self._began
                tail += data
                if len(tail) > 2 * _TAIL_BYTES:
                    del tail[:-_TAIL_BYTES]
                yield data
        except httpx.TransportError:
            self.ended("connection")
            raise
        figures = final_figures(bytes(tail))
        if answer.status_code >= 500 or (answer.status_code < 400 and "error" in figures):
            self.ended("server_error")
        elif answer.status_code >= 400:
            self.ended("caller")
        else:
            self.ended(None, figures)

    def ended(self, error: str | None, figures: Mapping[str, Any] | None = None) -> None:
        """Free the slot and record the result. `error` is None for success, `caller` for a mistake of the caller,
        `refused` for a host that takes no connections, `shed` for no free slot, `cancelled` for a client that left."""
        if self._over:
            return
        self._over = True
        took_s = time.monotonic() - self._began
        self._hosted.calls -= 1
        if self._inside:
            self._hosted.gate.leave()
        if error in ("caller", "refused", "shed", "cancelled"):
            self._permit.released()  # says nothing about the model
        else:
            (self._permit.succeeded if error is None else self._permit.failed)()
        if error is None:
            self._hosted.service_s += _NEWEST_SHARE * (took_s - self._hosted.service_s)
        if error not in ("caller", "refused", "shed"):
            self._record(self._outcome(error, took_s, figures or {}))

    def _outcome(self, error: str | None, took_s: float, figures: Mapping[str, Any]) -> OutcomeEvent:
        return OutcomeEvent(
            decision_id=self.decision_id,
            model=self._model,
            success=None if error in (None, "cancelled") else 0.0,
            latency_s=took_s,
            ok=error is None,
            first_token_s=self._first_s,
            error=error,
            pinned=self._named,
            **figures,
        )


def final_figures(tail: bytes) -> dict[str, Any]:
    """Return the tokens and seconds at the end of an answer, in the form of any API; `error` if it is one."""
    for line in reversed(tail.strip().split(b"\n")):
        text = line.strip().removeprefix(b"data:").strip()
        if not text.startswith(b"{"):
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        if isinstance(found, dict) and (figures := _figures(found)):
            return figures
    return {}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    if found.get("error") is not None:
        return {"error": True}
    if "eval_count" in found or "prompt_eval_count" in found:
        seconds = {name: found.get(f"{name[:-2]}_duration") for name in ("load_s", "prompt_eval_s", "eval_s")}
        counts = {"prompt_tokens": found.get("prompt_eval_count"), "output_tokens": found.get("eval_count")}
        return {**_whole(counts), **{name: ns * 1e-9 for name, ns in _whole(seconds).items()}}
    inner = found.get("response")
    usage = found.get("usage") or (inner.get("usage") if isinstance(inner, Mapping) else None)
    if not isinstance(usage, Mapping):
        return {}
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return _whole({
        "prompt_tokens": usage.get("input_tokens") if read is None else read,
        "output_tokens": usage.get("output_tokens") if written is None else written,
    })  # fmt: skip


def _whole(values: Mapping[str, Any]) -> dict[str, int]:
    return {k: v for k, v in values.items() if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 10**15}
