"""Whether the model that answers first keeps all later queries: a gateway on a simulated host whose speed nobody knows.

    python -m benchmarks.lock_in

Three models of the packaged catalogue, all cold; simple and complex queries in turn. Each run has its own speed (GB/s
of weights read while generating), load time (seconds a GB) and first query. It has settled when every later request is
served by the model that the policy would choose with all rates known and all models in memory. The clock is simulated.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router_ml.catalogue import Catalogue, Model, load_catalogue
from router_ml.decide.features.extractor import TABLE_NAMES, Features
from router_ml.decide.predictors.heads import Floats
from router_ml.decide.predictors.outcomes import OutcomePredictor
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy
from router_ml.hosts.host import HostRequest, Installed, Running
from router_ml.hosts.names import ModelNames
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.reply import Reply
from router_ml.serve import Gateway
from router_ml.types import LABELS, Decision, Label, MachineState, ModelState

SIZES_GB = {"llama3.2:3b-instruct": 2.0, "qwen2.5:3b-instruct": 1.9, "qwen3:8b": 5.2}
SPEEDS_GB_PER_S = (40.0, 300.0, 2000.0)  # a CPU, a notebook with a GPU, a server
LOADS_S_PER_GB = (0.3, 2.0, 8.0)  # from memory, a solid state disk, a hard disk
PROMPT_PER_DECODE = 25.0
PROMPT_TOKENS = 100
PAUSE_S = 3.0  # between an answer and the next query
KEEP_ALIVE_S = 300.0
REQUESTS = 20


class SimulatedClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the seconds now."""
        return self.now_s


class SimulatedHost:
    """A host that takes simulated time to load models and to answer. Slow spells: `slowed[model]` divides its speed."""

    def __init__(
        self, clock: SimulatedClock, catalogue: Catalogue, gb_per_s: float, load_s_per_gb: float, tokens: bool = True
    ) -> None:
        self.url = "http://simulated"
        self.slowed: dict[str, float] = {}
        self._clock = clock
        self._catalogue = catalogue
        self._gb_per_s = gb_per_s
        self._load_s_per_gb = load_s_per_gb
        self._tokens = tokens  # whether it counts them
        self._used_at: dict[str, float] = {}

    def decode_tokens_per_s(self, model: str) -> float:
        """Return the rate at which a model generates now."""
        return self._gb_per_s / SIZES_GB[model] / self.slowed.get(model, 1.0)

    async def chat(self, request: HostRequest) -> Reply:
        """Answer with as many tokens as the catalogue expects of the model for the label that the query names."""
        load_s = 0.0 if request.model in self._loaded() else self._load_s_per_gb * SIZES_GB[request.model]
        prior = self._catalogue[request.model].prior
        label: Label = request.arguments["messages"][-1]["content"].split()[0]
        count = int(prior.output_tokens[label] if prior.output_tokens else 1)
        rate = self.decode_tokens_per_s(request.model)
        prompt_s, eval_s = PROMPT_TOKENS / (PROMPT_PER_DECODE * rate), count / rate
        self._clock.now_s += load_s + prompt_s + eval_s
        self._used_at[request.model] = self._clock.now_s
        wire: dict[str, Any] = {"model": request.model, "done": True, "message": {"role": "assistant", "content": "ok"}}
        if self._tokens:
            wire |= {"prompt_eval_count": PROMPT_TOKENS, "eval_count": count}
            seconds = {"load": load_s, "prompt_eval": prompt_s, "eval": eval_s, "total": load_s + prompt_s + eval_s}
            wire |= {f"{name}_duration": int(1e9 * value) for name, value in seconds.items()}
        return Reply.from_wire(wire)

    async def stream(self, request: HostRequest) -> AsyncIterator[Reply]:
        """Yield the whole answer."""
        yield await self.chat(request)

    async def load(self, model: str, options: Mapping[str, Any], keep_alive: float | str | None) -> None:
        """Put a model in memory in no time, as if it had been loaded while nobody waited."""
        self._used_at[model] = self._clock.now_s

    async def installed(self) -> Mapping[str, Installed]:
        """Return the models with their sizes."""
        return {name: Installed(name, None, size_gb) for name, size_gb in SIZES_GB.items()}

    async def running(self) -> Mapping[str, Running]:
        """Return the models in memory."""
        return dict.fromkeys(self._loaded(), Running())

    async def close(self) -> None:
        """Do nothing."""

    def _loaded(self) -> list[str]:
        return [name for name, at in self._used_at.items() if self._clock.now_s - at < KEEP_ALIVE_S]


