"""The shared state in Redis.

A request asks over the connections of its own event loop and waits 5 ms at most. Everything that no request waits for
(giving places back, renewing leases, telling what answers measured, finding the server again) is done by one thread
over a connection of its own. The first answer that is late or fails sends this replica back to local state and the
places that it holds, and the thread asks the server at once whether it is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import queue
import threading
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from router_ml.errors import SettingsError
from router_ml.shared_state import patience, scripts
from router_ml.shared_state.local import LocalState
from router_ml.shared_state.places import DRAIN_S, Places
from router_ml.shared_state.state import PREFIX, Circuit, Entry, Figures

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE_S = 5.0
_TICK_S = 1.0  # between two renewals, and two exchanges of what answers measured
_AGAIN_S = 0.25  # between two looks for a server that is away
_THREAD_WAIT_S = 0.5  # the longest wait of the thread for one answer
_COUNTED_S = 5.0  # a replica counts for so long after it was last heard of
_SESSION_TTL_S = 3600
_CONNECTIONS = 32  # of one event loop
_TURNS = 3  # of the event loop: one reads the answer, one parses it
_QUICK: dict[str, Any] = {"protocol": 2, "driver_info": None}  # a new connection introduces itself with no command
_SERVER = PREFIX + "server"
_STREAM = PREFIX + "answers"
_STREAM_LENGTH = 2000
_TOLD_A_TICK = 500  # by all replicas together: each of them reads what all others tell

_STATES: weakref.WeakSet[RedisState] = weakref.WeakSet()


class RedisState:
    """A `SharedState` in Redis (or a server that speaks its protocol). Thread-safe; used from several event loops.

    Raises `SettingsError` if the URL is wrong or the client is missing; a server that is away is no error."""

    alone = False

    def __init__(
        self,
        url: str,
        *,
        lease_s: float = LEASE_S,
        settle_s: float | None = None,
        drain_s: float = DRAIN_S,
        patience_s: float = patience.PATIENCE_S,
        connect: Callable[[str, bool], Any] | None = None,
    ) -> None:
        self._url = url
        self._lease_s, self._drain_s = lease_s, drain_s
        # A new server gives no place before all replicas met it, or lost theirs. A server counts as new once nobody
        # asked for half a lease, since leases may have ended meanwhile: it, or the machine, was frozen.
        settle_s = lease_s if settle_s is None else settle_s
        self._server = (int(lease_s * 500), int(settle_s * 1000), int(lease_s * 1000))
        self._patience_s = patience_s  # of what asks outside of a request
        self._connect = connect or _connect
        self._local = LocalState()
        self._listeners: list[weakref.WeakMethod[Callable[[str, Figures], None]]] = []
        self._known_replicas = 0  # unknown: then a replica takes one place, for there may be many
        self._reset()
        _forget(self._connect(url, True))  # a wrong URL is found now
        _STATES.add(self)

    def _reset(self) -> None:
        """Begin without connections, leases and thread, as a forked child must."""
        self.replica = uuid.uuid4().hex[:12]
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        self._places = Places(self._lease_s, self._drain_s)
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._told: list[tuple[str, Figures]] = []
        self._heard_to = "$"
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._up = False
        self._why = "not connected yet"

    # -- what requests ask ------------------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why this replica goes on with its own state; "" if it shares."""
        return "" if self._up else f"Redis at {_place(self._url)}: {self._why}"

    @property
    def replicas(self) -> int:
        """How many replicas there are; while Redis is away, how many there were; 0 if that was never known."""
        return self._known_replicas

    async def enter(self, backend: str, limit: int, at_once: bool = False) -> Entry:
        """Ask for a place, and for the one probe of a half-open circuit; without an answer use one that is held."""
        place, held = self._places.reserve(backend)
        sent_s = time.monotonic()
        values = (*self._server, place, int(held), limit, int(at_once), self.replica)
        try:
            found = await self._ask(lambda redis: redis.eval(scripts.ENTER, 5, *_backend_keys(backend), *values))
        except BaseException:
            self._abandon(backend, place)
            raise
        if found is None:
            if self._places.begin_alone(backend, place, limit):
                return Entry(True, place)
            self._abandon(backend, place)
            return Entry(False)
        granted, still_held, held_by_all, wanted, circuit, retry_ms, wait_ms = found
        if granted:
            self._places.granted(backend, place, sent_s)
        else:
            self._places.refused(backend, place, bool(still_held))
        if wanted:
            self._tell_free(self._places.wanted(backend))
        state: Circuit = circuit.decode()
        return Entry(bool(granted), place, int(held_by_all), state, retry_ms / 1000, wait_ms / 1000)

    def leave(self, backend: str, place: str, limit: int, waiting: bool = False) -> bool:
        """End a call; return whether its place is kept for the next one."""
        given_back = self._places.end(backend, place, limit, waiting)
        if given_back:
            self._tell_free([(backend, place)])
        return not given_back

    def _abandon(self, backend: str, place: str) -> None:
        if self._places.abandon(backend, place):
            self._tell_free([(backend, place)])

    def _tell_free(self, places: Iterable[tuple[str, str]]) -> None:
        for backend, place in places:
            self._orders.put(_free(backend, place))

    def opened(self, backend: str, wait_s: float) -> None:
        """Open a backend's circuit for all replicas."""
        self._orders.put(("eval", scripts.OPEN, 2, *_backend_keys(backend)[2:4], int(wait_s * 1000), self.replica))

    def closed(self, backend: str) -> None:
        """Close it for all."""
        self._orders.put(("eval", scripts.RELEASE, 2, *_backend_keys(backend)[2:4], self.replica, 1))

    def released(self, backend: str) -> None:
        """Give the probe back without a result."""
        self._orders.put(("eval", scripts.RELEASE, 2, *_backend_keys(backend)[2:4], self.replica, 0))

    async def model_of(self, session: str) -> str | None:
        """Return the model that a session spoke with last, with whichever replica."""
        found = await self._ask(lambda redis: redis.get(_hashed("session", session)))
        return self._local.known_model(session) if found is None else found.decode()

    def remember(self, session: str, model: str) -> None:
        """Note the model that a session spoke with."""
        self._local.remember(session, model)
        self._orders.put(("set", _hashed("session", session), model, "EX", _SESSION_TTL_S))

    async def wait_s(self, user: str, per_minute: int) -> float:
        """Take one request from the bucket of all replicas; while Redis is away, from an equal share of it."""
        found = await self._ask(lambda redis: redis.eval(scripts.TAKE, 1, _hashed("rate", user), per_minute))
        if found is None:
            return self._local.take_share(user, per_minute, self._known_replicas or per_minute)
        return int(found) / 1000

    async def _ask(self, send: Callable[[Any], Awaitable[T]]) -> T | None:
        """Return the server's answer; None without one in time, which makes the server count as away."""
        left_s = patience.left_s(self._patience_s)
        if not self._up or left_s <= 0:
            return None
        began_s = time.monotonic()
        asking = asyncio.ensure_future(send(self._client()))
        try:
            await asyncio.wait((asking,), timeout=left_s)
            for _ in range(_TURNS):  # the answer may be here, and this loop the one that is late
                if not asking.done():
                    await asyncio.sleep(0)
            if asking.done():
                return await asking
            self._lost("no answer in time")
        except Exception as error:  # of the client: connection, protocol, a server that is loading
            self._clients.pop(asyncio.get_running_loop(), None)  # its other connections are broken, too
            self._lost(_reason(error))
        finally:
            asking.cancel()
            patience.spend(time.monotonic() - began_s)
        return None

    def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._connect(self._url, False)
        return client

    def _lost(self, why: str) -> None:
        if self._up:
            self._up, self._why = False, why
            self._places.shared = False
            log.warning("shared state is away (%s); this replica goes on with its own", why)
            self._orders.put(None)  # wake the thread: it looks for the server at once

    # -- what others measured ---------------------------------------------------------------------------------------

    def tell(self, backend: str, figures: Figures) -> None:
        """Tell the other replicas what an answer measured, within a second or so."""
        with self._lock:
            if len(self._told) < told_a_tick(self._known_replicas):
                self._told.append((backend, figures))

    def listen(self, heard: Callable[[str, Figures], None]) -> None:
        """Call a bound method with what others tell, as long as its object lives."""
        self._listeners.append(weakref.WeakMethod(heard))

    def _exchange(self, redis: Any) -> None:
        with self._lock:
            told, self._told = self._told, []
        if told:
            entry = {"from": self.replica, "told": json.dumps(told)}
            redis.xadd(_STREAM, entry, maxlen=_STREAM_LENGTH, approximate=True)
        if self._heard_to == "$":  # what was measured before this replica came is worth knowing, too
            self._heard_to = "0"
        for _, entries in redis.xread({_STREAM: self._heard_to}, count=_STREAM_LENGTH) or ():
            for number, entry in entries:
                self._heard_to = number
                if entry[b"from"] != self.replica.encode():
                    self._pass_on(json.loads(entry[b"told"]))

    def _pass_on(self, told: Iterable[tuple[str, Figures]]) -> None:
        for backend, figures in told:
            for listener in tuple(self._listeners):
                heard = listener()
                if heard is not None:
                    heard(backend, tuple(figures))

    # -- the thread -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to share."""
        with self._lock:
            if self._thread is None:
                work = (weakref.ref(self), self._orders, self._stopped)
                self._thread = threading.Thread(target=_run, args=work, name="router-ml-shared", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop sharing and give every place back."""
        with self._lock:
            thread = self._thread
        self._tell_free(self._places.clear())
        self._stopped.set()
        self._orders.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def _meet(self, redis: Any) -> None:
        """Say that this replica is there and what it holds, and learn how many there are."""
        sent_s = time.monotonic()
        values = (*self._server[:2], self.replica, int(_COUNTED_S * 1000))
        replicas, settled = redis.eval(scripts.HELLO, 2, _SERVER, PREFIX + "replicas", *values)
        # A new server has not met everybody: until it has, those that were there before count.
        if settled or self._known_replicas:
            self._known_replicas = replicas if settled else max(replicas, self._known_replicas)
        self._places.replicas, self._places.shared = self._known_replicas, bool(settled)
        gone = self._places.met(sent_s)
        gone += [place for backend in self._renew(redis) for place in self._places.wanted(backend)]
        self._send(redis, [_free(backend, place) for backend, place in gone])
        self._keep_one(redis)
        if not self._up:
            log.info("state is shared; there are %d replicas", replicas)
            self._up, self._why = True, ""

    def _renew(self, redis: Any) -> list[str]:
        """Renew the leases of all places; return the backends where others were refused."""
        sent_s, held = time.monotonic(), self._places.held()
        with redis.pipeline(transaction=False) as pipe:
            for backend, (running, idle) in held.items():
                server, places, _, probe, wanted = _backend_keys(backend)
                values = (*self._server, self.replica, len(running), *running, *idle)
                pipe.eval(scripts.RENEW, 4, server, places, probe, wanted, *values)
            answers = pipe.execute()
        for (backend, (running, idle)), (_, *gone) in zip(held.items(), answers, strict=True):
            lost = [name.decode() for name in gone]
            self._places.renewed(backend, {*running, *idle} - set(lost), lost, sent_s)
        return [backend for backend, (wanted, *_) in zip(held, answers, strict=True) if wanted]

    def _keep_one(self, redis: Any) -> None:
        """Ask for a place where this replica holds none, for the time when the server is away."""
        sent_s, lacking = time.monotonic(), self._places.lacking()
        for backend, place, limit in lacking:
            keys = _backend_keys(backend)[:2]
            if redis.eval(scripts.KEEP, 2, *keys, *self._server, place, limit):
                self._places.kept(backend, place, sent_s)

    def _send(self, redis: Any, orders: list[tuple[Any, ...]]) -> None:
        with redis.pipeline(transaction=False) as pipe:
            for order in orders:
                pipe.execute_command(*_command(order))
            pipe.execute(raise_on_error=False)


def _run(state_of: weakref.ref[RedisState], orders: queue.SimpleQueue[Any], stopped: threading.Event) -> None:
    """Do what no request waits for until the state is closed or nothing refers to it."""
    redis, due_s = None, 0.0
    waiting: list[tuple[Any, ...]] = []
    while True:
        try:
            first = orders.get(timeout=max(0.0, due_s - time.monotonic()))
            waiting += [] if first is None else [first]
            while not orders.empty() and len(waiting) < 1000:
                order = orders.get_nowait()
                waiting += [] if order is None else [order]
        except queue.Empty:
            pass
        state = state_of()
        if state is None:
            break
        try:
            redis = redis or state._connect(state._url, True)
            if waiting and (state._up or stopped.is_set()):
                state._send(redis, waiting)
                waiting = []
            if stopped.is_set():
                redis.zrem(PREFIX + "replicas", state.replica)
                break
            if not state._up or time.monotonic() >= due_s:
                due_s = time.monotonic() + _TICK_S
                state._meet(redis)
                if waiting:
                    state._send(redis, waiting)
                    waiting = []
                state._exchange(redis)
        except Exception as error:
            _forget(redis)
            redis, due_s = None, time.monotonic() + _AGAIN_S
            waiting = waiting[-1000:]
            state._places.missed()
            state._why = _reason(error)
            if state._up:
                state._up = False
                log.warning("shared state is away (%s); this replica goes on with its own", state._why)
            if stopped.wait(_AGAIN_S):
                break
        del state
    _forget(redis)


def _connect(url: str, waits: bool) -> Any:
    """Return a client: `waits` for the thread's, which blocks; else one of an event loop."""
    try:
        import redis
        import redis.asyncio
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise SettingsError("ROUTER_ML_REDIS needs the client: pip install 'router-ml[redis]'") from error
    try:
        if waits:
            from redis.retry import Retry

            return redis.Redis.from_url(
                url, socket_timeout=_THREAD_WAIT_S, socket_connect_timeout=_THREAD_WAIT_S, retry=Retry(NoBackoff(), 0)
            )
        from redis.asyncio.retry import Retry as AsyncRetry

        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, timeout=1, retry=AsyncRetry(NoBackoff(), 0), **_QUICK
        )
        return redis.asyncio.Redis(connection_pool=pool)
    except ValueError as error:
        raise SettingsError(
            f"ROUTER_ML_REDIS must be a URL such as redis://127.0.0.1:6379/0, found {_place(url)!r}"
        ) from error


