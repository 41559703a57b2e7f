"""The `ollama` package, imported so that a proxy or certificate setting it cannot use does not stop the import.

The package makes an HTTP client while it is imported, and that client reads proxies and certificates from the
environment. A bad value there is reported where a host is really called (`router_ml.hosts.http`)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ollama
    from ollama._types import ChatRequest as ClientRequest
    from ollama._utils import convert_function_to_tool

_READ_BY_CLIENTS = (
    *("all_proxy", "http_proxy", "https_proxy", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "OLLAMA_HOST"),
)


def _imported() -> Any:
    try:
        return importlib.import_module("ollama")
    except (ValueError, ImportError, OSError):
        hidden = {name: os.environ.pop(name) for name in _READ_BY_CLIENTS if name in os.environ}
        if not hidden:
            raise
        try:
            return importlib.import_module("ollama")
        finally:
            os.environ.update(hidden)


if not TYPE_CHECKING:
    ollama = _imported()
    ClientRequest = importlib.import_module("ollama._types").ChatRequest
    convert_function_to_tool = importlib.import_module("ollama._utils").convert_function_to_tool

__all__ = ["ClientRequest", "convert_function_to_tool", "ollama"]
