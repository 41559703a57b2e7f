"""The benefit of knowing which models are in memory: a replay with and without that knowledge.

    python -m benchmarks.residency_replay --requests 300

Three models of which two fit; a swap takes 3 to 10 s, an answer 2 to 3 s, all divided by `--speed`. The same real
gateway, selector and policy serve the same queries twice: once with the whole state of the machine, once with
residency and load times hidden. Predicted success differs between the models by a few points and is noisy; success is
the true probability of the model that answered, averaged.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.selector import Forecast, Selector
from router_ml.hosts.options import GatewayOptions
from router_ml.serve import Gateway
from router_ml.types import Context, Decision, MachineState
from tests.ollama_double import DoubleModel, OllamaDouble, Reply
from tests.serve.deciders import catalogue_of

MODELS = ("alpha:3b", "beta:3b", "gamma:3b")
LOAD_S = {"alpha:3b": 3.0, "beta:3b": 6.0, "gamma:3b": 10.0}
ANSWER_S = {"alpha:3b": 2.0, "beta:3b": 2.5, "gamma:3b": 3.0}
TOKENS = 20


@dataclass(frozen=True)
class Task:
    """One query: what each model would really do, and what is predicted."""

    true_success: Mapping[str, float]
    predicted: Mapping[str, float]


def tasks(count: int, seed: int) -> list[Task]:
    """Make queries on which the three models differ by one or two points, with a prediction error of the same size."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        level = rng.uniform(0.6, 0.95)
        true = {model: min(0.999, max(0.0, level + rng.gauss(0.0, 0.015))) for model in MODELS}
        made.append(Task(true, {model: min(1.0, p + rng.gauss(0.0, 0.03)) for model, p in true.items()}))
    return made


class ReplayDecider:
    """The real selector on given predictions; `blind` hides what is in memory."""

    def __init__(self, made: list[Task], speed: float, blind: bool) -> None:
        self._tasks = made
        self._speed = speed
        self._blind = blind
        self._selector = Selector(catalogue_of(*MODELS).models)
        # A second is worth `speed` times as much where everything is that much quicker.
        self._policy = Policy("replay", latency_weight_per_s=0.02 * speed, latency_budget_s=None)

    def decide(
        self,
        query: str,
        context: Any = None,
        policy: Any = None,
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        """Return the decision on a task, whose index is the query."""
        task = self._tasks[int(query)]
        if self._blind and machine is not None:
            hidden = {name: replace(state, resident=None, load_s=None) for name, state in machine.models.items()}
            machine = MachineState(hidden)
        # The answer times of the three models are a matter of the catalogue here, so only success distinguishes them.
        p50 = 2.5 / self._speed
        forecast = Forecast(
            [task.predicted[m] for m in MODELS], [(p50, 1.3 * p50, 1.5 * p50)] * 3, [float("nan")] * 3, [0.0] * 3
        )
        choice = self._selector.select(forecast, context or Context(), self._policy, machine=machine)
        return Decision(
            model=choice.ranked[0].model,
            complexity="moderate",
            complexity_probabilities={"simple": 0.0, "moderate": 1.0, "complex": 0.0, "ambiguous": 0.0},
            ranked=choice.ranked,
            action="answer",
            reason=choice.reason,
            decision_id=query,
            policy="replay",
            bundle="replay",
        )


@dataclass(frozen=True)
class ReplayResult:
    """One replay, times as if at full length."""

    mean_s: float
    p95_s: float
    server_mean_s: float  # as the server counts it: what a busy test machine adds, times the speed, is not in it
    success: float
    loads: int
    reasons: tuple[str, ...]


def replay(made: list[Task], speed: float, blind: bool) -> ReplayResult:
    """Serve every task in turn."""
    models = [
        DoubleModel(
            name,
            reply=lambda body: Reply("done", output_tokens=TOKENS),
            size_gb=1.0,
            load_s=LOAD_S[name] / speed,
            decode_tokens_per_s=TOKENS * speed / ANSWER_S[name],
        )
        for name in MODELS
    ]
    options = GatewayOptions(last_resort=None, residency_ttl_s=3.0 / speed, attempt_min_s=60.0, residency_wait_s=0.25)
    with (
        OllamaDouble(models, capacity_gb=2.0) as double,
        Gateway(
            ReplayDecider(made, speed, blind), catalogue_of(*MODELS), default_host=double.url, options=options
        ) as gateway,
    ):
        for model in MODELS:  # both know what a load takes, and begin with the same two models in memory
            gateway.preload(model)
        for model in MODELS:
            gateway.chat("0", model=model)
        warm_up = len(double.scheduler.loads)
        answers = [gateway.chat(str(number)) for number in range(len(made))]
        loads = len(double.scheduler.loads) - warm_up
    times = sorted(answer.timings.total_s * speed for answer in answers)
    success = [task.true_success[answer.model] for task, answer in zip(made, answers, strict=True)]
    return ReplayResult(
        mean_s=sum(times) / len(times),
        p95_s=times[int(0.95 * len(times))],
        server_mean_s=sum(speed * ((a.timings.load_s or 0.0) + (a.timings.eval_s or 0.0)) for a in answers)
        / len(answers),
        success=sum(success) / len(success),
        loads=loads,
        reasons=tuple(answer.decision.reason for answer in answers),
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.residency_replay", description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--speed", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = tasks(arguments.requests, arguments.seed)
    rows = {
        name: replay(made, arguments.speed, blind)
        for name, blind in (("without residency", True), ("with residency", False))
    }
    print(f"{'':20} {'mean s':>7} {'p95 s':>7} {'success':>8} {'loads':>6}")
    for name, row in rows.items():
        print(f"{name:20} {row.mean_s:7.2f} {row.p95_s:7.2f} {row.success:8.4f} {row.loads:6}")
    blind, aware = rows.values()
    print(f"{blind.mean_s / aware.mean_s:.2f} times better mean latency, success {aware.success - blind.success:+.4f}")


if __name__ == "__main__":
    main()
