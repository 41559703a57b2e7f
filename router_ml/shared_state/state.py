"""The `SharedState` protocol: what replicas share and may lose. Every method answers at once or within 5 ms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

Circuit: TypeAlias = Literal["closed", "open", "probe", "probing"]  # probe: this call is the one; probing: another's is
Figures: TypeAlias = tuple[Any, ...]  # the arguments of `LiveRates.succeeded`

PREFIX = "router_ml:"


class Entry(NamedTuple):
    """The answer to a request for a place."""

    granted: bool
    place: str = ""  # its name, for `leave`
    held: int | None = None  # places that all replicas hold, this one included; None: no answer in time
    circuit: Circuit = "closed"
    retry_after_s: float = 0.0  # of an open circuit
    wait_s: float = 0.0  # for how long it was opened


class SharedState(Protocol):
    """What may be lost. No method raises; what is not known, or not in time, is None."""

    @property
    def alone(self) -> bool:
        """Whether there is nothing to share with: one process serves."""

    @property
    def problem(self) -> str:
        """Why this replica goes on with its own state; "" if it shares."""

    @property
    def replicas(self) -> int:
        """How many replicas there are, by the latest count; 0 if unknown."""

    async def enter(self, backend: str, limit: int, at_once: bool = False) -> Entry:
        """Ask for one of `limit` places at a backend, and for its one probe where its circuit is half-open.

        Without an answer in time a replica begins calls on the places that it holds. `at_once`: probe before the wait
        is over."""

    def leave(self, backend: str, place: str, limit: int, waiting: bool = False) -> bool:
        """End a call; return whether its place is kept for the next one. `waiting`: there is one already."""

    def opened(self, backend: str, wait_s: float) -> None:
        """Open a backend's circuit for all replicas."""

    def closed(self, backend: str) -> None:
        """Close it for all."""

    def released(self, backend: str) -> None:
        """Give the probe back without a result."""

    async def model_of(self, session: str) -> str | None:
        """Return the model that a session spoke with last."""

    def remember(self, session: str, model: str) -> None:
        """Note it."""

    async def wait_s(self, user: str, per_minute: int) -> float:
        """Take one request from a user's bucket; 0 if it may be served, else the seconds until the next one may."""

    def tell(self, backend: str, figures: Figures) -> None:
        """Tell the other replicas what an answer measured."""

    def listen(self, heard: Callable[[str, Figures], None]) -> None:
        """Call a bound method with what others tell, from a thread, as long as its object lives."""

    def start(self) -> None:
        """Begin to share."""

    def close(self) -> None:
        """Stop sharing and give every place back."""