class _Says:
    def __init__(self, label: Label) -> None:
        self._label = LABELS.index(label)

    def __call__(self, embedding: Floats | None, table: Floats) -> Floats:
        out = np.full((len(table), len(LABELS)), 0.1 / 3, np.float32)
        out[:, self._label] = 0.9
        return out


class _NoText:
    def extract(self, texts: Sequence[str], contexts: Sequence[Any]) -> Features:
        return Features(np.zeros((len(texts), 1), np.float32), np.zeros((len(texts), len(TABLE_NAMES)), np.float32))


class LabelledDecider:
    """Routers on the catalogue's priors; a query's first word is its label."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._routers = {
            label: Router(
                features=_NoText(),
                complexity=_Says(label),
                outcomes=OutcomePredictor.from_arrays({}, {}, catalogue),
                catalogue=catalogue,
                name="priors",
            )
            for label in LABELS
        }

    def decide(self, query: str, *arguments: Any, **more: Any) -> Decision:
        """Return the decision of the label's router."""
        label: Any = query.split()[0]
        return self._routers[label].decide(query, *arguments, **more)


@dataclass(frozen=True)
class Run:
    """One run: who served each request, and who should have."""

    served: tuple[str, ...]
    wanted: tuple[str, ...]

    @property
    def settled_after(self) -> int:
        """Return after how many requests every further one went where it should."""
        return max((i + 1 for i, (a, b) in enumerate(zip(self.served, self.wanted, strict=True)) if a != b), default=0)


def run(gb_per_s: float, load_s_per_gb: float, first: Label, policy: str = "balanced", requests: int = REQUESTS) -> Run:
    """Serve simple and complex queries in turn on a host that was never used."""
    catalogue, clock = load_catalogue(), SimulatedClock()
    host = SimulatedHost(clock, catalogue, gb_per_s, load_s_per_gb)
    known = MachineState({name: _known(host, catalogue[name]) for name in SIZES_GB})
    decider = LabelledDecider(catalogue)
    labels: tuple[Label, Label] = ("simple", "complex") if first == "simple" else ("complex", "simple")
    queries = [f"{label} {i}" for i, label in zip(range(requests), itertools.cycle(labels), strict=False)]
    served = []
    with simulated_gateway(decider, catalogue, host, clock, policy) as gateway:
        for query in queries:
            served.append(gateway.chat(query).model)
            clock.now_s += PAUSE_S
    wanted = [
        decider.decide(query, {"prompt_tokens": PROMPT_TOKENS}, policy=policy, machine=known).model for query in queries
    ]
    return Run(tuple(served), tuple(wanted))


def simulated_gateway(
    decider: Any,
    catalogue: Catalogue,
    host: SimulatedHost,
    clock: SimulatedClock,
    policy: Policy | str = "balanced",
    preload: bool = False,
) -> Gateway:
    """Return a real gateway in front of a simulated host."""

    def opened(url: str, names: ModelNames, connect_s: float) -> SimulatedHost:
        return host

    options = GatewayOptions(deadline_s=1e4, residency_ttl_s=0.1, residency_wait_s=0.5, preload=preload)
    return Gateway(
        decider,
        catalogue,
        default_host="simulated+http://simulated",
        host_types={"simulated": opened},
        options=options,
        policy=policy,
        clock=clock,
    )


def _known(host: SimulatedHost, model: Model) -> ModelState:
    rate = host.decode_tokens_per_s(model.name)
    return ModelState(resident=True, decode_tokens_per_s=rate, prompt_tokens_per_s=PROMPT_PER_DECODE * rate)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lock_in", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="balanced", help="a preset or the path of a policy file")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    arguments = parser.parse_args()
    print(f"{'GB/s':>5} {'s/GB':>5}  {'first':8} {'settled after':>13}  served at last (simple, complex)")
    settled = 0
    for gb_per_s, load_s, first in itertools.product(SPEEDS_GB_PER_S, LOADS_S_PER_GB, ("simple", "complex")):
        done = run(gb_per_s, load_s, first, arguments.policy, arguments.requests)  # type: ignore[arg-type]
        last = done.served[-2:] if first == "simple" else done.served[-2:][::-1]
        settled += done.settled_after < arguments.requests - 1
        print(f"{gb_per_s:5.0f} {load_s:5.1f}  {first:8} {done.settled_after:13}  {', '.join(last)}")
    print(f"{settled} of 18 runs serve what {arguments.policy} serves on known rates within {arguments.requests}")


if __name__ == "__main__":
    main()
