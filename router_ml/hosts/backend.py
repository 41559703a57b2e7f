"""One model on one host: whether it is there, how busy, how fast and how well it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router_ml.catalogue import Catalogue
from router_ml.hosts.average import Estimate, combined
from router_ml.hosts.breaker import Breaker
from router_ml.hosts.failure import Failure
from router_ml.hosts.gate import Gate
from router_ml.hosts.host import Installed
from router_ml.hosts.host_state import HostState
from router_ml.hosts.pace import GB_PER_BILLION, PACE_HALF_LIFE_S
from router_ml.hosts.rates import RATES_HALF_LIFE_S, LiveRates
from router_ml.types import ModelState

_EVERYTHING = frozenset({"tools", "thinking", "vision"})


@dataclass(slots=True)
class Backend:
    """One model on one host."""

    model: str
    host: HostState
    breaker: Breaker
    gate: Gate
    rates: LiveRates
    parameters_b: float | None = None  # by the catalogue
    active_share: float = 1.0  # of its weights that takes part in one token
    lacks: frozenset[str] = frozenset()  # capabilities it lacks, learned from refusals
    cold_timeouts: int = 0  # consecutive loads that did not finish in time
    prompts_cut: int = 0  # answers to truncated prompts

    @property
    def wire_name(self) -> str:
        """Return the name this host knows the model by."""
        entry = self._entry
        return entry.own_name if entry else self.model

    @property
    def installed(self) -> bool | None:
        """Whether the host has the model; None if unknown."""
        tags = self.host.tags.value
        return None if tags is None else self.model in tags

    @property
    def resident(self) -> bool | None:
        """Whether the model is in memory; None if unknown."""
        return self.host.resident(self.model)

    @property
    def load_s(self) -> float | None:
        """Return the expected seconds of a load: as seen here, and by the model's size at this host's pace."""
        size_gb = self._size_gb
        predicted = None if size_gb is None else self.host.pace.load_s(self.model, size_gb)
        expected = combined((self.rates.load(), predicted))
        return expected and expected.value

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Return the expected rate of generation: the model's own, and its host's pace at the size that it reads for a
        token. Its own fades while it does not answer. None before the first answer of any model of the host."""
        return self._expected(self.rates.decode, self.host.pace.decode_tokens_per_s)

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """Return the same for the rate at which prompts are read."""
        return self._expected(self.rates.prompt, self.host.pace.prompt_tokens_per_s)

    def _expected(
        self,
        own: Callable[[float], Estimate | None],
        of_host: Callable[[str, float], Estimate | None],
    ) -> float | None:
        read_gb = self._read_gb
        predicted = None if read_gb is None else of_host(self.model, read_gb)
        seen = own(RATES_HALF_LIFE_S)
        if predicted is not None:
            # A model that was slow is to be asked again soon; one that was quicker than its host has to lose nothing.
            lasting = own(PACE_HALF_LIFE_S)
            if lasting is not None and lasting.log > predicted.log:
                seen = lasting
        expected = combined((seen, predicted))
        return expected and expected.value

    def capabilities(self, catalogue: Catalogue) -> frozenset[str] | None:
        """Return the capabilities that the host reports, less those it refused; None if it reports none."""
        entry = self._entry
        stated = entry.capabilities if entry else None
        if not self.lacks:
            return stated
        model = catalogue.find(self.model)
        known = stated if stated is not None else model.capabilities if model else None
        return (known if known is not None else _EVERYTHING) - self.lacks

    def answered(self, cold: bool) -> None:
        """Note an answer that `rates` has learned from: it also tells the pace of the host, and how long models stay.

        `cold`: the model had to be loaded for it."""
        self.host.stays.served(self.model, cold)
        self.measured()

    def measured(self) -> None:
        """Let its host's pace learn from what `rates` has learned."""
        if (size_gb := self._size_gb) is not None:
            self.host.pace.answered(self.model, self.rates, size_gb, size_gb * self.active_share)

    def queue_s(self, fallback_service_s: float = 1.0) -> float:
        """Return the expected wait for a slot, in seconds."""
        return self.gate.wait_s(self.rates.service_s or fallback_service_s)

    def unavailable(self) -> Failure | None:
        """Return why it must not be called, or None. A host that is down is not a reason: it may be back."""
        if self.installed is False:
            return Failure("absent", f"not installed on {self.host.url}")
        if not self.breaker.admits():
            return self.open_circuit()
        return None

    def open_circuit(self) -> Failure:
        """Return the error message for callers while the circuit breaker is open."""
        wait_s = self.breaker.retry_after_s
        message = f"circuit breaker open after repeated failures; retry in {wait_s:.1f} s"
        return Failure("open", message, retry_after_s=wait_s)

    def state(self) -> ModelState:
        """Return its state in the form that a selector reads."""
        recent, calls = self.rates.recent()
        return ModelState(
            available=not (reason := self._reason()),
            resident=self.resident,
            queue_s=self.queue_s(),
            load_s=self.load_s,
            prompt_tokens_per_s=self.prompt_tokens_per_s,
            decode_tokens_per_s=self.decode_tokens_per_s,
            recent_success=recent,
            recent_calls=calls,
            reason=reason,
            answer_s=self.rates.measured_service_s,
            requests_per_load=self.host.requests_per_load(self.model),
        )

    def _reason(self) -> str:
        if self.installed is False:
            return f"not installed on {self.host.url}"
        if self.host.down:
            return f"{self.host.url} takes no connections"
        return "" if self.breaker.admits() else f"circuit breaker open after repeated failures on {self.host.url}"

    @property
    def _entry(self) -> Installed | None:
        return (self.host.tags.value or {}).get(self.model)

    @property
    def _size_gb(self) -> float | None:
        """Return the size of the model's weights: as the host lists it, else by its parameters."""
        entry = self._entry
        if entry is not None and entry.size_gb:
            return entry.size_gb
        return self.parameters_b * GB_PER_BILLION if self.parameters_b else None

    @property
    def _read_gb(self) -> float | None:
        size_gb = self._size_gb
        return None if size_gb is None else size_gb * self.active_share
