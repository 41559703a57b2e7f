"""The models of the library, as `fit.json` holds them, found under the names that servers and people give them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from router_ml.library.names import DEFAULT_QUANTISATION, Name, read_name
from router_ml.library.rule import Profile

_SIZE_TOLERANCE = 1.15  # a name rounds: 7.6 billion are called 7b, 8.2 are called 8b


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the library."""

    name: str
    family: str
    parameters_b: float  # billions
    active_b: float  # of one token
    year: float
    context_tokens: int  # its own window; a host may give less
    capabilities: frozenset[str]
    thinking: str  # "", "switch", "effort" or "always"
    specialisation: str
    quantisation: str  # of the plain tag
    aliases: tuple[str, ...]
    fitted: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]  # by mode: means and sds by task family

    def profile(self) -> Profile:
        """Return what the rule reads of it."""
        return Profile(
            self.family, self.parameters_b, self.active_b, self.year, self.specialisation, "tools" in self.capabilities
        )


class Library:
    """Every model with figures, and the fitted rule for others."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        self.fit = fit
        self.entries = tuple(_entry(row) for row in fit["models"])
        self._exact: dict[tuple[str, str], Entry] = {}
        self._plain: dict[tuple[str, str], Entry] = {}
        self._heads: dict[str, list[Entry]] = {}
        for entry in self.entries:
            for called in (entry.name, *entry.aliases):
                name = read_name(called)
                self._exact.setdefault((name.full, _size(name)), entry)
                self._plain.setdefault((name.head, _size(name)), entry)
            self._heads.setdefault(read_name(entry.name).head, []).append(entry)

    def find(self, name: str) -> Entry | None:
        """Return the model of that name, or None."""
        read = read_name(name)
        found = self._exact.get((read.full, _size(read))) or self._plain.get((read.head, _size(read)))
        return found or next((e for e in self._heads.get(read.head, ()) if _same_size(e, read)), None)

    def kin(self, name: str, family: str | None = None) -> Entry | None:
        """Return the model a name is closest to, of the nearest size: one of the longest series whose name is part of
        it, else, by what a server calls its architecture, one of that `family`."""
        read = read_name(name)
        heads = [head for head in self._heads if head and head in read.head]
        if not heads and family:
            architecture = read_name(family).head
            heads = [head for head in self._heads if head and head in architecture]
        if not heads:
            return None
        series = self._heads[max(heads, key=len)]
        return min(series, key=lambda e: abs(e.parameters_b - (read.parameters_b or e.parameters_b)))


@functools.cache
def library() -> Library:
    """Return the packaged library; read at the first call."""
    text = resources.files("router_ml.library").joinpath("fit.json").read_text(encoding="utf-8")
    return Library(json.loads(text))


def models() -> Iterator[str]:
    """Yield the names of the models in the library."""
    return (entry.name for entry in library().entries)


@functools.lru_cache(maxsize=4096)
def known(name: str) -> Entry | None:
    """Return what the library says of a model under any of its names, or None."""
    return library().find(name)


def quantisation_in(name: str, entry: Entry | None = None) -> str:
    """Return the quantisation a name stands for, the library's default of the tag where it names none."""
    read = read_name(name).quantisation
    return read or (entry.quantisation if entry is not None else DEFAULT_QUANTISATION)


def _size(name: Name) -> str:
    return "" if name.parameters_b is None else f"{name.parameters_b:g}"


def _same_size(entry: Entry, name: Name) -> bool:
    size = name.parameters_b
    return size is not None and 1 / _SIZE_TOLERANCE < entry.parameters_b / size < _SIZE_TOLERANCE


def _entry(row: Mapping[str, Any]) -> Entry:
    fitted = {mode: (tuple(mean), tuple(sd)) for mode, (mean, sd) in row.get("fitted", {}).items()}
    values = {key: row[key] for key in Entry.__dataclass_fields__ if key not in ("fitted", "capabilities", "aliases")}
    return Entry(**values, capabilities=frozenset(row["capabilities"]), aliases=tuple(row["aliases"]), fitted=fitted)
