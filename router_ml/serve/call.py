"""One call of one model, under its time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router_ml.hosts.backend import Backend
from router_ml.hosts.host import HostRequest
from router_ml.hosts.reply import Reply
from router_ml.serve.answer import is_empty, may_be_empty, says_something
from router_ml.serve.request_state import RequestState
from router_ml.serve.stream import Opened, Sink
from router_ml.types import Think


class ModelCall:
    """Runs once. A stream may last until the deadline, but never be silent for longer than `idle_s`."""

    def __init__(
        self,
        state: RequestState,
        backend: Backend,
        request: HostRequest,
        timeout_s: float,
        idle_s: float,
        clock: Callable[[], float],
        think: Think | None = None,
    ) -> None:
        self._state, self._backend, self._request = state, backend, request
        self._idle_s = idle_s
        self._clock = clock
        self.think = think  # how the model is asked
        self.began_s = clock()
        self.timeout_s = max(0.0, min(timeout_s, state.deadline_s - self.began_s))
        self.first_token_s: float | None = None

    async def run(self, sink: Sink | None) -> Reply:
        """Return the whole reply; with a sink its parts are passed on as they come.

        Raises `TimeoutError` and the errors of the host."""
        host = self._backend.host.host
        async with asyncio.timeout(self.timeout_s) as limit:
            if sink is None:
                return await host.chat(self._request)
            parts: list[Reply] = []
            answered = may_be_empty(self._state.request.options)
            async for part in host.stream(self._request):
                parts.append(part)
                answered = answered or not is_empty(part)
                if part.tool_calls:
                    self._state.asked = (self._backend.model, [call for seen in parts for call in seen.tool_calls])
                if (
                    answered or not part.done
                ):  # the end of a reply without an answer is held back: another model continues
                    self._pass_on(sink, parts)
                left_s = max(0.0, self._state.deadline_s - self._clock())
                limit.reschedule(asyncio.get_running_loop().time() + min(self._idle_s, left_s))
            return Reply.joined(parts)

    def _pass_on(self, sink: Sink, parts: list[Reply]) -> None:
        """Pass the latest part on; parts are held back until one has content."""
        if self.first_token_s is not None:
            sink.part(self._shown(parts[-1]))
            return
        if not says_something(parts[-1]):
            return
        now_s = self._clock()
        self.first_token_s = now_s - self.began_s
        if self._state.first_token_s is None:
            self._state.first_token_s = now_s - self._state.began_s
        sink.opened(Opened(self._state.chosen, self._backend.model, tuple(self._state.attempts), self.think))
        for part in parts:
            sink.part(self._shown(part))

    def _shown(self, part: Reply) -> Reply:
        return part.without_logprobs() if self._state.hides_logprobs else part
