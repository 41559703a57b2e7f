"""A page with made-up traffic, for tests and for looking at: python -m tests.http.dashboard.sample"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from starlette.applications import Starlette

from router_ml.bundles.registry import shipped_bundle
from router_ml.decide.router import Router
from router_ml.events.event import AlertEvent, DecisionEvent, OutcomeEvent
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import RolloutState
from router_ml.experiments.trial import Trial
from router_ml.experiments.unit import UnitRequest
from router_ml.http.dashboard.recent import RecentRequests
from router_ml.http.dashboard.routes import dashboard_routes
from router_ml.http.dashboard.view import PageSources
from router_ml.monitor.metrics import LiveMetrics
from router_ml.types import Decision

MODELS = (
    ("llama3.2:3b-instruct", "simple", 2.1),
    ("qwen2.5:3b-instruct", "moderate", 2.8),
    ("qwen3:8b", "complex", 12.5),
)
HOSTS = [
    {
        "model": model,
        "host": "http://127.0.0.1:11434",
        "breaker": "closed" if resident is not None else "open",
        "running": running,
        "waiting": 0,
        "available": resident is not None,
        "reason": "" if resident is not None else "circuit breaker open after repeated failures; retry in 3.2 s",
        "resident": resident,
        "decode_tokens_per_s": rate,
    }
    for model, resident, running, rate in (
        ("llama3.2:3b-instruct", True, 1, 62.0),
        ("qwen2.5:3b-instruct", False, 0, None),
        ("qwen3:8b", None, 0, None),
    )
]
ALERT = AlertEvent(
    "failures",
    "firing",
    "qwen3:8b",
    0.31,
    0.1,
    "qwen3:8b fails in 31 % of its calls; 4 % were expected",
    "Look at the host's log; the router uses the other models meanwhile.",
)


def traffic(n: int = 160, seed: int = 3) -> tuple[RecentRequests, LiveMetrics]:
    """Return recorders that have seen `n` requests of the last half hour."""
    draw = random.Random(seed)
    recent, metrics = RecentRequests(), LiveMetrics()
    now_s = time.time()
    for index in range(n):
        model, label, latency_s = MODELS[draw.choices((0, 1, 2), (6, 4, 1))[0]]
        at_s = now_s - (n - index) * 11.0
        ok = draw.random() > 0.04
        decision = DecisionEvent(
            decision_id=f"d{index}",
            model=model,
            complexity=label,
            policy="balanced",
            bundle="default",
            propensity=1.0,
            at_s=at_s,
        )
        outcome = OutcomeEvent(
            decision_id=f"d{index}",
            model=model,
            success=(1.0 if draw.random() < 0.9 else 0.0) if index % 4 == 0 else None,
            latency_s=latency_s * draw.lognormvariate(0.0, 0.3),
            ok=ok,
            error=None if ok else "timeout",
            complexity=label,
            predicted_latency_s=latency_s,
            accurate_latency_s=12.5,
            cache_hit=draw.random() < 0.1,
            fallback=draw.random() < 0.03,
            at_s=at_s,
        )
        for recorder in (recent, metrics):
            recorder.record(decision)
            recorder.record(outcome)
    return recent, metrics


def experiment_state(n: int = 1200, seed: int = 5) -> RolloutState:
    """Return the state of an experiment in which the challenger is quicker."""
    draw = random.Random(seed)
    experiment = Experiment("faster", Variant("control"), Variant("challenger", policy="fast"), time.time() - 7200.0)
    trial = Trial(experiment)
    trial.add_all(
        UnitRequest(
            f"d{i}",
            f"u{i}",
            "challenger" if i % 2 else "control",
            experiment.started_s + i,
            float(draw.random() < 0.03),
            draw.lognormvariate(0.6 if i % 2 else 0.9, 0.4),
            0.02,
            0.0,
        )
        for i in range(n)
    )
    return RolloutState(experiment, None, trial.analyse(time.time()), 0.25, 24, None)


def sample_page(n: int = 160, alerts: Sequence[AlertEvent] = (ALERT,), *, experiment: bool = True) -> Starlette:
    """Return an application that serves the page over made-up traffic and the shipped bundle."""
    recent, metrics = traffic(n)
    router = Router.load(shipped_bundle())
    idle = RolloutState(None, None, None, 0.0, 0, None)
    running = experiment_state() if experiment else idle
    sources = PageSources(
        hosts=lambda: HOSTS,
        snapshot=metrics.snapshot,
        firing=lambda: alerts,
        rollout=lambda: running,
        recent=recent,
        reason=lambda decision_id: "p_success .96 at 1.7 s",
        bundle=lambda: router.name,
        policy=lambda: "balanced",
    )

    async def decide(query: str, policy: str) -> Decision:
        return await asyncio.get_running_loop().run_in_executor(None, router.decide, query, None, policy)

    page = Starlette(routes=dashboard_routes(sources, decide))
    page.state.recorders = (recent, metrics)
    return page


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(sample_page(), port=11499, log_level="warning")
