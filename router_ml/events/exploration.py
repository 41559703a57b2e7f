"""What exploration does and costs, from recorded decisions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router_ml.events.event import DecisionEvent, Event
from router_ml.types import Candidate


@dataclass(frozen=True, slots=True)
class ExplorationCost:
    """Decisions, how many of them went to another model than the preferred one, and what that was expected to lose."""

    decisions: int
    explored: int
    utility_lost: float  # summed over all explored decisions, in units of success
    added_s: float  # the same of the median latency

    @property
    def share(self) -> float:
        """Return the share explored."""
        return self.explored / max(self.decisions, 1)

    @property
    def utility_lost_per_1000(self) -> float:
        """Return the expected utility lost per 1,000 decisions."""
        return 1000 * self.utility_lost / max(self.decisions, 1)

    @property
    def added_s_per_1000(self) -> float:
        """Return the expected seconds added per 1,000 decisions."""
        return 1000 * self.added_s / max(self.decisions, 1)


def exploration_cost(events: Iterable[Event]) -> ExplorationCost:
    """Return what exploration did in these events; shadow decisions and models named by the caller do not count."""
    decisions, lost, added_s = 0, [], 0.0
    for event in events:
        if not isinstance(event, DecisionEvent) or event.shadow or event.pinned:
            continue
        decisions += 1
        if (best := preferred(event)) is not None and best is not event.candidates[0]:
            chosen = event.candidates[0]
            lost.append(best.utility - chosen.utility)
            seconds = best.latency_s.p50, chosen.latency_s.p50
            added_s += seconds[1] - seconds[0] if seconds[0] == seconds[0] and seconds[1] == seconds[1] else 0.0
    return ExplorationCost(decisions, len(lost), sum(lost), added_s)


def preferred(event: DecisionEvent) -> Candidate | None:
    """Return the candidate that stands first without exploration; None where there is none."""
    if len(event.candidates) < 2:
        return event.candidates[0] if event.candidates else None
    first, second = event.candidates[:2]
    explored = second.admissible and was_explored(event.propensity, first.utility, second.utility)
    return second if explored else first


def was_explored(propensity: float, first: float, second: float) -> bool:
    """Return whether the first candidate was explored, given its propensity and the utilities of the first two.

    An explored candidate is put before the order it was drawn from, below whose first it stands in utility; and none
    is drawn with a higher probability than that one, so never with more than one half."""
    return propensity <= 0.5 and first < second
