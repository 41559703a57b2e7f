"""The HTTP server of the double: paths, framing and faults. Runs in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.ollama_double import recorded
from tests.ollama_double.faults import Fault, Faults
from tests.ollama_double.memory import Loaded
from tests.ollama_double.models import DoubleModel, Reply, default_models
from tests.ollama_double.scheduler import QueueFull, Scheduler
from tests.ollama_double.wire import JSON_TYPE, NDJSON_TYPE, Request, Response, read_request

HANG_S = 3600.0
VERSION = "0.33.0-rc2"


@dataclass
class Seen:
    """One request the double had, and how far it got."""

    method: str
    path: str
    model: str
    body: Mapping[str, Any]
    fault: Fault | None = None
    at_s: float = field(default_factory=time.monotonic)
    first_byte_s: float | None = None  # monotonic time of the first byte of the body
    finished: bool = False
    cancelled: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class OllamaDouble:
    """A server on a free port of the loopback interface. Use it as a context manager, or `start()` and `close()`.

    `recorded=True` answers every recorded request byte for byte; anything else is generated."""

    def __init__(
        self,
        models: Sequence[DoubleModel] | None = None,
        *,
        capacity_gb: float = 1000.0,
        recorded: bool = False,
        port: int = 0,
        keep_alive_s: float = 300.0,
        max_pending_loads: int = 512,
        drip_s: float = 0.5,
        jitter_s: float = 0.05,
        cold_load_s: float = 30.0,
        seed: int = 0,
    ) -> None:
        chosen = default_models() if models is None else models
        self.models = {model.name: model for model in chosen}
        self.faults = Faults()
        self.held: set[str] = set()  # models whose generations wait until they are taken out of here
        self.seen: list[Seen] = []
        self.drip_s, self.jitter_s, self.cold_load_s = drip_s, jitter_s, cold_load_s
        self._recorded = recorded
        self._random = random.Random(seed)
        self._scheduler_arguments = (capacity_gb, max_pending_loads, keep_alive_s)
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> OllamaDouble:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def scheduler(self) -> Scheduler:
        return self._scheduler

    @property
    def generations(self) -> list[Seen]:
        """The requests that asked for a generation (loads alone are none)."""
        paths = ("/api/chat", "/api/generate", "/v1/chat/completions")
        return [s for s in self.seen if s.path in paths and (s.body.get("messages") or s.body.get("prompt"))]

    def start(self) -> OllamaDouble:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="ollama-double", daemon=True)
        self._thread.start()
        if not ready.wait(60):
            raise RuntimeError("the double did not start")
        return self

    def close(self) -> None:
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        self._loop = self._thread = None

    def refuse(self) -> None:
        """Stops listening and drops every connection: new ones are refused."""
        self._call(self._close_listener())

    def accept(self) -> None:
        """Listens again, on the same port."""
        self._call(self._open_listener())

    def load_now(self, name: str, keep_alive_s: float = 300.0) -> None:
        """Puts a model in memory at once, evicting as needed."""

        async def put() -> None:
            model = self.models[name]
            now = asyncio.get_running_loop().time()
            self._scheduler.memory.load(Loaded(name, model.size_gb, keep_alive_s, now + keep_alive_s))
            self._scheduler._slots[name] = asyncio.Semaphore(model.parallel)

        self._call(put())

    def _call(self, work: Any) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._main(ready))

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._scheduler = Scheduler(*self._scheduler_arguments)
        await self._open_listener()
        ready.set()
        await self._stop.wait()
        await self._close_listener()

    async def _open_listener(self) -> None:
        if self._server is not None:
            return
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1024)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close_listener(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- connections --------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while (request := await read_request(reader)) is not None:
                response = Response(writer)
                if not await self._answer_while_connected(request, response, reader) or response.reset:
                    break
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _answer_while_connected(self, request: Request, response: Response, reader: asyncio.StreamReader) -> bool:
        """Answers, and gives up as the real server does once the client has left."""
        work = asyncio.create_task(self._answer(request, response))
        gone = asyncio.create_task(_until_closed(reader))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            alive = work.done()
            if alive:
                work.result()
            return alive
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer(self, request: Request, response: Response) -> None:
        seen = Seen(request.method, request.path, "", {})
        self.seen.append(seen)
        try:
            await self._route(request, response, seen)
            seen.finished = True
        except asyncio.CancelledError:
            seen.cancelled = True
            raise

    async def _route(self, request: Request, response: Response, seen: Seen) -> None:
        known = recorded.find(request.method, request.path, request.body) if self._recorded else None
        if known is not None:
            await _replay(known, response)
            return
        handlers: dict[str, dict[str, Callable[[Request, Response, Seen], Awaitable[None]]]] = {
            "/": {"GET": self._root, "HEAD": self._root},
            "/api/version": {"GET": self._version},
            "/api/tags": {"GET": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/chat": {"POST": self._chat},
            "/api/generate": {"POST": self._generate},
            "/v1/chat/completions": {"POST": self._v1_chat},
            "/v1/models": {"GET": self._v1_models},
        }
        methods = handlers.get(request.path)
        if methods is None:
            await response.whole(404, "404 page not found", "text/plain")
        elif request.method not in methods:
            await response.whole(405, "405 method not allowed", "text/plain")
        else:
            await methods[request.method](request, response, seen)

    # -- what is there ------------------------------------------------------------------------------------------

    async def _root(self, request: Request, response: Response, seen: Seen) -> None:
        await response.whole(200, "Ollama is running", "text/plain; charset=utf-8")

    async def _version(self, request: Request, response: Response, seen: Seen) -> None:
        await response.whole(200, _dumps({"version": VERSION}))

    async def _tags(self, request: Request, response: Response, seen: Seen) -> None:
        if self.faults.active(Fault.TAGS_DOWN):
            await response.whole(500, _dumps({"error": "tags are down"}))
            return
        models = [
            {
                "name": _tagged(m.name),
                "model": _tagged(m.name),
                "modified_at": _stamp(),
                "size": int(m.size_gb * 1e9),
                "digest": f"{abs(hash(m.name)):064x}"[-64:],
                "details": {**_details(m), "context_length": m.context_tokens, "embedding_length": 288},
                "capabilities": sorted(m.capabilities),
            }
            for m in self.models.values()
        ]
        await response.whole(200, _dumps({"models": models}), chunked=True)

    async def _ps(self, request: Request, response: Response, seen: Seen) -> None:
        if self.faults.active(Fault.TAGS_DOWN):
            await response.whole(500, _dumps({"error": "ps is down"}))
            return
        now = asyncio.get_running_loop().time()
        memory = self._scheduler.memory
        memory.expire(now)
        models = []
        for entry in (e for e in memory.loaded.values() if e.name in self.models):
            stay = min(entry.expires_s - now, 1e9)
            expires = datetime.now(UTC) + timedelta(seconds=stay)
            models.append(
                {
                    "name": _tagged(entry.name),
                    "model": _tagged(entry.name),
                    "size": int(entry.size_gb * 1e9),
                    "digest": "0" * 64,
                    "details": _details(self.models[entry.name]),
                    "expires_at": expires.isoformat().replace("+00:00", "Z"),
                    "size_vram": int(entry.size_gb * 1e9),
                    "context_length": self.models[entry.name].context_tokens,
                }
            )
        await response.whole(200, _dumps({"models": models}))

    async def _show(self, request: Request, response: Response, seen: Seen) -> None:
        name = str(request.json().get("model", ""))
        model = self._find(name)
        if model is None:
            await response.whole(404, _dumps({"error": f"model '{_tagged(name)}' not found"}))
            return
        shown = {"details": _details(model), "model_info": {}, "capabilities": sorted(model.capabilities)}
        await response.whole(200, _dumps(shown), chunked=True)

    async def _v1_models(self, request: Request, response: Response, seen: Seen) -> None:
        data = [
            {"id": _tagged(name), "object": "model", "created": int(time.time()), "owned_by": "library"}
            for name in self.models
        ]
        await response.whole(200, _dumps({"object": "list", "data": data}) + "\n", "application/json")

    # -- generations --------------------------------------------------------------------------------------------

    async def _chat(self, request: Request, response: Response, seen: Seen) -> None:
        await self._generation(request, response, seen, _ChatForm())

    async def _generate(self, request: Request, response: Response, seen: Seen) -> None:
        await self._generation(request, response, seen, _GenerateForm())

    async def _v1_chat(self, request: Request, response: Response, seen: Seen) -> None:
        await self._generation(request, response, seen, _V1Form())

    async def _generation(self, request: Request, response: Response, seen: Seen, form: _Form) -> None:
        body = await self._accepted_body(request, response, form)
        if body is None:
            return
        name = body["model"]
        seen.model, seen.body = name, body
        model = self._find(name)
        empty = not body.get("messages") and not body.get("prompt")
        fault = None if empty else self.faults.take(model.name if model else name)
        if fault is None and self.faults.active(Fault.CHAT_DOWN):
            fault = Fault.ERROR_500
        seen.fault = fault
        if model is None or fault is Fault.MISSING_404:
            await response.whole(404, form.error(f"model '{name}' not found", 404), form.json_type)
            return
        refusal = _refusal(model, body)
        if refusal is not None:
            await response.whole(refusal[0], form.error(refusal[1], refusal[0]), form.json_type)
            return
        if await self._fails_early(fault, response, form):
            return
        try:
            await self._run_generation(model, body, fault, response, seen, form, empty)
        except QueueFull:
            message = "server busy, please try again.  maximum pending requests exceeded"
            await response.whole(503, form.error(message, 503), form.json_type)

    async def _accepted_body(self, request: Request, response: Response, form: _Form) -> dict[str, Any] | None:
        if not request.body:
            await response.whole(400, form.error("missing request body", 400), form.json_type)
            return None
        try:
            body = request.json()
        except ValueError:
            text = request.body.decode(errors="replace").lstrip("{")
            message = f"invalid character '{text[:1]}' looking for beginning of object key string"
            await response.whole(400, form.error(message, 400), form.json_type)
            return None
        if not body.get("model"):
            await response.whole(400, form.error("model is required", 400), form.json_type)
            return None
        return dict(body)

    async def _fails_early(self, fault: Fault | None, response: Response, form: _Form) -> bool:
        """Faults before any generation; True where the request is over."""
        if fault is Fault.HANG_BEFORE_HEADERS:
            await asyncio.sleep(HANG_S)
        elif fault is Fault.RESET_BEFORE_HEADERS:
            response.abort()
        elif fault is Fault.ERROR_500:
            await response.whole(500, form.error("llama runner process has terminated: exit status 2", 500))
        elif fault is Fault.QUEUE_FULL_503:
            message = "server busy, please try again.  maximum pending requests exceeded"
            await response.whole(503, form.error(message, 503), form.json_type)
        else:
            return False
        return True

    async def _run_generation(
        self, model: DoubleModel, body: dict[str, Any], fault: Fault | None,
        response: Response, seen: Seen, form: _Form, empty: bool,
    ) -> None:  # fmt: skip
        began = time.perf_counter()
        if empty and body.get("keep_alive") == 0:
            self._scheduler.unload(model.name)
            await response.whole(200, form.loaded(body["model"], "unload"))
            return
        extra = self.cold_load_s if fault is Fault.COLD_LOAD else 0.0
        options = body.get("options") or {}
        async with self._scheduler.running(model, options, body.get("keep_alive"), extra) as load_s:
            if empty:
                await response.whole(200, form.loaded(body["model"], "load"))
                return
            await _Generation(self, model, body, fault, response, seen, form, began, load_s).run()

    def _find(self, name: str) -> DoubleModel | None:
        bare = name.removesuffix(":latest")
        return self.models.get(bare) or self.models.get(f"{bare}:latest") or self.models.get(name)

    def jitter(self) -> float:
        return self._random.expovariate(1 / self.jitter_s)


class _Generation:
    """One running generation: prompt evaluation, pieces, final object, and what breaks in between."""

    def __init__(
        self, double: OllamaDouble, model: DoubleModel, body: Mapping[str, Any], fault: Fault | None,
        response: Response, seen: Seen, form: _Form, began: float, load_s: float,
    ) -> None:  # fmt: skip
        self.double, self.model, self.body, self.fault = double, model, body, fault
        self.response, self.seen, self.form = response, seen, form
        self.began, self.load_s = began, load_s
        self.named = "another-model:1b" if fault is Fault.WRONG_MODEL else body["model"]

    async def run(self) -> None:
        reply = Reply() if self.fault is Fault.EMPTY_ANSWER else self.model.answer(self.body)
        steps, reason, output_tokens = _steps(reply, self.body.get("options") or {})
        if self.body.get("logprobs") and self.model.gives_logprobs:
            top = self.body.get("top_logprobs") or 0
            steps = [{**step, "logprobs": [_logprob(step, reply.logprob, top)]} for step in steps]
        prompt_tokens = _prompt_tokens(self.model, self.body)
        prompt_s = prompt_tokens / self.model.prompt_tokens_per_s
        per_piece_s = output_tokens / max(len(steps), 1) / self.model.decode_tokens_per_s
        stream = self.body.get("stream", self.form.streams_by_default)
        while self.model.name in self.double.held:
            await asyncio.sleep(0.005)
        self.counts = (prompt_tokens, prompt_s, output_tokens, output_tokens / self.model.decode_tokens_per_s)
        await asyncio.sleep(prompt_s)
        if stream:
            await self._stream(steps, reason, per_piece_s)
        else:
            await self._whole(steps, reason, per_piece_s)

    async def _whole(self, steps: list[dict[str, Any]], reason: str, per_piece_s: float) -> None:
        await asyncio.sleep(per_piece_s * len(steps))
        if self.fault is Fault.JITTER:
            await asyncio.sleep(self.double.jitter())
        if self.fault is Fault.MALFORMED_JSON:
            await self.response.whole(200, '{"model": "x", "message": {"role"', self.form.json_type)
            return
        if self.fault is Fault.ERROR_LINE:
            await self.response.whole(200, _dumps({"error": "an error was encountered while running the model"}))
            return
        raw = self.form.whole(self.named, steps, reason, self._timings()).encode()
        broken = (Fault.HANG_AFTER_HEADERS, Fault.HANG_MID_STREAM, Fault.RESET_MID_STREAM,
                  Fault.TRUNCATED_CHUNK, Fault.SLOW_DRIP)  # fmt: skip
        if self.fault not in broken:
            self._first_byte()
            await self.response.whole(200, raw, self.form.json_type)
            return
        await self.response.declare(200, len(raw), self.form.json_type)
        if self.fault is Fault.HANG_AFTER_HEADERS:
            await asyncio.sleep(HANG_S)
        await self._broken_body(raw)

    async def _broken_body(self, raw: bytes) -> None:
        half = len(raw) // 2
        if self.fault is Fault.SLOW_DRIP:
            for at in range(0, len(raw), 16):
                await self.response.raw(raw[at : at + 16])
                await asyncio.sleep(self.double.drip_s)
            return
        await self.response.raw(raw[:half])
        if self.fault is Fault.HANG_MID_STREAM:
            await asyncio.sleep(HANG_S)
        self.response.abort()

    async def _stream(self, steps: list[dict[str, Any]], reason: str, per_piece_s: float) -> None:
        await self.response.begin(self.form.stream_type)
        if self.fault is Fault.HANG_AFTER_HEADERS:
            await asyncio.sleep(HANG_S)
        for index, step in enumerate(steps):
            await asyncio.sleep(per_piece_s)
            if index == len(steps) // 2 and await self._breaks_mid_stream():
                return
            if self.fault is Fault.SLOW_DRIP:
                await asyncio.sleep(self.double.drip_s)
            elif self.fault is Fault.JITTER:
                await asyncio.sleep(self.double.jitter())
            self._first_byte()
            await self.response.chunk(self.form.piece(self.named, step).encode())
        for line in self.form.last(self.named, reason, self._timings(), self.body):
            await self.response.chunk(line.encode())
        await self.response.end()

    async def _breaks_mid_stream(self) -> bool:
        if self.fault is Fault.HANG_MID_STREAM:
            await asyncio.sleep(HANG_S)
        elif self.fault is Fault.RESET_MID_STREAM:
            self.response.abort()
        elif self.fault is Fault.MALFORMED_JSON:
            await self.response.chunk(b'{"model": "x", "message": {"role"\n')
            await self.response.end()
        elif self.fault is Fault.TRUNCATED_CHUNK:
            await self.response.raw(b'400\r\n{"model": "x", "message"')
            self.response.abort()
        elif self.fault is Fault.ERROR_LINE:
            message = "an error was encountered while running the model: unexpected EOF"
            await self.response.chunk((_dumps({"error": message}) + "\n").encode())
            await self.response.end()
        else:
            return False
        return True

    def _first_byte(self) -> None:
        if self.seen.first_byte_s is None:
            self.seen.first_byte_s = time.monotonic()

    def _timings(self) -> dict[str, Any]:
        prompt_tokens, prompt_s, output_tokens, eval_s = self.counts
        return {
            "total_duration": int((time.perf_counter() - self.began) * 1e9),
            "load_duration": int(self.load_s * 1e9),
            "prompt_eval_count": prompt_tokens,
            "prompt_eval_duration": max(int(prompt_s * 1e9), 1),
            "eval_count": output_tokens,
            "eval_duration": max(int(eval_s * 1e9), 1),
        }


# -- the three forms a generation is asked for in ------------------------------------------------------------------


class _Form:
    json_type = JSON_TYPE
    stream_type = NDJSON_TYPE
    streams_by_default = True

    def error(self, message: str, status: int) -> str:
        return _dumps({"error": message})

    def loaded(self, model: str, reason: str) -> str:
        return _dumps({"model": model, "created_at": _stamp(), **self.said({}), "done": True, "done_reason": reason})

    def said(self, step: Mapping[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def piece(self, model: str, step: Mapping[str, Any]) -> str:
        return _dumps(_ordered({"model": model, "created_at": _stamp(), **self.said(step), "done": False})) + "\n"

    def last(self, model: str, reason: str, timings: Mapping[str, Any], body: Mapping[str, Any]) -> list[str]:
        final = {"model": model, "created_at": _stamp(), **self.said({}), "done": True, "done_reason": reason}
        return [_dumps({**final, **timings}) + "\n"]

    def whole(self, model: str, steps: Sequence[Mapping[str, Any]], reason: str, timings: Mapping[str, Any]) -> str:
        final = {"model": model, "created_at": _stamp(), **self.said(_joined(steps)), "done": True}
        return _dumps({**_ordered({**final, "done_reason": reason}), **timings})


class _ChatForm(_Form):
    def said(self, step: Mapping[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": step.get("content", "")}
        if step.get("thinking"):
            message["thinking"] = step["thinking"]
        if step.get("tool_calls"):
            message["tool_calls"] = [
                {"id": f"call_{index:08d}", "function": {"index": index, **call}}
                for index, call in enumerate(step["tool_calls"])
            ]
        return {"message": message, **({"logprobs": step["logprobs"]} if step.get("logprobs") else {})}


class _GenerateForm(_Form):
    def said(self, step: Mapping[str, Any]) -> dict[str, Any]:
        said = {"response": step.get("content", "")}
        return {**said, "thinking": step["thinking"]} if step.get("thinking") else said

    def last(self, model: str, reason: str, timings: Mapping[str, Any], body: Mapping[str, Any]) -> list[str]:
        final = {"model": model, "created_at": _stamp(), **self.said({}), "done": True, "done_reason": reason}
        return [_dumps({**final, "context": [1, 2, 3], **timings}) + "\n"]

    def whole(self, model: str, steps: Sequence[Mapping[str, Any]], reason: str, timings: Mapping[str, Any]) -> str:
        final = {"model": model, "created_at": _stamp(), **self.said(_joined(steps)), "done": True}
        return _dumps({**final, "done_reason": reason, "context": [1, 2, 3], **timings})


class _V1Form(_Form):
    json_type = "application/json"
    stream_type = "text/event-stream"
    streams_by_default = False

    def error(self, message: str, status: int) -> str:
        kind = {404: "not_found_error", 400: "invalid_request_error"}.get(status, "api_error")
        return _dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}) + "\n"

    def piece(self, model: str, step: Mapping[str, Any]) -> str:
        delta: dict[str, Any] = {key: step[key] for key in ("content",) if step.get(key)}
        if step.get("thinking"):
            delta = {"content": "", "reasoning": step["thinking"]}
        if step.get("tool_calls"):
            delta = {"content": "", "tool_calls": _v1_calls(step["tool_calls"])}
        return self._event(model, [{"index": 0, "delta": delta, "finish_reason": None}])

    def last(self, model: str, reason: str, timings: Mapping[str, Any], body: Mapping[str, Any]) -> list[str]:
        lines = [self._event(model, [{"index": 0, "delta": {}, "finish_reason": reason}])]
        if (body.get("stream_options") or {}).get("include_usage"):
            lines.append(self._event(model, [], usage=_v1_usage(timings)))
        return [*lines, "data: [DONE]\n\n"]

    def whole(self, model: str, steps: Sequence[Mapping[str, Any]], reason: str, timings: Mapping[str, Any]) -> str:
        said = _joined(steps)
        message: dict[str, Any] = {"role": "assistant", "content": said.get("content", "")}
        if said.get("tool_calls"):
            message["tool_calls"], reason = _v1_calls(said["tool_calls"]), "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": reason}
        whole = {**_v1_head(model, "chat.completion"), "choices": [choice], "usage": _v1_usage(timings)}
        return _dumps(whole) + "\n"

    def _event(self, model: str, choices: list[dict[str, Any]], **more: Any) -> str:
        return "data: " + _dumps({**_v1_head(model, "chat.completion.chunk"), "choices": choices, **more}) + "\n\n"


def _v1_head(model: str, kind: str) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": model}
    return {**head, "system_fingerprint": "fp_ollama"}


def _v1_usage(timings: Mapping[str, Any]) -> dict[str, int]:
    prompt, output = timings["prompt_eval_count"], timings["eval_count"]
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _v1_calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{i:08d}", "index": i, "type": "function",
         "function": {"name": call["name"], "arguments": _dumps(call["arguments"])}}
        for i, call in enumerate(calls)
    ]  # fmt: skip


# -- small parts ---------------------------------------------------------------------------------------------------


def _steps(reply: Reply, options: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str, int]:
    """The streamed steps of a reply, why it ends, and how many tokens it took."""
    steps: list[dict[str, Any]] = [{"thinking": piece} for piece in reply.thinking_pieces]
    steps += [{"content": piece} for piece in reply.content_pieces]
    if reply.tool_calls:
        steps.append({"tool_calls": reply.tool_calls})  # they come whole, in one chunk
    limit = options.get("num_predict", -1)
    if 0 <= limit < len(steps):
        return steps[:limit], "length", limit
    tokens = reply.output_tokens if reply.output_tokens is not None else len(steps) + 1
    return steps, "stop", tokens


def _joined(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "content": "".join(step.get("content", "") for step in steps),
        "thinking": "".join(step.get("thinking", "") for step in steps),
    }
    for key in ("tool_calls", "logprobs"):
        if found := [one for step in steps for one in step.get(key, ())]:
            said[key] = found
    return said


def _ordered(line: dict[str, Any]) -> dict[str, Any]:
    """The line with its log-probabilities where the server writes them: behind the reason."""
    return {**{k: v for k, v in line.items() if k != "logprobs"}, **{k: v for k, v in line.items() if k == "logprobs"}}


def _logprob(step: Mapping[str, Any], logprob: float, top: int) -> dict[str, Any]:
    """One token as recordings/chat_logprobs.json lists it; a tool call counts as one."""
    token = step.get("content") or step.get("thinking") or ""
    own = {"token": token, "logprob": logprob, "bytes": list(token.encode())}
    never = {"token": "", "logprob": -3.4028234663852886e38}
    return {**own, "top_logprobs": [own, *[never] * (top - 1)]} if top else own


def _prompt_tokens(model: DoubleModel, body: Mapping[str, Any]) -> int:
    texts = [str(message.get("content") or "") for message in body.get("messages") or ()]
    texts.append(str(body.get("prompt") or ""))
    tools = _dumps(body["tools"]) if body.get("tools") else ""
    return model.prompt_overhead_tokens + sum(len(text) for text in texts) + len(tools)


def _refusal(model: DoubleModel, body: Mapping[str, Any]) -> tuple[int, str] | None:
    """Status and message of a request this model cannot take; wording as recorded."""
    name = body["model"]
    if "completion" not in model.capabilities:
        return 400, f'"{name}" does not support chat'
    if body.get("tools") and "tools" not in model.capabilities:
        return 400, f"registry.ollama.ai/library/{name} does not support tools"
    if body.get("think") and "thinking" not in model.capabilities:
        return 400, f'"{name}" does not support thinking'
    temperature = (body.get("options") or {}).get("temperature", 0.0)
    if not isinstance(temperature, int | float):
        return 500, 'option "temperature" must be of type float32'
    return None


def _details(model: DoubleModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": "3.2B",
        "quantization_level": "Q4_K_M",
    }


async def _replay(known: recorded.Recording, response: Response) -> None:
    if not known.chunks_ms:
        await response.whole(known.status, known.body, known.content_type, chunked=known.chunked)
        return
    await response.begin(known.content_type, known.status)
    at_ms = known.chunks_ms[0][0]
    for ms, text in known.chunks_ms:
        await asyncio.sleep(max(0.0, ms - at_ms) / 1000)
        at_ms = ms
        await response.chunk(text.encode())
    await response.end()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Returns once the peer has closed its side. Reads nothing, so that a following request stays whole."""
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.02)


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _stamp() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
