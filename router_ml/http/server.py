"""The process: opens the service, serves until a signal stops it, and lets running answers finish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router_ml.errors import SettingsError
from router_ml.hosts.inventory import FOUND
from router_ml.http.app import build_app
from router_ml.http.options import ServerOptions
from router_ml.http.service import Service, open_service
from router_ml.settings import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, options: ServerOptions) -> int:
    """Serve until a signal ends it; the exit status.

    Raises `SettingsError` if it would listen beyond the loopback interface without any API key or cannot listen
    there, and what `open_service` raises."""
    listener = listen(options)
    with contextlib.closing(listener), contextlib.closing(open_service(settings, options)) as service:
        if options.keys_needed and not service.keys.all():
            raise SettingsError(
                f"listening on {options.host} needs API keys: run `router-ml keys add NAME`, or listen on 127.0.0.1"
            )
        _log_to_stderr()
        _report_models(service, settings)
        for stop in (signal.SIGTERM, signal.SIGINT):  # raised again once the server has stopped: the rest must run, too
            signal.signal(stop, lambda *_: None)
        Server(service).run([listener])
    return 0


def _report_models(service: Service, settings: Settings) -> None:
    """Say which models are served where the user has no catalogue."""
    if service.catalogue.source == FOUND:
        log.info("no catalogue: serving %s (router-ml init measures them)", ", ".join(service.catalogue.names))
    elif settings.catalogue is None:
        log.warning("no catalogue, and no host has a model yet: install one, then run `router-ml init`")


def listen(options: ServerOptions) -> socket.socket:
    """Return a listening socket for the options. Raises `SettingsError` if it cannot be opened."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # The protocol is named: asyncio turns Nagle's algorithm off (40 ms a streamed part) only for sockets that say so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"{options.host}:{options.port}"
        raise SettingsError(f"cannot listen on {where} ({error.strerror or error}); choose another --port") from error
    return listener


class Server(uvicorn.Server):  # type: ignore[misc]
    """Says where it listens once it does, and lets live pages end before it stops."""

    def __init__(self, service: Service) -> None:
        super().__init__(config(service))
        self._stopping = service.stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            log.info("ready: http://%s:%s", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking connections and let what runs finish."""
        self._stopping.set()
        await super().shutdown(sockets)


def config(service: Service) -> uvicorn.Config:
    """Return the uvicorn configuration of the application."""
    options = service.options
    return uvicorn.Config(
        build_app(service),
        http=limited(options),
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(options.stop_s)),
    )


def limited(options: ServerOptions) -> type[HttpToolsProtocol]:
    """Return the HTTP protocol class with limits on the size and the duration of a request's headers."""

    class Limited(HttpToolsProtocol):  # type: ignore[misc]
        """Closes connections whose headers are too large or come too slowly."""

        _timer: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _in_body = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._in_body:
                self._header_bytes += len(data)
                if self._timer is None:
                    self._wait()
            super().data_received(data)
            if not self._in_body and self._header_bytes > options.header_limit_bytes:
                self.send_400_response(f"The headers are larger than {options.header_limit_bytes} bytes.")

        def on_headers_complete(self) -> None:
            self._in_body = True
            self._stop()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_body, self._header_bytes = False, 0
            super().on_message_complete()

        def _wait(self) -> None:
            self._timer = self.loop.call_later(options.header_s, self.transport.close)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Limited


def _log_to_stderr() -> None:
    """Log to standard error: access lines unchanged, everything else as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logger = logging.getLogger("router_ml")
    logger.handlers[:] = [handler]
    logger.propagate = False


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON; an access line is one already."""
        if record.name == "router_ml.http.access":
            return record.getMessage()
        line = {"at_s": round(record.created, 3), "level": record.levelname, "logger": record.name,
                "message": record.getMessage()}  # fmt: skip
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
