"""Settings of the serving side, read once from the environment; every one has a working default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from router_ml.errors import SettingsError

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGED_BUNDLES = Path(__file__).resolve().parent / "bundles"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are and how the router is run."""

    bundle: Path | None = None  # ROUTER_ML_BUNDLE: this bundle and no other
    models_dir: Path | None = None  # ROUTER_ML_MODELS_DIR: bundles live here; "active" names the one in use
    catalogue: Path | None = None  # ROUTER_ML_CATALOGUE
    policy: str = "balanced"  # ROUTER_ML_POLICY: a preset, or the path of a policy file
    ollama_host: str = "http://127.0.0.1:11434"  # OLLAMA_HOST
    state_dir: Path = Path("~/.router_ml")  # ROUTER_ML_STATE_DIR: events, latches
    encoder_threads: int = 1  # ROUTER_ML_THREADS
    decision_cache_size: int = 4096  # ROUTER_ML_DECISION_CACHE: 0 turns it off


def load_settings(env: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment. Raises `SettingsError` naming the variable."""
    env = os.environ if env is None else env
    defaults = Settings()
    return Settings(
        bundle=_path(env, "ROUTER_ML_BUNDLE"),
        models_dir=_path(env, "ROUTER_ML_MODELS_DIR"),
        catalogue=_path(env, "ROUTER_ML_CATALOGUE"),
        policy=env.get("ROUTER_ML_POLICY") or defaults.policy,
        ollama_host=_host(env.get("OLLAMA_HOST") or defaults.ollama_host),
        state_dir=(_path(env, "ROUTER_ML_STATE_DIR") or defaults.state_dir).expanduser(),
        encoder_threads=_whole(env, "ROUTER_ML_THREADS", defaults.encoder_threads, 1),
        decision_cache_size=_whole(env, "ROUTER_ML_DECISION_CACHE", defaults.decision_cache_size, 0),
    )


def _path(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(value).expanduser() if value else None


def _host(value: str) -> str:
    host = value if "://" in value else f"http://{value}"
    return host.replace("://0.0.0.0", "://127.0.0.1").rstrip("/")


def _whole(env: Mapping[str, str], name: str, default: int, low: int) -> int:
    value = env.get(name)
    if not value:
        return default
    if not value.isdigit() or int(value) < low:
        raise SettingsError(f"{name} must be a whole number, {low} or more, found {value!r}")
    return int(value)
