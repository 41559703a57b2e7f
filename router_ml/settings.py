"""Settings of the serving side, read once from the environment; every one has a working default."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from router_ml.errors import SettingsError

log = logging.getLogger(__name__)

Keep: TypeAlias = Literal["none", "features", "text"]  # what is kept of a query beside its numbers

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGED_BUNDLES = Path(__file__).resolve().parent / "bundles"
MAX_THREADS = 1024
_OLLAMA_PORT = 11434
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
DEFAULT_HOST_TYPE = "ollama"
OWN_CATALOGUE = "catalogue.toml"  # in the state folder, where `router-ml init` writes it
_HOST_TYPE = re.compile(r"([a-z][a-z0-9]*)\+(?=https?://)")
_SWITCH = {"": False, "0": False, "false": False, "no": False, "off": False,
           "1": True, "true": True, "yes": True, "on": True}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are and how the router is run. URLs that may hold a password are left out of the `repr`."""

    bundle: Path | None = None  # ROUTER_ML_BUNDLE: this bundle and no other
    models_dir: Path | None = None  # ROUTER_ML_MODELS_DIR: the bundle registry; none: `models` in the state folder
    catalogue: Path | None = None  # ROUTER_ML_CATALOGUE, else catalogue.toml in the state folder where it is there
    policy: str = "balanced"  # ROUTER_ML_POLICY: a preset, or the path of a policy file
    ollama_host: str = field(default="http://127.0.0.1:11434", repr=False)  # OLLAMA_HOST
    state_dir: Path = Path("~/.router_ml")  # ROUTER_ML_STATE_DIR: events, experiments, bundles
    encoder_threads: int = 1  # ROUTER_ML_THREADS
    decision_cache_size: int = 4096  # ROUTER_ML_DECISION_CACHE: 0 turns it off
    deadline_s: float = 120.0  # ROUTER_ML_DEADLINE_S: of one request, fallbacks included
    last_resort: str | None = "qwen3:8b"  # ROUTER_ML_LAST_RESORT: tried after every ranked model; "none": nothing is
    parallel: int = 4  # ROUTER_ML_PARALLEL: calls at once per model and host
    stick_margin: float | None = None  # ROUTER_ML_STICK_MARGIN: utility a session's change of model must gain
    reload_s: float = 1.0  # ROUTER_ML_RELOAD_S: between two checks for a promoted bundle or a new catalogue; 0: none
    learn_s: float = 2.0  # ROUTER_ML_LEARN_S: between two looks for judged answers; 0: only a fit learns from them
    preload: bool = False  # ROUTER_ML_PRELOAD=1: load the likely next model while the host is idle
    answer_cache_size: int = 0  # ROUTER_ML_ANSWER_CACHE: answers cached; 0 turns it off
    events: str | None = field(default=None, repr=False)  # ROUTER_ML_EVENTS: postgresql:// URL or path of the store
    redis: str | None = field(default=None, repr=False)  # ROUTER_ML_REDIS: redis:// URL of what replicas share
    keep: Keep = "none"  # ROUTER_ML_KEEP: what is stored of queries for 30 days: features, or redacted text
    judge: str | None = None  # ROUTER_ML_JUDGE: a local model that judges a sample of answers; none: nobody does
    judge_share: float = 0.02  # ROUTER_ML_JUDGE_SHARE: of the answers
    alert_webhook: str | None = field(default=None, repr=False)  # ROUTER_ML_ALERT_WEBHOOK: takes Alertmanager's form

    @property
    def keep_text(self) -> bool:
        """Whether the redacted text of queries is stored."""
        return self.keep == "text"


