"""The numbered changes of the event store's tables. A change once released is never edited; add the next number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router_ml.errors import StoreError


@dataclass(frozen=True, slots=True)
class Migration:
    """One step. `{serial}` stands for the dialect's growing primary key and `{real}` for a 64-bit float."""

    number: int
    statements: tuple[str, ...]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        1,
        (
            "CREATE TABLE event (seq {serial}, event_id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, "
            "at_s {real} NOT NULL, decision_id TEXT, experiment TEXT, body TEXT NOT NULL)",
            "CREATE INDEX event_kind_at ON event (kind, at_s)",
            "CREATE INDEX event_decision ON event (decision_id)",
        ),
    ),
    Migration(2, ("CREATE INDEX event_experiment ON event (experiment, seq) WHERE experiment IS NOT NULL",)),
    Migration(
        3,
        (
            # Text lives apart, so that it can go sooner than the numbers it came with.
            "CREATE TABLE query_text (decision_id TEXT PRIMARY KEY, at_s {real} NOT NULL, text TEXT NOT NULL)",
            "CREATE INDEX query_text_at ON query_text (at_s)",
        ),
    ),
    Migration(4, ("ALTER TABLE query_text ADD COLUMN context TEXT",)),
    Migration(
        5,
        (
            "CREATE TABLE query_features (decision_id TEXT PRIMARY KEY, at_s {real} NOT NULL, encoder TEXT NOT NULL, "
            "packed TEXT NOT NULL)",
            "CREATE INDEX query_features_at ON query_features (at_s)",
        ),
    ),
)
LATEST = MIGRATIONS[-1].number


def check_version(version: int, where: str) -> int:
    """Return the version of a store. Raises `StoreError` if a newer or another program wrote it."""
    if not 0 <= version <= LATEST:
        raise StoreError(
            f"the event store {where} has version {version} and this program reads up to {LATEST}; upgrade router-ml"
        )
    return version


def migrate(version: int, execute: Callable[[str], object], *, serial: str, real: str, where: str) -> int:
    """Apply what is missing above `version` through `execute`, inside the caller's transaction; return the new version.

    Raises `StoreError` if the store was written by a newer version."""
    check_version(version, where)
    for migration in MIGRATIONS:
        if migration.number > version:
            for statement in migration.statements:
                execute(statement.format(serial=serial, real=real))
    return LATEST
