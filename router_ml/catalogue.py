"""The catalogue: which models there are, what they can do, and what is expected of them before any outcome."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, get_args

from router_ml.arm import EFFORTS, arm_key, is_think, split_key
from router_ml.errors import CatalogueError, SettingsError, shown
from router_ml.files import read_regular, reason
from router_ml.rule import Rule, rules_from
from router_ml.settings import base_url
from router_ml.suggestions import warn_of_typos
from router_ml.types import LABELS, ROLES, Label, Role, Source, Think
from router_ml.types import Prior as Prior

FORMAT = 1
CAPABILITIES = ("tools", "thinking", "vision")
DEFAULT_STRENGTH = 20.0
MAX_NUMBER = 1e15  # no price, size or time of a model is larger
MAX_LOG_SD = 10.0  # of latency; beyond it a 95 % quantile is millions of times the median
MAX_BYTES, MAX_MODELS, MAX_NAME_CHARS = 16_000_000, 2000, 256
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MODEL_KEYS = frozenset({
    "name", "family", "parameters_b", "role", "context_window_tokens", "capabilities", "price_input_usd_per_mtok",
    "price_output_usd_per_mtok", "aliases", "hosts", "prior", "arm", "max_context_tokens", "quantisation", "size_gb",
    "measured", "absent",
})  # fmt: skip
_ARM_KEYS = frozenset({"think", "prior"})
_PRIOR_KEYS = frozenset({"latency_s", "success", "output_tokens", "latency_log_sd", "strength", "latency_source"})
_RATES = ("decode_tokens_per_s", "prompt_tokens_per_s")


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
class Arm:
    """One way to ask a model."""

    think: Think | None  # None: nothing is said, so the model's own default counts
    prior: Prior


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the catalogue; or, among `Catalogue.arms`, one arm of it, which has a `think` and no `arms`."""

    name: str
    prior: Prior
    family: str = ""
    parameters_b: float | None = None
    role: Role | None = None
    context_window_tokens: int | None = None  # what its host gives a request that does not ask for more
    max_context_tokens: int | None = None  # up to which the gateway may ask for more (num_ctx); None: as above
    capabilities: frozenset[str] | None = None  # None: unknown, taken to be able
    price_input_usd_per_mtok: float = 0.0
    price_output_usd_per_mtok: float = 0.0
    aliases: tuple[str, ...] = ()
    hosts: tuple[str, ...] = field(default=(), repr=False)  # base URLs that serve it; empty: the default host
    quantisation: str = ""  # as llama.cpp calls it, such as q4_K_M; "" where it is not known
    size_gb: float | None = None  # of its file
    measured: Measured | None = None
    arms: tuple[Arm, ...] = ()  # the ways it is offered; empty: one, with `prior`
    think: Think | None = None  # how this arm is asked

    @property
    def key(self) -> str:
        """Return the name of this arm in tables: the model's name where it has no choice."""
        return arm_key(self.name, self.think)

    @property
    def each_arm(self) -> tuple[Model, ...]:
        """Return the model once for each of its arms; itself where it has none."""
        ways = (replace(self, prior=arm.prior, think=arm.think, arms=()) for arm in self.arms)
        return tuple(ways) or (self,)

    @property
    def default_arm(self) -> Model:
        """Return the arm a host uses where nothing is said: models that can think do, with medium effort."""
        arms = {arm.think: arm for arm in reversed(self.each_arm)}
        return next((arms[think] for think in (None, True, "medium") if think in arms), self.each_arm[0])

    def with_arms(self, arms: Iterable[Arm]) -> Model:
        """Return the model with further arms; those it has stay as they are."""
        own = {arm.think for arm in self.arms}
        return replace(self, arms=(*self.arms, *(arm for arm in arms if arm.think not in own)))

    def can(self, capability: str) -> bool:
        """Return whether the model has a capability; an unknown set counts as able."""
        return self.capabilities is None or capability in self.capabilities


