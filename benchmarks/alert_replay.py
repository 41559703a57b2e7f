"""Replay traffic through the alert rules: how often they fire falsely, and how soon they detect a fault.

    python -m benchmarks.alert_replay [--requests 300000] [--trials 100]

The traffic is hard on purpose: three models, prompts whose kind, length and difficulty shift every few hundred
requests, heavy tails, and a predicted success that is only roughly calibrated. Detection is counted in requests from
the beginning of the fault to the alert.

"30 % failures" is measured in three readings: 30 % of all answers are wrong, whatever was asked, where 5 to 17 %
usually are; 30 % of the answers that would have been right are wrong; 30 % of the calls bring no answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router_ml.events.event import OutcomeEvent
from router_ml.monitor.alerts import Alerts
from training.command import command_parser

MODELS = (("small", 0.012, 0.14), ("medium", 0.018, 0.11), ("large", 0.060, 0.08))  # s per token, failure rate


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong from some request on."""

    latency_times: float = 1.0
    failure_rate: float | None = None  # share of wrong answers in all, instead of the usual one
    failures_on_top: float = 0.0  # share of the answers that would have been right
    error_rate: float = 0.0  # share of the calls without an answer


def traffic(seed: int, fault: Fault | None = None, fault_at: int = 10**12) -> Iterator[OutcomeEvent]:
    """Yield endless outcomes with a shifting mix, and a fault from request `fault_at` on."""
    draw = random.Random(seed)
    length, hard, weights = 4.5, 0.0, [1.0, 1.0, 1.0]
    number = 0
    while True:
        if number % draw.choice((300, 500, 800)) == 0:  # other people, other prompts
            length, hard = draw.uniform(3.0, 6.5), draw.uniform(-0.8, 0.3)
            weights = [draw.uniform(0.2, 1.0) for _ in MODELS]
        yield _outcome(draw, number, length, hard, weights, fault if fault and number >= fault_at else Fault())
        number += 1


def _outcome(
    draw: random.Random, number: int, length: float, hard: float, weights: list[float], fault: Fault
) -> OutcomeEvent:
    name, per_token_s, base = draw.choices(MODELS, weights)[0]
    tokens = max(1, int(draw.lognormvariate(length, 0.8)))
    prompt = max(5, int(draw.lognormvariate(5.0, 0.9)))
    odds = math.log(base / (1 - base)) + hard + draw.gauss(0, 0.4)
    chance = 1 / (1 + math.exp(-odds))
    predicted = 1 / (1 + math.exp(-(0.8 * odds - 0.3 + draw.gauss(0, 0.3))))
    tail = draw.lognormvariate(0, 0.25) * (draw.uniform(2, 6) if draw.random() < 0.01 else 1.0)
    worked_s = (0.15 + prompt * per_token_s / 15 + tokens * per_token_s) * tail * fault.latency_times
    load_s = draw.uniform(2, 9) if draw.random() < 0.05 else 0.0
    wrong = draw.random() < (fault.failure_rate if fault.failure_rate is not None else chance)
    # Drawn only for such a fault, so that healthy traffic does not depend on the list of faults.
    wrong = wrong or bool(fault.failures_on_top and draw.random() < fault.failures_on_top)
    if fault.error_rate and draw.random() < fault.error_rate:
        return OutcomeEvent(
            f"d{number}", name, 0.0, worked_s + load_s, ok=False, error="AttemptsFailed",
            p_success=1 - predicted, at_s=float(number), event_id=str(number),
        )  # fmt: skip
    return OutcomeEvent(
        f"d{number}", name, float(not wrong), worked_s + load_s, prompt_tokens=prompt, output_tokens=tokens,
        load_s=load_s, eval_s=worked_s, p_success=1 - predicted, budget_s=None, at_s=float(number),
        event_id=str(number),
    )  # fmt: skip


def false_alarms(requests: int, seed: int = 0) -> int:
    """Count the alerts in healthy traffic."""
    alerts = Alerts(channels=())
    count = 0
    for number, event in enumerate(traffic(seed)):
        if number >= requests:
            break
        alerts.record(event)
        if number % 1000 == 999:
            count += sum(change.state == "firing" for change in alerts.check())
    return count


def delay(fault: Fault, rule: str, seed: int, healthy: int = 3000, limit: int = 1000) -> float:
    """Return the requests from the beginning of a fault to its alert; infinity if there is none within `limit`."""
    alerts = Alerts(channels=())
    for number, event in enumerate(traffic(seed, fault, healthy)):
        alerts.record(event)
        changes = alerts.check()
        if number >= healthy and any(c.rule == rule and c.state == "firing" for c in changes):
            return number - healthy + 1
        if number >= healthy + limit:
            return math.inf
    return math.inf


FAULTS: dict[str, tuple[Fault, str]] = {
    "doubled latency": (Fault(latency_times=2.0), "latency_drift"),
    "30 % of answers wrong in all": (Fault(failure_rate=0.3), "failure_rate"),
    "30 % of right answers wrong": (Fault(failures_on_top=0.3), "failure_rate"),
    "30 % of calls without answer": (Fault(error_rate=0.3), "failure_rate"),
}  # and the rule that should fire


def main(arguments: Sequence[str] | None = None) -> int:
    """Print false alerts and delays as a Markdown table."""
    parser = command_parser("benchmarks.alert_replay", __doc__)
    parser.add_argument("--requests", type=int, default=300_000, help="of healthy traffic (%(default)s)")
    parser.add_argument("--trials", type=int, default=100, help="of each fault (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    options = parser.parse_args(arguments)
    alarms = false_alarms(options.requests, options.seed)
    rate = alarms / options.requests * 100_000
    print("| what | median | 95 % of trials |\n|---|---|---|")
    print(f"| false alerts per 100,000 requests | {rate:.2f} ({alarms} in {options.requests:,}) | |", flush=True)
    for name, (fault, rule) in FAULTS.items():
        delays = sorted(delay(fault, rule, options.seed + 1 + trial) for trial in range(options.trials))
        median, late = delays[len(delays) // 2], delays[int(len(delays) * 0.95)]
        print(f"| {name}: requests until the alert | {median:g} | within {late:g} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