def told_a_tick(replicas: int) -> int:
    """Return how many answers a replica tells of between two exchanges."""
    return max(5, _TOLD_A_TICK // max(1, replicas))


def _command(order: tuple[Any, ...]) -> tuple[Any, ...]:
    return (order[0].upper(), *order[1:])


def _backend_keys(backend: str) -> tuple[str, str, str, str, str]:
    """Return the keys of the server, and of a backend's places, circuit, probe, and of whether others wait."""
    start = f"{PREFIX}{{{backend}}}"
    return _SERVER, f"{start}:places", f"{start}:circuit", f"{start}:probe", f"{start}:wanted"


def _free(backend: str, place: str) -> tuple[Any, ...]:
    return ("zrem", _backend_keys(backend)[1], place)


def _hashed(kind: str, name: str) -> str:
    """Return the key of something whose name says who a user is."""
    return f"{PREFIX}{kind}:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _place(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port or 6379}"
    except ValueError:
        return "an address that cannot be read"


def _reason(error: BaseException) -> str:
    return "no answer in time" if "imeout" in type(error).__name__ else type(error).__name__


def _forget(redis: Any) -> None:
    if redis is not None:
        try:
            redis.close()
        except Exception:
            log.debug("a connection to Redis could not be closed")


def _after_fork() -> None:
    for state in tuple(_STATES):
        was_running = state._thread is not None
        state._reset()
        if was_running:
            state.start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
