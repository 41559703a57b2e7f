"""The catalogue: which models there are, what they can do, and what is expected of them before any outcome."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard, get_args

from router_ml.errors import CatalogueError, SettingsError, shown
from router_ml.files import read_regular, reason
from router_ml.settings import base_url
from router_ml.suggestions import warn_of_typos
from router_ml.types import LABELS, ROLES, Label, Prior, Role

FORMAT = 1
CAPABILITIES = ("tools", "thinking", "vision")
DEFAULT_STRENGTH = 20.0
MAX_NUMBER = 1e15  # no price, size or time of a model is larger
MAX_LOG_SD = 10.0  # of latency; beyond it a 95 % quantile is millions of times the median
MAX_BYTES, MAX_MODELS, MAX_NAME_CHARS = 16_000_000, 2000, 256
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MODEL_KEYS = frozenset({
    "name", "family", "parameters_b", "role", "context_window_tokens", "capabilities", "price_input_usd_per_mtok",
    "price_output_usd_per_mtok", "aliases", "hosts", "prior",
    "quantisation", "size_gb", "measured",
})  # fmt: skip
_PRIOR_KEYS = frozenset({"latency_s", "success", "output_tokens", "latency_log_sd", "strength"})


@dataclass(frozen=True, slots=True)
class Measured:
    """Rates of one model on one machine, as `router-ml init` measured them."""

    decode_tokens_per_s: float
    prompt_tokens_per_s: float
    load_s: float | None = None  # from disk into memory
    output_tokens: float | None = None  # of a short answer; without thinking where the model can do without
    thinking_tokens: float | None = None  # of the same answer with thinking, thinking included
    at: str = ""  # when, ISO 8601
    host: str = field(default="", repr=False)  # where, without credentials


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue."""

    name: str
    prior: Prior
    family: str = ""
    parameters_b: float | None = None
    role: Role | None = None
    context_window_tokens: int | None = None
    capabilities: frozenset[str] | None = None  # None: unknown, taken to be able
    price_input_usd_per_mtok: float = 0.0
    price_output_usd_per_mtok: float = 0.0
    aliases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = field(default=(), repr=False)  # base URLs that serve it; empty: the default host
    quantisation: str = ""  # as llama.cpp calls it, such as q4_K_M
    size_gb: float | None = None  # of its file
    measured: Measured | None = None

    def can(self, capability: str) -> bool:
        """Return whether the model has a capability; an unknown set counts as able."""
        return self.capabilities is None or capability in self.capabilities


