"""router-ml explain: which features led to a decision, and which alternatives there were."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection

from router_ml.arm import arm_key, arm_phrase
from router_ml.cli.choosing import add_choosing_options, chosen_context, chosen_policy, chosen_router
from router_ml.settings import load_settings
from router_ml.terminal import format_table, source_of, terminal_columns
from router_ml.types import Candidate, Explanation


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "explain",
        help="why a model was chosen, with the alternatives",
        description="Shows the label probabilities, the evidence for the label against the runner-up (in log-odds), "
        "and every candidate with its utility.",
    )
    verb.add_argument("query", help="the query, in quotes")
    add_choosing_options(verb)
    verb.set_defaults(func=_explain)


def _explain(options: argparse.Namespace) -> int:
    settings = load_settings()
    router = chosen_router(options, settings)
    explanation = router.explain(options.query, chosen_context(options), chosen_policy(options, settings))
    print(json.dumps(explanation.as_dict(), ensure_ascii=False) if options.json else _text(explanation, router.learned))
    return 0


def _text(explanation: Explanation, learned: Collection[str]) -> str:
    decision = explanation.decision
    shares = sorted(decision.complexity_probabilities.items(), key=lambda item: -item[1])
    lines = [
        f"model       {arm_phrase(decision.model, decision.think)}   "
        f"({decision.action}; policy {decision.policy}, bundle {decision.bundle})",
        f"reason      {decision.reason}",
        "complexity  " + ", ".join(f"{label} {share:.2f}" for label, share in shares),
        f"novelty     {decision.novelty:.2f} (0: like the training queries, 1: unlike any)",
        *([f"difficulty  {2**decision.difficulty:.1f} (billions of parameters of a typical model that is right in half "
           "of the cases)"] if decision.difficulty is not None else []),
        *([f"rule        {decision.rule}"] if decision.rule is not None else []),
        "",
        f"evidence for {explanation.label!r} against {explanation.runner_up!r} (log-odds)",
        *(f"  {weight:+6.2f}  {name}" for name, weight in explanation.contributions),
        "",
        format_table(
            [("candidate", "p_success", "p50/p90/p95 s", "cost $", "utility", "source", "notes"),
             *(_row(candidate, learned) for candidate in decision.ranked)],
            left=(0, 5, 6), columns=terminal_columns(),
        ),
        *(f"{model}  left out: {why}" for model, why in decision.excluded.items()),
    ]  # fmt: skip
    return "\n".join(lines)


def _row(candidate: Candidate, learned: Collection[str]) -> tuple[str, ...]:
    return (
        arm_key(candidate.model, candidate.think),
        f"{candidate.p_success:.2f}",
        "/".join(f"{value:.1f}" for value in candidate.latency_s),
        f"{candidate.cost_usd:.5f}",
        f"{candidate.utility:.3f}",
        source_of(candidate, learned),
        "; ".join(candidate.reasons),
    )
