"""Settings of the serving side, read once from the environment; every one has a working default."""

from __future__ import annotations

import math
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
    deadline_s: float = 120.0  # ROUTER_ML_DEADLINE_S: of one request, fallbacks included
    last_resort: str | None = "qwen3:8b"  # ROUTER_ML_LAST_RESORT: tried after every ranked model; "none": nothing is
    parallel: int = 4  # ROUTER_ML_PARALLEL: calls at once per model and host
    stick_margin: float | None = None  # ROUTER_ML_STICK_MARGIN: utility a session's change of model must gain
    preload: bool = False  # ROUTER_ML_PRELOAD=1: load the likely next model while the host is idle
    answer_cache_size: int = 0  # ROUTER_ML_ANSWER_CACHE: answers kept; 0 turns it off
    events: str | None = None  # ROUTER_ML_EVENTS: postgresql:// URL or path of the event store; none: the state folder
    keep_text: bool = False  # ROUTER_ML_KEEP_TEXT=1: keep the queries' redacted text for 30 days
    alert_webhook: str | None = None  # ROUTER_ML_ALERT_WEBHOOK: URL that takes alerts in Alertmanager's form


def load_settings(env: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment. Raises `SettingsError` naming the variable."""
    env = os.environ if env is None else env
    defaults = Settings()
    return Settings(
        bundle=_path(env, "ROUTER_ML_BUNDLE"),
        models_dir=_path(env, "ROUTER_ML_MODELS_DIR"),
        catalogue=_path(env, "ROUTER_ML_CATALOGUE"),
        policy=env.get("ROUTER_ML_POLICY") or defaults.policy,
        ollama_host=base_url(env.get("OLLAMA_HOST") or defaults.ollama_host),
        state_dir=(_path(env, "ROUTER_ML_STATE_DIR") or defaults.state_dir).expanduser(),
        encoder_threads=_whole(env, "ROUTER_ML_THREADS", defaults.encoder_threads, 1),
        decision_cache_size=_whole(env, "ROUTER_ML_DECISION_CACHE", defaults.decision_cache_size, 0),
        deadline_s=_number(env, "ROUTER_ML_DEADLINE_S", low=0.001) or defaults.deadline_s,
        last_resort=_optional_name(env, "ROUTER_ML_LAST_RESORT", defaults.last_resort),
        parallel=_whole(env, "ROUTER_ML_PARALLEL", defaults.parallel, 1),
        stick_margin=_number(env, "ROUTER_ML_STICK_MARGIN", low=0.0),
        preload=env.get("ROUTER_ML_PRELOAD", "") not in ("", "0", "false", "no"),
        answer_cache_size=_whole(env, "ROUTER_ML_ANSWER_CACHE", defaults.answer_cache_size, 0),
        events=env.get("ROUTER_ML_EVENTS") or None,
        keep_text=env.get("ROUTER_ML_KEEP_TEXT", "") not in ("", "0", "false", "no"),
        alert_webhook=env.get("ROUTER_ML_ALERT_WEBHOOK") or None,
    )


def _path(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(value).expanduser() if value else None


def base_url(value: str) -> str:
    """The base URL of a host; without a scheme the port is Ollama's own, as its client has it."""
    host = value.strip().rstrip("/")
    if "://" not in host:
        host = f"http://{host}" if host.rpartition(":")[2].isdigit() else f"http://{host}:11434"
    return host.replace("://0.0.0.0", "://127.0.0.1").replace("://:", "://127.0.0.1:")


def _number(env: Mapping[str, str], name: str, low: float) -> float | None:
    value = env.get(name)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number < math.inf:
        raise SettingsError(f"{name} must be a number, {low:g} or more, found {value!r}")
    return number


def _optional_name(env: Mapping[str, str], name: str, default: str | None) -> str | None:
    value = env.get(name) or default
    return None if value is None or value.lower() == "none" else value


def _whole(env: Mapping[str, str], name: str, default: int, low: int) -> int:
    value = env.get(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10) or int(value) < low:
        raise SettingsError(f"{name} must be a whole number, {low} or more, found {value!r}")
    return int(value)
