"""router-ml demo: decisions for a few sample queries."""

from __future__ import annotations

import argparse

from router_ml.decide.router import Router
from router_ml.settings import load_settings
from router_ml.terminal import SAMPLE_QUERIES, decision_table, savings


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "demo",
        help="decisions for a few sample queries, with the predicted savings",
        description="Routes a few sample queries and prints for each the model, the complexity, the chance of "
        "success, the latency quantiles, where these come from (prior or learned) and the reason; then what that saves "
        "against always using the model most likely to succeed.",
    )
    verb.set_defaults(func=_demo)


def _demo(options: argparse.Namespace) -> int:
    settings = load_settings()
    router = Router.load_or_heuristic(settings=settings)
    decisions = router.decide_many(SAMPLE_QUERIES, policy=settings.policy)
    print(decision_table(SAMPLE_QUERIES, decisions, router.learned))
    print(savings(decisions, learned=router.learned))
    print(f"bundle: {router.name}")
    return 0
