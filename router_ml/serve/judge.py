"""An optional judge: a local model that is asked, blind and on a sample, whether an answer does what was asked.

It sees the conversation and the answer, never which model gave it, what was predicted, or what people said. One answer
is judged at a time, in a thread of its own, and what does not fit into a short queue is not judged: no request waits
for it. Texts stay in memory and go to the judge's host alone; its judgement is feedback of the kind "judge", which
weighs less than a person's (see `router_ml.events.judgement`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router_ml.events.blind_question import OPTIONS, SCHEMA, question
from router_ml.events.event import FeedbackEvent, Recorder
from router_ml.hosts.http import api_key_headers, chat_once, http_client
from router_ml.messages import Message
from router_ml.settings import Settings

log = logging.getLogger(__name__)

_MAX_CHARS = 12_000  # of the request and of the answer
_WAITING = 8
_TIMEOUT_S = 60.0

Ask = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True, slots=True)
class _Sample:
    decision_id: str
    request: str
    answer: str


class BlindJudge:
    """Judges a share of answers in the background. Thread-safe; never raises and never waits."""

    def __init__(
        self, ask: Ask, recorder: Recorder, share: float, *, draw: Callable[[], float] = random.random
    ) -> None:
        self._ask, self._recorder, self._share, self._draw = ask, recorder, share, draw
        self._begin()

    def _begin(self) -> None:
        """Begin with an empty queue, as a forked child must."""
        self._pid = os.getpid()
        self._waiting: queue.Queue[_Sample] = queue.Queue(_WAITING)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def consider(self, decision_id: str, messages: Sequence[Message], answer: str) -> None:
        """Judge this answer later, or not."""
        if not answer or self._draw() >= self._share:
            return
        if self._pid != os.getpid():
            self._begin()
        request = "\n".join(f"{message.role}: {message.text}" for message in messages if message.role != "system")
        try:
            self._waiting.put_nowait(_Sample(decision_id, request[-_MAX_CHARS:], answer[:_MAX_CHARS]))
            self._ensure_thread()
        except (queue.Full, RuntimeError):  # busy, or the interpreter is ending
            return

    def _ensure_thread(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="router-ml-judge", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            sample = self._waiting.get()
            try:
                passed = json.loads(self._ask(question(sample.request, sample.answer)))["pass"]
                if isinstance(passed, bool):
                    self._recorder.record(FeedbackEvent(sample.decision_id, "judge", float(passed)))
            except Exception as error:  # the host is away or the model gave no decision: this answer is not judged
                log.info("the judge gave no decision (%s)", type(error).__name__)


def settings_judge(settings: Settings, recorder: Recorder) -> BlindJudge | None:
    """Return the judge of the settings, at their Ollama host; None where none is set."""
    if settings.judge is None or not settings.judge_share:
        return None
    model, host = settings.judge, settings.ollama_host

    def ask(messages: list[dict[str, str]]) -> str:
        return asyncio.run(_answer(host, model, messages))

    return BlindJudge(ask, recorder, settings.judge_share)


async def _answer(host: str, model: str, messages: list[dict[str, str]]) -> str:
    import httpx

    body = {"model": model, "messages": messages, "think": False, "format": SCHEMA, "options": dict(OPTIONS)}
    async with http_client(host, httpx.Timeout(_TIMEOUT_S), api_key_headers()) as client:
        return str((await chat_once(client, body))["message"]["content"])
