"""router-ml route: decide for one query or many."""

from __future__ import annotations

import argparse
import json
import sys

from router_ml.cli.choosing import add_choosing_options, chosen_context, chosen_policy, chosen_router, given_queries
from router_ml.settings import load_settings
from router_ml.terminal import decision_table, savings

BATCH = 256


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "route",
        help="choose a model for one query, or for each line of standard input",
        description="Choose a model for each query given, or for each line of standard input (plain text, or JSON rows "
        "with 'text' and 'context'). A row that cannot be read is named on standard error and left out; exit status 1.",
    )
    verb.add_argument("query", nargs="*", help="one or more queries, each in quotes")
    add_choosing_options(verb)
    verb.set_defaults(func=_route)


def _route(options: argparse.Namespace) -> int:
    settings = load_settings()
    shared = chosen_context(options)
    asked, wrong = given_queries(options.query)
    for error in wrong:
        print(f"router-ml: {error}; this row is left out", file=sys.stderr)
    pairs = [(query, shared if context is None else context) for query, context in asked]
    router, policy = chosen_router(options, settings), chosen_policy(options, settings)
    decisions = []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        made = router.decide_many([query for query, _ in part], [context for _, context in part], policy)
        if options.json:
            for (query, _), decision in zip(part, made, strict=True):
                print(json.dumps({"query": query, **decision.as_dict()}, ensure_ascii=False), flush=True)
        decisions += made
    if decisions and not options.json:
        print(decision_table([query for query, _ in pairs], decisions, router.learned))
        if len(decisions) > 1:
            print(savings(decisions, learned=router.learned))
    return 1 if wrong else 0
