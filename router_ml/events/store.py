"""The `EventStore` protocol, what it stores, and which events a reader selects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from router_ml.errors import StoreError
from router_ml.events.event import DecisionEvent, Event, as_dict, json_line
from router_ml.events.features import KeptFeatures, pack
from router_ml.events.privacy import Privacy, without_url_secrets

DATABASE = "events.db"


class RefusedRecord(StoreError):
    """The database works, but refuses a record of this batch for good; the others can be written without it."""


class Stored(NamedTuple):
    """An event with its sequence number; these grow in the order in which events became visible."""

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
    features: tuple[str, str] | None = None  # the encoder's key, and `pack`'s text


class StoredText(NamedTuple):
    """The redacted text of a query, with what came with it."""

    decision_id: str
    text: str
    context: Mapping[str, Any] | None  # as `parse_context` takes it


class StoredFeatures(NamedTuple):
    """The features of a query; `encoder` says which others they may be used with."""

    decision_id: str
    encoder: str
    packed: str  # see `features.unpack`


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
        """Return the condition in SQL with its parameters; `mark` is the dialect's placeholder."""
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


@runtime_checkable
class EventStore(Protocol):
    """Stores events in the order they came. Every method raises `StoreError` where the database fails."""

    def append(self, events: Sequence[Event]) -> None:
        """Store events, all or none; once this returns they outlive the process. An event known by its id is skipped.

        Raises `RefusedRecord` if the fault lies in one of the events."""

    def read(self, selection: EventFilter = EVERYTHING, limit: int | None = None) -> Iterator[Stored]:
        """Yield the selected events, oldest first; rows that are not events are skipped and counted in the log."""

    def texts(self) -> Iterator[StoredText]:
        """Yield every query whose text was stored, oldest first."""

    def features(self) -> Iterator[StoredFeatures]:
        """Yield the features of every query where they were stored, oldest first."""

    def last_seq(self) -> int:
        """Return the sequence number of the newest event; 0 if there is none."""

    def expired(self, before_s: Mapping[str, float]) -> tuple[int, int]:
        """Return how many events (texts, features) `prune` would delete, and how many there are of those kinds."""

    def prune(self, before_s: Mapping[str, float], *, share: float = 1.0) -> int:
        """Delete events of each kind (and `"text"`, `"features"`) that are older than a Unix time; return how many.

        `share` bounds what goes of each kind at once, the oldest first."""

    def close(self) -> None:
        """Close the connection. Closing twice is allowed."""


def written(event: Event, privacy: Privacy) -> Written:
    """Return the columns of an event without private content.

    Raises `TypeError` if an id is not text, which some databases would convert."""
    if isinstance(event, DecisionEvent) and event.context is not None and not privacy.keep_text:
        event = replace(event, context=None)  # saves converting a long conversation for nothing
    kept = getattr(event, "features", None) if privacy.keep_features else None
    row = privacy.clean(as_dict(event))
    context = row.pop("context", None)
    for name in ("event_id", "decision_id", "experiment"):
        if not isinstance(row.get(name, ""), str):
            raise TypeError(f"the {name} of an event must be text, got {type(row[name]).__name__}")
    return Written(
        event_id=row["event_id"],
        kind=row["event"],
        at_s=float(row["at_s"]),
        decision_id=row.get("decision_id"),
        experiment=row.get("experiment"),
        text=_storable(row.pop("text", None)),
        context=None if context is None else json_line(context),
        body=without_url_secrets(json_line(row)),  # of a host, in a reason or an error
        features=(kept.encoder, pack(kept)) if isinstance(kept, KeptFeatures) else None,
    )


def _storable(text: str | None) -> str | None:
    return None if text is None else text.replace("\x00", "").encode("utf-8", "replace").decode()