@dataclass(frozen=True)
class Catalogue:
    """An ordered set of models, found by name or alias. `arms` holds one entry for each way a model is offered."""

    models: tuple[Model, ...]
    source: str = "memory"
    rules: tuple[Rule, ...] = ()  # what the user decrees, asked after those of the policy
    arms: tuple[Model, ...] = field(init=False, repr=False, compare=False)
    _by_name: dict[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[str, Model] = {}
        for model in self.models:
            for name in (model.name, *model.aliases):
                if index.setdefault(name, model) is not model:
                    raise CatalogueError(f"{self.source}: the name {name!r} is used by two models; make it unique")
        object.__setattr__(self, "_by_name", index)
        object.__setattr__(self, "arms", tuple(arm for model in self.models for arm in model.each_arm))

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

    def arm(self, key: str) -> Model | None:
        """Return the arm of a key, else None; a name without a way to ask is the model's default arm."""
        if (model := self.find(key)) is not None:
            return model.default_arm
        name, think = split_key(key)
        model = self.find(name) if think is not None else None
        return next((arm for arm in model.each_arm if arm.key == arm_key(model.name, think)), None) if model else None

    def __getitem__(self, name: str) -> Model:
        model = self.find(name)
        if model is None:
            raise CatalogueError(f"unknown model {shown(name)}; the catalogue has {', '.join(self.names) or 'none'}")
        return model

    def by_role(self, role: Role) -> Model | None:
        """Return the first model with a role, or None."""
        return next((model for model in self.models if model.role == role), None)

    def extended(self, models: Iterable[Model]) -> Catalogue:
        """Return a catalogue with further models, and with further arms of the models it has."""
        every = {model.name: model for model in self.models}
        for model in models:
            own = self.find(model.name)
            every[own.name if own else model.name] = every[own.name].with_arms(model.arms) if own else model
        extended = tuple(every.values())
        return replace(self, models=extended) if extended != self.models else self


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
        raise CatalogueError(f"{source} lists no model; add a [[model]] table with a 'name', or run: router-ml init")
    return replace(catalogue_from(entries, source), rules=_rules(data.get("rule", []), text, source))


def _rules(entries: Any, text: str, source: str) -> tuple[Rule, ...]:
    try:
        return rules_from(entries, text, source)
    except ValueError as error:
        raise CatalogueError(str(error)) from None


def catalogue_from(entries: Sequence[Any], source: str) -> Catalogue:
    """Return the catalogue of some tables. Raises `CatalogueError` naming the table and its field."""
    if len(entries) > MAX_MODELS:
        raise CatalogueError(f"{source} lists {len(entries)} models; the limit is {MAX_MODELS}: leave some out")
    present = [(i, entry) for i, entry in enumerate(entries, 1) if not _is_absent(entry)]
    if not present:
        raise CatalogueError(f"{source}: every model is marked as absent; install one, then run: router-ml init")
    return Catalogue(tuple(model_from(entry, f"{source}: model {i}") for i, entry in present), source)


def _is_absent(entry: Any) -> bool:
    """Return whether `router-ml init` marked a model that its host no longer has."""
    return isinstance(entry, Mapping) and entry.get("absent") is True


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
    expected = _Expected(
        name,
        _number(entry, "parameters_b", where),
        str(entry.get("quantisation") or "") or None,
        str(entry.get("family", "")),
        _measured(entry, where),
    )
    arms = _arms(entry, where, expected)
    thinking = next((arm.think for arm in arms if arm.think), None)
    if thinking is not None and capabilities is not None and "thinking" not in capabilities:
        raise CatalogueError(
            f"{where}: field 'arm' asks for think = {_toml(thinking)}, but 'capabilities' lacks 'thinking'; "
            "add it, or leave the arm out"
        )
    own = "prior" in entry or not arms
    return Model(
        name=name,
        prior=_prior(entry.get("prior", {}), where, expected, None)
        if own
        else Model(name, arms[0].prior, arms=arms).default_arm.prior,
        family=expected.family,
        parameters_b=expected.parameters_b,
        role=role,
        context_window_tokens=_tokens(entry, "context_window_tokens", where),
        max_context_tokens=_tokens(entry, "max_context_tokens", where),
        capabilities=None if capabilities is None else frozenset(capabilities),
        price_input_usd_per_mtok=_number(entry, "price_input_usd_per_mtok", where) or 0.0,
        price_output_usd_per_mtok=_number(entry, "price_output_usd_per_mtok", where) or 0.0,
        aliases=_names(entry, "aliases", where),
        hosts=_hosts(entry, where),
        quantisation=expected.quantisation or "",
        size_gb=_number(entry, "size_gb", where),
        measured=expected.measured,
        arms=arms,
    )


class _Expected(NamedTuple):
    """What the library needs to know of a model to fill in what its table leaves out."""

    name: str
    parameters_b: float | None
    quantisation: str | None
    family: str
    measured: Measured | None

    def prior(self, think: Think | None) -> Prior:
        from router_ml.library.prior import measured_tokens, prior_of  # only where a table leaves something out
        from router_ml.library.speed import MEASURED_OVERHEAD_S, Rates

        found = self.measured
        if found is None:
            return prior_of(self.name, self.parameters_b, self.quantisation, self.family, think)
        rates = Rates(found.decode_tokens_per_s, found.prompt_tokens_per_s, found.load_s or 0.0, MEASURED_OVERHEAD_S)
        tokens = measured_tokens(self.name, think, found.output_tokens, found.thinking_tokens)
        return prior_of(self.name, self.parameters_b, self.quantisation, self.family, think, rates, tokens)


def _measured(entry: Mapping[str, Any], where: str) -> Measured | None:
    table = entry.get("measured")
    if table is None:
        return None
    if not isinstance(table, Mapping):
        raise CatalogueError(f"{where}: field 'measured' must be a table, found {shown(table)}; run: router-ml init")
    warn_of_typos(table, frozenset(Measured.__dataclass_fields__), f"{where}: measured")
    rates = {key: _number(table, key, f"{where}: measured") for key in _RATES}
    for key, rate in rates.items():
        if not rate:
            raise CatalogueError(
                f"{where}: field 'measured.{key}' must be a number above 0, found {shown(table.get(key))}; "
                "correct it, or remove the table and run: router-ml init"
            )
    return Measured(
        rates["decode_tokens_per_s"] or 0.0,
        rates["prompt_tokens_per_s"] or 0.0,
        _number(table, "load_s", f"{where}: measured"),
        _number(table, "output_tokens", f"{where}: measured"),
        _number(table, "thinking_tokens", f"{where}: measured"),
        at=str(table.get("at", "")),
        host=str(table.get("host", "")),
    )


def _arms(entry: Mapping[str, Any], where: str, expected: _Expected) -> tuple[Arm, ...]:
    """Return the arms of a model's table; what the prior of an arm leaves out is the model's."""
    tables = entry.get("arm", ())
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        raise CatalogueError(f"{where}: field 'arm' must be a list of tables ([[model.arm]]), found {shown(tables)}")
    arms = tuple(
        _arm(table, entry.get("prior", {}), f"{where}: arm {i}", expected) for i, table in enumerate(tables, 1)
    )
    repeated = next((arm for i, arm in enumerate(arms) if arm.think in [a.think for a in arms[:i]]), None)
    if repeated is not None:
        raise CatalogueError(f"{where}: two arms have the same 'think' ({_toml(repeated.think)}); remove one of them")
    return arms


def _arm(table: Mapping[str, Any], prior: Any, where: str, expected: _Expected) -> Arm:
    warn_of_typos(table, _ARM_KEYS, where)
    think = table.get("think")
    if think is not None and not is_think(think):
        ways = ", ".join(map(_toml, EFFORTS))
        raise CatalogueError(f"{where}: field 'think' must be true, false or one of {ways}, found {shown(think)}")
    own = table.get("prior", {})
    whole = {**prior, **own} if isinstance(prior, Mapping) and isinstance(own, Mapping) else own
    return Arm(think, _prior(whole, where, expected, think))


def _toml(think: Think | None) -> str:
    return "none" if think is None else f'"{think}"' if isinstance(think, str) else str(think).lower()


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


def _tokens(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    value = _number(entry, key, where)
    return None if value is None else int(value)


def _number(entry: Mapping[str, Any], key: str, where: str, high: float = MAX_NUMBER) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= high:  # type: ignore[operator]
        raise CatalogueError(f"{where}: field {key!r} must be a number between 0 and {high:g}, found {shown(value)}")
    return float(value)


def _prior(entry: Mapping[str, Any], where: str, expected: _Expected, think: Think | None) -> Prior:
    """Return a prior from its table; what that leaves out is what the library expects of the model."""
    if not isinstance(entry, Mapping):
        raise CatalogueError(f"{where}: field 'prior' must be a table with 'latency_s' and 'success'")
    warn_of_typos(entry, _PRIOR_KEYS, f"{where}: prior")
    latency = _per_label(entry, "latency_s", where)
    success = _per_label(entry, "success", where, 1.0)
    tokens = _per_label(entry, "output_tokens", where)
    sd, strength = _number(entry, "latency_log_sd", where, MAX_LOG_SD), _number(entry, "strength", where)
    source = _source(entry, where)
    if latency is not None and success is not None:
        return Prior(
            latency_s=latency,
            success=success,
            output_tokens=tokens,
            latency_log_sd=0.5 if sd is None else sd,
            strength=DEFAULT_STRENGTH if strength is None else strength,
            latency_source=source or "prior",
        )
    found = expected.prior(think)
    return Prior(
        latency_s=found.latency_s if latency is None else latency,
        success=found.success if success is None else success,
        output_tokens=found.output_tokens if tokens is None else tokens,
        latency_log_sd=found.latency_log_sd if sd is None else sd,
        strength=found.strength if strength is None else strength,
        latency_source=source or (found.latency_source if latency is None else "prior"),
    )


def _source(entry: Mapping[str, Any], where: str) -> Source | None:
    source = entry.get("latency_source")
    if source is None or source in ("prior", "measured"):
        return source
    raise CatalogueError(
        f"{where}: field 'prior.latency_source' must be 'prior' or 'measured', found {shown(source)}; correct it"
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
        "max_context_tokens": model.max_context_tokens,
        "capabilities": None if model.capabilities is None else sorted(model.capabilities),
        "price_input_usd_per_mtok": model.price_input_usd_per_mtok,
        "price_output_usd_per_mtok": model.price_output_usd_per_mtok,
        "aliases": list(model.aliases),
        "quantisation": model.quantisation or None,
        "size_gb": model.size_gb,
        "prior": _prior_entry(model.prior),
        "measured": None if model.measured is None else _measured_entry(model.measured),
        "arm": [_arm_entry(arm) for arm in model.arms] or None,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _arm_entry(arm: Arm) -> dict[str, Any]:
    return ({} if arm.think is None else {"think": arm.think}) | {"prior": _prior_entry(arm.prior)}


def _prior_entry(prior: Prior) -> dict[str, Any]:
    return {
        "latency_s": dict(prior.latency_s),
        "success": dict(prior.success),
        "output_tokens": None if prior.output_tokens is None else dict(prior.output_tokens),
        "latency_log_sd": prior.latency_log_sd,
        "strength": prior.strength,
        "latency_source": prior.latency_source,
    }


def _measured_entry(measured: Measured) -> dict[str, Any]:
    return {key: value for key, value in asdict(measured).items() if value not in (None, "") and key != "host"}