def load_settings(env: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the environment. Raises `SettingsError` naming the variable."""
    env = os.environ if env is None else env
    defaults = Settings()
    return Settings(
        bundle=_path(env, "ROUTER_ML_BUNDLE"),
        models_dir=_path(env, "ROUTER_ML_MODELS_DIR"),
        catalogue=_path(env, "ROUTER_ML_CATALOGUE") or _own_catalogue(env, defaults.state_dir),
        policy=env.get("ROUTER_ML_POLICY") or defaults.policy,
        ollama_host=base_url(env.get("OLLAMA_HOST") or defaults.ollama_host),
        state_dir=_path(env, "ROUTER_ML_STATE_DIR") or _home_folder(defaults.state_dir),
        encoder_threads=_whole(env, "ROUTER_ML_THREADS", defaults.encoder_threads, 1, MAX_THREADS),
        decision_cache_size=_whole(env, "ROUTER_ML_DECISION_CACHE", defaults.decision_cache_size, 0),
        deadline_s=_number(env, "ROUTER_ML_DEADLINE_S", low=0.001) or defaults.deadline_s,
        last_resort=_optional_name(env, "ROUTER_ML_LAST_RESORT", defaults.last_resort),
        parallel=_whole(env, "ROUTER_ML_PARALLEL", defaults.parallel, 1),
        stick_margin=_number(env, "ROUTER_ML_STICK_MARGIN", low=0.0),
        preload=_switch(env, "ROUTER_ML_PRELOAD"),
        answer_cache_size=_whole(env, "ROUTER_ML_ANSWER_CACHE", defaults.answer_cache_size, 0),
        events=env.get("ROUTER_ML_EVENTS") or None,
        redis=_redis(env, "ROUTER_ML_REDIS"),
        reload_s=defaults.reload_s if (reload_s := _number(env, "ROUTER_ML_RELOAD_S", low=0.0)) is None else reload_s,
        learn_s=defaults.learn_s if (learn_s := _number(env, "ROUTER_ML_LEARN_S", low=0.0)) is None else learn_s,
        keep=_keep(env, "ROUTER_ML_KEEP"),
        judge=_optional_name(env, "ROUTER_ML_JUDGE", None),
        judge_share=_share(env, "ROUTER_ML_JUDGE_SHARE", defaults.judge_share),
        alert_webhook=_webhook(env, "ROUTER_ML_ALERT_WEBHOOK"),
    )


def _own_catalogue(env: Mapping[str, str], default: Path) -> Path | None:
    """Return the catalogue that `router-ml init` wrote, where there is one."""
    path = (_path(env, "ROUTER_ML_STATE_DIR") or _home_folder(default)) / OWN_CATALOGUE
    try:
        return path if path.is_file() else None
    except OSError:
        return None


def base_url(value: str, name: str = "OLLAMA_HOST") -> str:
    """Return the base URL of a host, read as Ollama's own client reads it, with its user and password.

    Without a scheme the port is 11434; a missing host is this machine, and so is 0.0.0.0. A prefix such as `kind+`
    before the scheme names the type of the host and stays; `ollama+`, the default, is left out. Raises `SettingsError`
    naming the setting, never with the password."""
    given = value.strip().strip("\"'")
    if typed := _HOST_TYPE.match(given):
        prefix = "" if typed[1] == DEFAULT_HOST_TYPE else typed[0]
        return prefix + base_url(given[typed.end() :], name)
    scheme, separator, rest = given.partition("://")
    scheme, rest, default_port = (scheme.lower(), rest, None) if separator else ("http", given, _OLLAMA_PORT)
    try:
        if scheme not in ("http", "https") or not rest or re.search(r"[\s\x00-\x1f\x7f\\]", rest):
            raise ValueError("no http or https URL")
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = _bracketed(parts.hostname or "127.0.0.1"), parts.port or default_port
    except ValueError as error:
        raise SettingsError(
            f"{name} must be a host, host:port or URL such as http://127.0.0.1:11434, found "
            f"{without_credentials(given)!r:.200} ({error if '@' not in given else 'not a valid URL'}); "
            "write IPv6 addresses in brackets and percent-encode special characters of a password"
        ) from None
    user = parts.netloc.rpartition("@")[0]
    path = parts.path.strip("/")
    return f"{scheme}://{user}{'@' if user else ''}{host}{f':{port}' if port else ''}{f'/{path}' if path else ''}"


def host_type(url: str) -> tuple[str, str]:
    """Return the type of a host and its address without the prefix that names the type."""
    typed = _HOST_TYPE.match(url)
    return (typed[1], url[typed.end() :]) if typed else (DEFAULT_HOST_TYPE, url)


def without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment: the form for messages, logs, events and status.

    Of a malformed URL, whose password holds a slash, say, only what follows the last `@` is left."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = rest.partition("/")
    if "@" not in authority and "@" in path and not _HOST_AND_PORT.fullmatch(authority):
        authority, slash, path = path.rpartition("@")[2].partition("/")
    return re.split("[?#]", f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}", maxsplit=1)[0]


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if isinstance(ip_address(host), IPv6Address) else "127.0.0.1" if host == "0.0.0.0" else host
    except ValueError:
        return host


def _webhook(env: Mapping[str, str], name: str) -> str | None:
    value = env.get(name)
    if value and not re.match(r"https?://[^/\s]", value):
        raise SettingsError(f"{name} must be an http or https URL, found {without_credentials(value)!r:.200}")
    return value or None


def _redis(env: Mapping[str, str], name: str) -> str | None:
    value = env.get(name)
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        raise SettingsError(
            f"{name} must be a URL such as redis://127.0.0.1:6379/0, found {without_credentials(value)!r:.200}"
        )
    return value or None


def _path(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    if not value:
        return None
    try:
        if "\0" in value:
            raise RuntimeError("it holds a NUL character")
        return Path(value).expanduser()
    except RuntimeError as error:  # "~" where no home folder is known
        raise SettingsError(f"{name} must be a path, found {value!r:.200} ({error}); give an absolute path") from error


def _home_folder(default: Path) -> Path:
    try:
        return default.expanduser()
    except RuntimeError:  # neither HOME nor an entry in the password database: containers, systemd's DynamicUser
        return _temporary_state()


@functools.cache
def _temporary_state() -> Path:
    """Return a private state folder for a user without a home: one per user id and machine.

    A folder of that name which others could have made or can write is not used; a fresh one takes its place."""
    folder = Path(tempfile.gettempdir()) / f"router_ml-{getattr(os, 'getuid', lambda: 0)()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            folder = Path(tempfile.mkdtemp(prefix="router_ml-"))
    except OSError:
        folder = Path(tempfile.gettempdir()) / "router_ml-unavailable"  # the store reports that it cannot be opened
    log.warning("no home folder is known; state goes to %s; set ROUTER_ML_STATE_DIR to a folder that lasts", folder)
    return folder


def _keep(env: Mapping[str, str], name: str) -> Keep:
    """Return ROUTER_ML_KEEP; ROUTER_ML_KEEP_TEXT=1, its earlier form, means text where the new one is not set."""
    keep_text = _switch(env, "ROUTER_ML_KEEP_TEXT")
    value = env.get(name, "").strip().lower() or ("text" if keep_text else "none")
    for known in get_args(Keep):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise SettingsError(f"{name} must be none, features or text, found {value!r:.60}")


def _number(env: Mapping[str, str], name: str, low: float) -> float | None:
    value = env.get(name)
    if not value:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number < math.inf:
        raise SettingsError(f"{name} must be a number, {low:g} or more, found {value!r:.60}")
    return number


def _share(env: Mapping[str, str], name: str, default: float) -> float:
    value = _number(env, name, low=0.0)
    if value is not None and value > 1:
        raise SettingsError(f"{name} must be a number between 0 and 1, found {env[name]!r:.60}")
    return default if value is None else value


def _optional_name(env: Mapping[str, str], name: str, default: str | None) -> str | None:
    value = env.get(name) or default
    return None if value is None or value.lower() == "none" else value


def _switch(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "")
    if value.strip().lower() not in _SWITCH:
        raise SettingsError(f"{name} must be 1 or 0 (yes or no, on or off, true or false), found {value!r:.60}")
    return _SWITCH[value.strip().lower()]


def _whole(env: Mapping[str, str], name: str, default: int, low: int, high: int = 10**9 - 1) -> int:
    value = env.get(name)
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10) or not low <= int(value) <= high:
        raise SettingsError(f"{name} must be a whole number between {low} and {high}, found {value!r:.60}")
    return int(value)
