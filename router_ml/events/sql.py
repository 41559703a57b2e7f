"""Reading an event store through SQL: the same for every dialect but for its placeholder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from router_ml.events.event import Event, from_json
from router_ml.events.privacy import Privacy
from router_ml.events.store import EVERYTHING, EventFilter, KeptText, Stored, Written, written

PAGE = 1000


class SqlReading(ABC):
    """The half of a store that reads, on top of `_query`."""

    _mark: ClassVar[str]  # the dialect's placeholder
    _privacy: Privacy

    @abstractmethod
    def _query(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """All rows of a query. Raises `StoreError`."""

    def read(self, selection: EventFilter = EVERYTHING, limit: int | None = None) -> Iterator[Stored]:
        """The selected events, oldest first; in pages, so that no writer waits for a slow reader."""
        condition, values = selection.where(self._mark)
        place, left = selection.after_seq, limit
        while left is None or left > 0:
            page = PAGE if left is None else min(PAGE, left)
            order = f"SELECT seq, body FROM event WHERE {condition} ORDER BY seq LIMIT {page:d}"
            rows = self._query(order, [place, *values[1:]])
            for seq, body in rows:
                yield Stored(seq, from_json(body))
            if len(rows) < page:
                return
            place = rows[-1][0]
            left = None if left is None else left - len(rows)

    def texts(self) -> Iterator[KeptText]:
        """Every query whose text was kept, oldest first."""
        for decision_id, text, context in self._query(
            "SELECT decision_id, text, context FROM query_text ORDER BY at_s", ()
        ):
            yield KeptText(str(decision_id), str(text), None if context is None else json.loads(context))

    def last_seq(self) -> int:
        """The place of the newest event; 0 where there is none."""
        return int(self._query("SELECT coalesce(max(seq), 0) FROM event", ())[0][0])

    def _rows(self, events: Sequence[Event]) -> tuple[list[Written], list[tuple[object, ...]]]:
        """What is to be written: rows of the table of events, and of the table of texts."""
        rows = [written(event, self._privacy) for event in events]
        return rows, [(row.decision_id, row.at_s, row.text, row.context) for row in rows if row.text is not None]
