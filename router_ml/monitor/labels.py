"""Model names as metric labels and alert subjects: bounded for any names that clients send."""

from __future__ import annotations

OTHER = "other"
_SERVED = 200  # names of models that were chosen or have answered
_UNSERVED = 20  # names that were requested and never served
_CHARS = 200


class Labels:
    """Maps names to themselves up to a limit, and to "other" beyond it."""

    def __init__(self, *, served: int = _SERVED, unserved: int = _UNSERVED) -> None:
        self._limits = {True: served, False: unserved}
        self._known: dict[str, str] = {}
        self._counts = {True: 0, False: 0}

    def of(self, name: str, *, served: bool = False) -> str:
        """Return the label of a name; `served` says that it is of a real model, not only of a request."""
        label = self._known.get(name)
        if label is not None:
            return label
        if self._counts[served] >= self._limits[served]:
            return OTHER
        self._counts[served] += 1
        # A label must be UTF-8: half of a surrogate pair in one name would make every scrape fail.
        self._known[name] = label = name[:_CHARS].encode("utf-8", "replace").decode()
        return label
