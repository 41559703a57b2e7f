"""The event store: what it promises, and how one is opened from a path or URL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from router_ml.events.event import DecisionEvent, Event, as_dict
from router_ml.events.privacy import Privacy

DATABASE = "events.db"


class Stored(NamedTuple):
    """An event with its place in the store; places grow in the order in which events became visible."""

    seq: int
    event: Event


class Written(NamedTuple):
    """The columns of one event."""

    event_id: str
    kind: str
    at_s: float
    decision_id: str | None
    experiment: str | None
    body: str
    text: str | None
    context: str | None  # JSON


class KeptText(NamedTuple):
    """The redacted text of a query, with what came with it."""

    decision_id: str
    text: str
    context: Mapping[str, Any] | None  # as `parse_context` takes it


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to read; an empty part selects all."""

    kinds: tuple[str, ...] = ()
    after_seq: int = 0
    since_s: float | None = None  # Unix time, included
    until_s: float | None = None  # Unix time, not included
    experiment: str | None = None
    decision_id: str | None = None

    def where(self, mark: str) -> tuple[str, list[object]]:
        """The condition in SQL with its parameters; `mark` is the dialect's placeholder."""
        parts: list[str] = [f"seq > {mark}"]
        values: list[object] = [self.after_seq]
        if self.kinds:
            parts.append(f"kind IN ({', '.join([mark] * len(self.kinds))})")
            values.extend(self.kinds)
        for column, sign, value in (
            ("at_s", ">=", self.since_s),
            ("at_s", "<", self.until_s),
            ("experiment", "=", self.experiment),
            ("decision_id", "=", self.decision_id),
        ):
            if value is not None:
                parts.append(f"{column} {sign} {mark}")
                values.append(value)
        return " AND ".join(parts), values


EVERYTHING = EventFilter()


class EventStore(Protocol):
    """Keeps events in the order they came. Every method raises `StoreError` where the database fails."""

    def append(self, events: Sequence[Event]) -> None:
        """Keep events, all or none; once this returns they outlive the process. An event known by its id is skipped."""

    def read(self, selection: EventFilter = EVERYTHING, limit: int | None = None) -> Iterator[Stored]:
        """The selected events, oldest first."""

    def texts(self) -> Iterator[KeptText]:
        """Every query whose text was kept, oldest first."""

    def last_seq(self) -> int:
        """The place of the newest event; 0 where there is none."""

    def prune(self, before_s: Mapping[str, float]) -> int:
        """Delete events of each kind (and `"text"`) that are older than a Unix time; how many went."""

    def close(self) -> None:
        """Give back what is held. Closing twice is no error."""


def written(event: Event, privacy: Privacy) -> Written:
    """The columns of an event, cleaned of what is private."""
    if isinstance(event, DecisionEvent) and event.context is not None and not privacy.keep_text:
        event = replace(event, context=None)  # long conversations are not put into words for nothing
    row = privacy.clean(as_dict(event))
    return Written(
        event_id=row["event_id"],
        kind=row["event"],
        at_s=float(row["at_s"]),
        decision_id=row.get("decision_id"),
        experiment=row.get("experiment"),
        text=_storable(row.pop("text", None)),
        context=_json(row.pop("context", None)),
        body=_json(row) or "",
    )


def _json(value: Any) -> str | None:
    """ASCII: no database stumbles over odd characters."""
    return None if value is None else json.dumps(value, separators=(",", ":"), default=str)


def _storable(text: str | None) -> str | None:
    return None if text is None else text.replace("\x00", "").encode("utf-8", "replace").decode()
