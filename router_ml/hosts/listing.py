"""What the models on a host are: asked of `/api/tags`, `/api/show` and `/api/ps`, or of `/v1/models`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from router_ml.hosts.failure import HostError
from router_ml.hosts.http import MAX_LIST_BYTES, api_key_headers, http_client, read_error, read_json
from router_ml.settings import DEFAULT_HOST_TYPE, host_type, without_credentials

T = TypeVar("T")

LIST_TIMEOUT_S = 5.0
_SHOWN_AT_ONCE, _MAX_MODELS, _MAX_NAME_CHARS = 8, 500, 256
_NO_CHAT = re.compile(r"embed|(^|[/-])bge-|minilm|rerank|(^|[/-])(e5|gte)-|whisper|tts", re.IGNORECASE)
_UNITS = {"K": 1e-6, "M": 1e-3, "B": 1.0, "T": 1e3}


@dataclass(frozen=True, slots=True)
class Listed:
    """A model as its host describes it. None and "" stand for what the host does not say."""

    name: str
    host: str  # its address, as it was given
    family: str = ""  # the architecture
    parameters_b: float | None = None
    quantisation: str = ""
    size_gb: float | None = None
    own_context_tokens: int | None = None  # the longest prompt the model was made for
    given_context_tokens: int | None = None  # what the host loads it with
    capabilities: frozenset[str] | None = None
    digest: str = ""

    @property
    def chats(self) -> bool:
        """Return whether it answers; embedding models and their like do not."""
        if self.capabilities is None:
            return not _NO_CHAT.search(self.name)
        return "completion" in self.capabilities or not self.capabilities & {"embedding", "image"}


@dataclass(frozen=True, slots=True)
class HostListing:
    """The models of one host, or what is wrong with it."""

    url: str
    models: tuple[Listed, ...] = ()
    problem: str = ""


def list_hosts(urls: Iterable[str], timeout_s: float = LIST_TIMEOUT_S) -> tuple[HostListing, ...]:
    """Return what each host has. A host that does not answer in time has a `problem`; nothing is raised for it."""
    addresses = tuple(dict.fromkeys(urls))

    async def all_hosts() -> tuple[HostListing, ...]:
        return tuple(await asyncio.gather(*(_listing(url, timeout_s) for url in addresses)))

    return run_apart(all_hosts())


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread of its own: the caller may be in an event loop."""
    with ThreadPoolExecutor(1, thread_name_prefix="router-ml-listing") as pool:
        return pool.submit(asyncio.run, work).result()


async def _listing(url: str, timeout_s: float) -> HostListing:
    kind, address = host_type(url)
    try:
        headers = api_key_headers()
        async with asyncio.timeout(timeout_s), http_client(address, httpx.Timeout(timeout_s), headers) as client:
            found = await (_ollama(client, url) if kind == DEFAULT_HOST_TYPE else _openai(client, url))
        return HostListing(url, found)
    except Exception as error:  # refused, timed out, another kind of server, a bad proxy: a fact to report
        return HostListing(url, problem=_problem(error, url))


def _problem(error: Exception, url: str) -> str:
    shown = without_credentials(host_type(url)[1])
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"{shown} does not answer in time"
    if isinstance(error, httpx.ConnectError):
        return f"{shown} takes no connections"
    return f"{shown}: {' '.join(str(error).split()) or type(error).__name__:.200}"


async def _ollama(client: httpx.AsyncClient, url: str) -> tuple[Listed, ...]:
    tags, running = await asyncio.gather(_models(client, "/api/tags"), _running(client))
    slots = asyncio.Semaphore(_SHOWN_AT_ONCE)

    async def described(name: str, entry: Mapping[str, Any]) -> Listed:
        async with slots:
            return _listed(url, name, entry, await _shown(client, name), running.get(name))

    return tuple(await asyncio.gather(*(described(name, entry) for name, entry in tags)))


async def _models(client: httpx.AsyncClient, path: str, key: str = "models") -> list[tuple[str, Mapping[str, Any]]]:
    listed = await _json(client, "GET", path)
    entries = listed.get(key) if isinstance(listed, Mapping) else None
    if not isinstance(entries, list):
        raise HostError("malformed", f"{path} gave no list of models")
    named = ((_name(entry), entry) for entry in entries[:_MAX_MODELS] if isinstance(entry, Mapping))
    return [(name, entry) for name, entry in named if name]


async def _running(client: httpx.AsyncClient) -> dict[str, int | None]:
    """Return the window each loaded model was loaded with; nothing where the host does not say."""
    try:
        return {name: _whole(entry.get("context_length")) for name, entry in await _models(client, "/api/ps")}
    except (HostError, httpx.HTTPError):
        return {}


async def _shown(client: httpx.AsyncClient, name: str) -> Mapping[str, Any]:
    try:
        shown = await _json(client, "POST", "/api/show", {"model": name})
    except (HostError, httpx.HTTPError):
        return {}
    return shown if isinstance(shown, Mapping) else {}


async def _json(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    async with client.stream(method, path, json=body) as response:
        if response.is_error:
            raise HostError("server_error", f"{path} gave status {response.status_code}: {await read_error(response)}")
        return await read_json(response, MAX_LIST_BYTES)


def _listed(
    url: str, name: str, entry: Mapping[str, Any], shown: Mapping[str, Any], running_tokens: int | None
) -> Listed:
    details = {**_table(entry.get("details")), **_table(shown.get("details"))}
    info = _table(shown.get("model_info"))
    stated = shown.get("capabilities", entry.get("capabilities"))
    capabilities = frozenset(str(word) for word in stated[:32]) if isinstance(stated, list) else None
    count, size = info.get("general.parameter_count"), entry.get("size")
    own = next((_whole(v) for k, v in info.items() if k.endswith(".context_length")), None)
    quantisation = _word(details.get("quantization_level"))
    return Listed(
        name=name,
        host=url,
        family=_word(details.get("family") or info.get("general.architecture")),
        parameters_b=count / 1e9 if isinstance(count, int) and count > 0 else _billions(details.get("parameter_size")),
        quantisation="" if quantisation == "unknown" else quantisation,
        size_gb=round(size / 1e9, 3) if isinstance(size, int | float) and 0 < size < 1e15 else None,
        own_context_tokens=own or _whole(details.get("context_length")),
        given_context_tokens=running_tokens or _num_ctx(shown.get("parameters")),
        capabilities=capabilities,
        digest=_word(entry.get("digest")),
    )


async def _openai(client: httpx.AsyncClient, url: str) -> tuple[Listed, ...]:
    entries = await _models(client, "/v1/models", "data")
    return tuple(
        Listed(name, url, own_context_tokens=_whole(entry.get("max_model_len") or entry.get("context_length")))
        for name, entry in entries
    )


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("model") or entry.get("name") or entry.get("id")
    return name if isinstance(name, str) and len(name) <= _MAX_NAME_CHARS and name.isprintable() else ""


def _word(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_NAME_CHARS and value.isprintable() else ""


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _num_ctx(parameters: Any) -> int | None:
    found = re.search(r"^num_ctx\s+(\d{1,9})\s*$", parameters, re.MULTILINE) if isinstance(parameters, str) else None
    return _whole(int(found[1])) if found else None


def _billions(size: Any) -> float | None:
    """Return the billions of parameters of a size as Ollama writes it: `8.2B`, `134.52M`."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([KMBT])", size.strip()) if isinstance(size, str) else None
    return float(found[1]) * _UNITS[found[2]] if found else None