@dataclass(frozen=True)
class Catalogue:
    """An ordered set of models, found by name or alias."""

    models: tuple[Model, ...]
    source: str = "memory"
    _by_name: dict[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[str, Model] = {}
        for model in self.models:
            for name in (model.name, *model.aliases):
                if index.setdefault(name, model) is not model:
                    raise CatalogueError(f"{self.source}: the name {name!r} is used by two models; make it unique")
        object.__setattr__(self, "_by_name", index)

    def __iter__(self) -> Any:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all models, in order."""
        return tuple(model.name for model in self.models)

    def find(self, name: str) -> Model | None:
        """Return the model of that name, alias, or name with the tag `:latest` added or left out; else None."""
        bare = name.removesuffix(":latest")
        return next((self._by_name[n] for n in (name, bare, f"{name}:latest") if n in self._by_name), None)

    def __getitem__(self, name: str) -> Model:
        model = self.find(name)
        if model is None:
            raise CatalogueError(f"unknown model {shown(name)}; the catalogue has {', '.join(self.names) or 'none'}")
        return model

    def by_role(self, role: Role) -> Model | None:
        """Return the first model with a role, or None."""
        return next((model for model in self.models if model.role == role), None)

    def extended(self, models: Iterable[Model]) -> Catalogue:
        """Return a catalogue with further models; those of a known name are left out."""
        new = tuple(model for model in models if model.name not in self)
        return Catalogue((*self.models, *new), source=self.source) if new else self


def load_catalogue(path: Path | str | None = None) -> Catalogue:
    """Return the catalogue in a TOML file, or the packaged default.

    Raises `CatalogueError`, naming file and field, if it cannot be read."""
    if path is None:
        return _default()
    try:
        text = read_regular(Path(path), MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise CatalogueError(
            f"cannot read the catalogue {path}: {reason(error)}; give the path of a TOML file with [[model]] tables"
        ) from error
    return _parse(text, str(path))


@functools.cache
def _default() -> Catalogue:
    text = resources.files("router_ml").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return _parse(text, "default catalogue")


def _parse(text: str, source: str) -> Catalogue:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a bare ValueError
        raise CatalogueError(f"{source} is not valid TOML: {reason(error)}; correct it") from error
    version = data.get("format", FORMAT)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT:
        raise CatalogueError(
            f"{source}: field 'format' must be a whole number up to {FORMAT}, found {shown(version)}; "
            "correct it, or upgrade router_ml where a newer version wrote the file"
        )
    entries = data.get("model")
    if not isinstance(entries, list) or not entries:
        raise CatalogueError(f"{source} lists no model; add a [[model]] table with 'name' and 'prior'")
    return catalogue_from(entries, source)


def catalogue_from(entries: Sequence[Any], source: str) -> Catalogue:
    """Return the catalogue of some tables. Raises `CatalogueError` naming the table and its field."""
    if len(entries) > MAX_MODELS:
        raise CatalogueError(f"{source} lists {len(entries)} models; the limit is {MAX_MODELS}: leave some out")
    return Catalogue(tuple(model_from(entry, f"{source}: model {i}") for i, entry in enumerate(entries, 1)), source)


def model_from(entry: Mapping[str, Any], where: str) -> Model:
    """Return a model from its TOML or JSON table. Raises `CatalogueError` naming the field."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not _is_name(name):
        raise CatalogueError(
            f"{where}: field 'name' must be a text of 1 to {MAX_NAME_CHARS} printable characters, found {shown(name)}"
        )
    where = f"{where} ({name})"
    warn_of_typos(entry, _MODEL_KEYS, where)
    role = entry.get("role")
    if role is not None and role not in ROLES:
        raise CatalogueError(f"{where}: field 'role' must be one of {', '.join(get_args(Role))}, found {shown(role)}")
    capabilities = None if entry.get("capabilities") is None else _names(entry, "capabilities", where)
    unknown = set(capabilities or ()) - set(CAPABILITIES)
    if unknown:
        raise CatalogueError(
            f"{where}: field 'capabilities' may list {', '.join(CAPABILITIES)}, found {shown(sorted(unknown))}"
        )
    return Model(
        name=name,
        prior=_prior(entry.get("prior", {}), where),
        family=str(entry.get("family", "")),
        parameters_b=_number(entry, "parameters_b", where),
        role=role,
        context_window_tokens=_window(entry, where),
        capabilities=None if capabilities is None else frozenset(capabilities),
        price_input_usd_per_mtok=_number(entry, "price_input_usd_per_mtok", where) or 0.0,
        price_output_usd_per_mtok=_number(entry, "price_output_usd_per_mtok", where) or 0.0,
        aliases=_names(entry, "aliases", where),
        hosts=_hosts(entry, where),
    )


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and not _UNPRINTABLE.search(value)


def _hosts(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    for url in (urls := _names(entry, "hosts", where)):
        try:
            base_url(url, f"{where}: each of field 'hosts'")
        except SettingsError as error:
            raise CatalogueError(str(error)) from None
    return urls


def _names(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, ())
    if not isinstance(value, list | tuple) or not all(map(_is_name, value)):
        raise CatalogueError(f"{where}: field {key!r} must be a list of non-empty texts, found {shown(value)}")
    return tuple(value)


def _window(entry: Mapping[str, Any], where: str) -> int | None:
    value = _number(entry, "context_window_tokens", where)
    return None if value is None else int(value)


def _number(entry: Mapping[str, Any], key: str, where: str, high: float = MAX_NUMBER) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= high:  # type: ignore[operator]
        raise CatalogueError(f"{where}: field {key!r} must be a number between 0 and {high:g}, found {shown(value)}")
    return float(value)


def _prior(entry: Mapping[str, Any], where: str) -> Prior:
    if not isinstance(entry, Mapping):
        raise CatalogueError(f"{where}: field 'prior' must be a table with 'latency_s' and 'success'")
    warn_of_typos(entry, _PRIOR_KEYS, f"{where}: prior")
    latency = _per_label(entry, "latency_s", where)
    success = _per_label(entry, "success", where, 1.0)
    if latency is None or success is None:
        raise CatalogueError(f"{where}: field 'prior' needs 'latency_s' and 'success' (a number, or one per label)")
    sd, strength = _number(entry, "latency_log_sd", where, MAX_LOG_SD), _number(entry, "strength", where)
    return Prior(
        latency_s=latency,
        success=success,
        output_tokens=_per_label(entry, "output_tokens", where),
        latency_log_sd=0.5 if sd is None else sd,
        strength=DEFAULT_STRENGTH if strength is None else strength,
    )


def _per_label(entry: Mapping[str, Any], key: str, where: str, high: float = MAX_NUMBER) -> dict[Label, float] | None:
    value = entry.get(key)
    if value is None:
        return None
    table = value if isinstance(value, Mapping) else dict.fromkeys(LABELS, value)
    numbers = {label: _number(table, label, f"{where}: field 'prior.{key}'", high) for label in LABELS}
    missing = [label for label, number in numbers.items() if number is None]
    if missing:
        raise CatalogueError(f"{where}: field 'prior.{key}' lacks {', '.join(missing)}; give a number for each label")
    return {label: number for label, number in numbers.items() if number is not None}


def model_entry(model: Model) -> dict[str, Any]:
    """Return the table form of a model, as `model_from` reads it, without its hosts.

    The form is what bundles, events and reports hold: where a model is served, and with which password, stays with
    the catalogue of the machine that serves it."""
    entry: dict[str, Any] = {
        "name": model.name,
        "family": model.family,
        "parameters_b": model.parameters_b,
        "role": model.role,
        "context_window_tokens": model.context_window_tokens,
        "capabilities": None if model.capabilities is None else sorted(model.capabilities),
        "price_input_usd_per_mtok": model.price_input_usd_per_mtok,
        "price_output_usd_per_mtok": model.price_output_usd_per_mtok,
        "aliases": list(model.aliases),
        "prior": {
            "latency_s": dict(model.prior.latency_s),
            "success": dict(model.prior.success),
            "output_tokens": None if model.prior.output_tokens is None else dict(model.prior.output_tokens),
            "latency_log_sd": model.prior.latency_log_sd,
            "strength": model.prior.strength,
        },
    }
    return {key: value for key, value in entry.items() if value is not None}
