"""One call of one model, under its time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import ollama

from router_ml.hosts.fleet import Backend
from router_ml.serve.answer import says_something
from router_ml.serve.request_state import RequestState
from router_ml.serve.stream import Opened, Sink, joined


class Call:
    """Runs once. A stream may last until the deadline, but never be silent for longer than `idle_s`."""

    def __init__(
        self,
        job: RequestState,
        backend: Backend,
        arguments: Mapping[str, Any],
        timeout_s: float,
        idle_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._job, self._backend, self._arguments = job, backend, arguments
        self._idle_s = idle_s
        self._clock = clock
        self.began_s = clock()
        self.timeout_s = max(0.0, min(timeout_s, job.deadline_s - self.began_s))
        self.first_token_s: float | None = None

    async def run(self, sink: Sink | None) -> ollama.ChatResponse:
        """The whole answer; with a sink its parts are passed on as they come.

        Raises `TimeoutError`, `BadAnswer` and whatever the ollama client raises."""
        transport, name = self._backend.host.transport, self._backend.wire_name
        async with asyncio.timeout(self.timeout_s) as limit:
            if sink is None:
                return await transport.chat(name, self._arguments)
            parts: list[ollama.ChatResponse] = []
            async for part in transport.stream(name, self._arguments):
                parts.append(part)
                if sink.started:
                    sink.part(part)
                elif says_something(part):
                    self._open(sink, parts)
                left_s = max(0.0, self._job.deadline_s - self._clock())
                limit.reschedule(asyncio.get_running_loop().time() + min(self._idle_s, left_s))
            return joined(parts)

    def _open(self, sink: Sink, parts: list[ollama.ChatResponse]) -> None:
        """Pass on what was held back: until a part says something another model may still answer."""
        now_s = self._clock()
        self.first_token_s = now_s - self.began_s
        self._job.first_token_s = now_s - self._job.began_s
        sink.opened(Opened(self._job.chosen, self._backend.model, tuple(self._job.attempts)))
        for part in parts:
            sink.part(part)
