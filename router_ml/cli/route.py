"""router-ml route: decide for one query or many."""

from __future__ import annotations

import argparse
import itertools
import json
import sys

from router_ml.cli.batch import add_batch_options, route_batch
from router_ml.cli.choosing import add_choosing_options, chosen_context, chosen_policy, chosen_router, given_queries
from router_ml.errors import RowError
from router_ml.settings import load_settings
from router_ml.terminal import decision_table, savings
from router_ml.types import Decision

BATCH = 256


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "route",
        help="choose a model for one query, or for each line of standard input",
        description="Choose a model for each query given, or for each line of standard input (plain text, or JSON rows "
        "with 'text' and 'context'). A row that cannot be read is named on standard error and left out; exit status 1. "
        "With --batch, decide a whole file in one pass: rows with 'text' or 'messages', and 'id' and 'context' where "
        "there are some. A run that ended early goes on where it stopped when the same command is given again.",
        epilog="example: router-ml route --batch queries.jsonl --out decisions.jsonl --policy fast",
    )
    verb.add_argument("query", nargs="*", help="one or more queries, each in quotes")
    add_choosing_options(verb)
    add_batch_options(verb)
    verb.set_defaults(func=_route)


def _route(options: argparse.Namespace) -> int:
    if options.batch is not None or options.out is not None:
        return route_batch(options)
    settings = load_settings()
    shared = chosen_context(options)
    router, policy = chosen_router(options, settings), chosen_policy(options, settings)
    queries: list[str] = []
    decisions: list[Decision] = []
    wrong = 0
    given = given_queries(options.query)
    while part := list(itertools.islice(given, BATCH)):
        errors = [item for item in part if isinstance(item, RowError)]
        pairs = [item for item in part if not isinstance(item, RowError)]
        for error in errors:
            print(f"router-ml: {error}; this row is left out", file=sys.stderr)
        wrong += len(errors)
        asked = [query for query, _ in pairs]
        made = router.decide_many(asked, [shared if context is None else context for _, context in pairs], policy)
        if options.json:
            for query, decision in zip(asked, made, strict=True):
                print(json.dumps({"query": query, **decision.as_dict()}, ensure_ascii=False))
            sys.stdout.flush()
        else:
            queries += asked
            decisions += made
    if decisions:
        print(decision_table(queries, decisions, router.learned))
    if len(decisions) > 1:
        print(savings(decisions, learned=router.learned))
    return 1 if wrong else 0
