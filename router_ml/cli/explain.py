"""router-ml explain: which features spoke for a decision, and which alternatives there were."""

from __future__ import annotations

import argparse
import json

from router_ml.cli.choosing import add_choosing_options, chosen_context, chosen_policy, chosen_router
from router_ml.settings import load_settings
from router_ml.types import Explanation


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "explain",
        help="why a query goes where it goes, and what else there was",
        description="Shows the label probabilities, what spoke for the label and against the runner-up (in log-odds), "
        "and every candidate with its utility.",
    )
    verb.add_argument("query", help="the query, in quotes")
    add_choosing_options(verb)
    verb.set_defaults(func=_explain)


def _explain(options: argparse.Namespace) -> int:
    settings = load_settings()
    router = chosen_router(options, settings)
    explanation = router.explain(options.query, chosen_context(options), chosen_policy(options, settings))
    print(json.dumps(explanation.as_dict(), ensure_ascii=False) if options.json else _text(explanation))
    return 0


def _text(explanation: Explanation) -> str:
    decision = explanation.decision
    shares = sorted(decision.complexity_probabilities.items(), key=lambda item: -item[1])
    lines = [
        f"model       {decision.model}   ({decision.action}; policy {decision.policy}, bundle {decision.bundle})",
        f"reason      {decision.reason}",
        "complexity  " + ", ".join(f"{label} {share:.2f}" for label, share in shares),
        f"novelty     {decision.novelty:.2f} (0: like the training queries, 1: unlike any)",
        "",
        f"what spoke for {explanation.label!r} rather than {explanation.runner_up!r} (log-odds)",
        *(f"  {weight:+6.2f}  {name}" for name, weight in explanation.contributions),
        "",
        "candidates                    p_success  p50/p90/p95 s      cost $    utility",
    ]
    for candidate in decision.ranked:
        latency = "/".join(f"{value:.1f}" for value in candidate.latency_s)
        lines.append(
            f"  {candidate.model:<28}{candidate.p_success:>9.2f}  {latency:<16}{candidate.cost_usd:>9.5f}"
            f"{candidate.utility:>11.3f}  {'; '.join(candidate.reasons)}".rstrip()
        )
    lines += [f"  {model:<28}left out: {why}" for model, why in decision.excluded.items()]
    return "\n".join(lines)
