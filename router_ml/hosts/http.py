"""HTTP clients for hosts: which proxies and certificates they use, and how much of a reply they read."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from router_ml.errors import SettingsError
from router_ml.hosts.failure import HostError
from router_ml.settings import without_credentials

MAX_REPLY_BYTES = 32 * 2**20  # of one reply, or of all the parts of a streamed one
MAX_LIST_BYTES = 8 * 2**20  # of a list of models
MAX_LINE_BYTES = 8 * 2**20  # of one part of a stream
_MAX_ERROR_BYTES = 64 * 2**10
_MAX_PIECE_BYTES = 64 * 2**10
_UNPACKED = {"": False, "identity": False, "gzip": True, "x-gzip": True, "deflate": True}
_PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")


def http_client(url: str, timeout: httpx.Timeout, headers: dict[str, str] | None = None) -> httpx.AsyncClient:
    """Return a client for the host at `url`. It does not limit connections: the gates do.

    A host on this machine is never reached through a proxy. Raises `SettingsError` for a proxy, a certificate file or
    an address that cannot be used."""
    local, shown = is_loopback(url), without_credentials(url)
    try:
        login = httpx.URL(url)
        return httpx.AsyncClient(
            base_url=shown,  # httpx logs the address of every call
            auth=httpx.BasicAuth(login.username, login.password) if login.userinfo else None,
            timeout=timeout,
            headers={"accept-encoding": "identity", **(headers or {})},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            verify=_tls(local or not url.startswith("https:")),
            trust_env=not local,
            follow_redirects=True,
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        names = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
        if not names or isinstance(error, httpx.InvalidURL):
            raise SettingsError(f"the host address {shown}, cannot be used: {error}") from error
        raise SettingsError(
            f"the proxy in {' or '.join(names)} cannot be used ({type(error).__name__}); give an http:// or https:// "
            f"proxy, install httpx[socks] for socks5://, or put the host of {shown} in NO_PROXY"
        ) from error


def api_key_headers() -> dict[str, str]:
    """Return the header with OLLAMA_API_KEY, which a host behind a proxy may ask for; none where it is not set."""
    key = os.environ.get("OLLAMA_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def is_loopback(url: str) -> bool:
    """Return whether an address is on this machine."""
    name = urlsplit(url).hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@functools.cache
def _tls(optional: bool) -> ssl.SSLContext:
    """Return the context all clients share: reading the certificates takes tens of milliseconds.

    Where TLS is `optional` (a host without https) a certificate file that is not there is ignored."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        if optional:
            return httpx.create_ssl_context(trust_env=False)
        name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), "the certificates")
        raise SettingsError(f"{name} cannot be read ({error.strerror or error}); correct it or unset it") from error


async def chat_once(client: httpx.AsyncClient, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the whole answer of an Ollama server to one request that no caller of the gateway made.

    Raises `HostError` if it is an error or no chat answer."""
    async with client.stream("POST", "/api/chat", json={**body, "stream": False}) as response:
        if response.is_error:
            raise HostError("server_error", f"status {response.status_code}: {await read_error(response)}")
        reply = await read_json(response)
    if not isinstance(reply, Mapping) or reply.get("error"):
        raise HostError("malformed", str(reply.get("error") if isinstance(reply, Mapping) else "not a chat answer"))
    return reply


async def read_json(response: httpx.Response, limit_bytes: int = MAX_REPLY_BYTES) -> Any:
    """Return the body of a streamed response, parsed. Raises `HostError` if it is not JSON or larger than allowed."""
    return parsed(await read_bytes(response, limit_bytes))


async def read_bytes(response: httpx.Response, limit_bytes: int) -> bytes:
    """Return the body of a streamed response. Raises `HostError` if it is larger than allowed."""
    body = bytearray()
    async for chunk in chunks(response):
        body += chunk
        if len(body) > limit_bytes:
            raise HostError("malformed", f"the reply is larger than {limit_bytes // 2**20} MiB")
    return bytes(body)


async def chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body of a streamed response in pieces of at most 64 KiB where it is compressed.

    No compression is asked for, but a proxy may compress all the same; httpx would unpack a piece of any size at once.
    Raises `HostError` for another compression than gzip or deflate."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _UNPACKED:
        raise HostError("malformed", f"the reply is compressed by {encoding[:40]!r}, which was not asked for")
    unpacker = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS) if _UNPACKED[encoding] else None
    async for piece in response.aiter_raw():
        if unpacker is None:
            yield piece
        try:
            while unpacker is not None and piece:
                yield unpacker.decompress(piece, _MAX_PIECE_BYTES)
                piece = unpacker.unconsumed_tail
        except zlib.error as error:
            raise HostError("malformed", f"the reply cannot be unpacked ({encoding})") from error


async def read_error(response: httpx.Response) -> str:
    """Return what an error response says, the beginning of it."""
    body = bytearray()
    async for chunk in chunks(response):
        body += chunk
        if len(body) >= _MAX_ERROR_BYTES:
            break
    text = bytes(body).decode("utf-8", "replace")
    try:
        body = json.loads(text)
        said = body["error"] if isinstance(body, dict) else body
    except (ValueError, KeyError, RecursionError):
        said = text
    return str(said)[:500]


async def lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the lines of a streamed response that are not blank. Raises `HostError` if one or all are too large."""
    rest, total = b"", 0
    async for chunk in chunks(response):
        total += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES or total > MAX_REPLY_BYTES:
            raise HostError("malformed", f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB")
        for line in whole:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def parsed(body: bytes) -> Any:
    """Return the JSON value of a body, unpaired surrogates replaced. Raises `HostError` if it is not one."""
    try:
        value = json.loads(body)
        return _clean(value) if b"\\u" in body else value
    except (ValueError, RecursionError) as error:
        raise HostError("malformed", f"the reply is not a chat answer ({type(error).__name__})") from error


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value
