"""How the server listens, whom it lets in and what it limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from router_ml.errors import SettingsError

DEFAULT_PORT = 11435


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of one server. Every value has a working default; all times are seconds."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    hosts: tuple[str, ...] = ()  # base URLs of the model hosts; empty: the one of the settings
    allow_hosts: tuple[str, ...] = ()  # further names this server may be called by (the Host header)
    allow_origins: tuple[str, ...] = ()  # origins of web pages that may call it; they get CORS headers
    allow_paths: tuple[str, ...] = ()  # further paths that pass through to the host
    manage_models: bool = False  # pull, push, create, copy and delete pass through
    policy_files: tuple[Path, ...] = ()  # each is listed as a model, auto:NAME
    keys_file: Path | None = None  # API keys; None: keys.json in the state folder
    require_keys: bool = False  # always so beyond the loopback interface
    body_limit_bytes: int = 32 * 2**20
    header_limit_bytes: int = 64 * 2**10
    header_s: float = 10.0  # a client has this long to send its headers
    body_idle_s: float = 30.0  # longest silence while a client sends its body
    max_requests: int = 256  # served at once; more are refused
    stop_s: float = 30.0  # running answers have this long to finish at a stop

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"the port must be between 0 and 65535, found {self.port}")
        for name in ("body_limit_bytes", "header_limit_bytes", "header_s", "body_idle_s", "max_requests"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, found {getattr(self, name)!r}")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys_needed(self) -> bool:
        """Whether every caller must send an API key."""
        return self.require_keys or not self.loopback
