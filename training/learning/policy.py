"""What `training.learn` may do: the `[learn]` table of a policy file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from router_ml.errors import InputError, shown
from router_ml.experiments.experiment import Limits
from router_ml.suggestions import suggestion

Then: TypeAlias = Literal["shadow", "ab", "nothing"]


@dataclass(frozen=True)
class LearnPolicy:
    """When to learn, what a challenger must show, and what follows. Raises `InputError` for a value out of range."""

    min_judged: int = 200  # new judged answers before a challenger is learned
    max_rows: int = 20_000  # the newest decisions that are learned from
    gate_share: float = 0.3  # of the sessions: kept out of the fit, to judge the challenger on
    then: Then = "shadow"  # for a challenger that passed the gate
    on_cannot_tell: Then = "shadow"  # where the gate cannot tell; one that is worse is never tried
    coverage: float = 1.0  # share of units that takes part in the experiment
    unit: Literal["session", "request"] = "session"
    shadow_hours: float = 0.0  # with then = "ab": so long in shadow first
    auto_promote: bool = False  # promote by itself what the A/B recommends to ship
    queries: Path | None = None  # measured rows to learn from beside the traffic, with ...
    outcomes: Path | None = None  # ... their outcomes
    seed: int = 0
    limits: Limits = field(default_factory=Limits)  # of the experiment

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_judged", 1, 10**9), ("max_rows", 40, 10**9), ("gate_share", 0.05, 0.9), ("coverage", 0.001, 1.0),
            ("shadow_hours", 0, 10_000), ("seed", 0, 2**31),
        ):  # fmt: skip
            value = getattr(self, name)
            whole = name in ("min_judged", "max_rows", "seed")
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not low <= value <= high
            ):
                raise InputError(f"[learn] {name} must be a number between {low:g} and {high:g}, found {shown(value)}")
        for name, known in (
            ("then", get_args(Then)),
            ("on_cannot_tell", get_args(Then)),
            ("unit", ("session", "request")),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"[learn] {name} must be one of {', '.join(known)}, found {shown(getattr(self, name))}"
                )
        if not isinstance(self.auto_promote, bool):
            raise InputError(f"[learn] auto_promote must be true or false, found {shown(self.auto_promote)}")
        if (self.queries is None) != (self.outcomes is None):
            raise InputError("[learn] queries and outcomes belong together; give both or neither")


def read_learn_policy(path: Path | None) -> LearnPolicy:
    """Return the `[learn]` table of a TOML file; without file or table, the defaults.

    Paths in it are relative to the file. Raises `InputError`."""
    if path is None:
        return LearnPolicy()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("learn", {})
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return _parsed(path, table)


def _parsed(path: Path, table: Any) -> LearnPolicy:
    known = [f.name for f in fields(LearnPolicy)]
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: [learn] must be a table")
    for name in table:
        if name not in known:
            raise InputError(f"{path}: [learn] has no {name!r}{suggestion(name, known)}; known are {', '.join(known)}")
    values = dict(table)
    try:
        for name in ("queries", "outcomes"):
            if name in values:
                values[name] = path.parent / Path(values[name]).expanduser()
        values["limits"] = Limits(**values.get("limits", {}))
        return LearnPolicy(**values)
    except TypeError as error:
        raise InputError(f"{path}: [learn] {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
