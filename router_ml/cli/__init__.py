"""router-ml: decide, explain and operate the router from a terminal."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from router_ml import __version__
from router_ml.settings import load_settings
from router_ml.terminal import run_command

if TYPE_CHECKING:
    from router_ml.shared_state.mirror import Mirror

DECIDING = ("init", "route", "explain", "demo", "models", "status")
OPERATING = ("serve", "keys", "promote", "rollback", "feedback", "experiment", "metrics", "alerts", "events", "sync")
SHARING = ("init", "keys", "promote", "rollback", "experiment")  # change files that all replicas have
LOOKING_AFTER = OPERATING  # the name of earlier releases

EPILOG = """examples:
  router-ml init                                     find your models, measure them, write a catalogue
  router-ml demo                                     decisions for a few sample queries
  router-ml route "check email"                      one query
  router-ml route --json < queries.txt               one query a line, one JSON decision a line
  router-ml route "summarise this" --context '{"attachment": "report.pdf"}'
  router-ml explain "book a flight"                  why, with the alternatives
  router-ml status                                   which bundle is in use, and whether its models can be served
  router-ml promote BUNDLE                           make what was learned the active bundle
  router-ml rollback                                 return to the bundle that was active before

environment:
  ROUTER_ML_BUNDLE      folder of the bundle to use        ROUTER_ML_MODELS_DIR  bundle registry
  ROUTER_ML_CATALOGUE   your models, TOML                  ROUTER_ML_POLICY      preset or policy file
  ROUTER_ML_STATE_DIR   events, experiments, bundles       OLLAMA_HOST           where Ollama listens
"""


def parser(verbs: Sequence[str] = (*DECIDING, *OPERATING)) -> argparse.ArgumentParser:
    """Return the parser of the command line with its verbs: all, or some where the others are not needed."""
    cli = argparse.ArgumentParser(
        prog="router-ml",
        description="Chooses the model that serves each query best: fast enough, likely to succeed, cheap.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--version", action="version", version=f"router-ml {__version__}")
    cli.add_argument("-v", "--verbose", action="store_true", help="log at level INFO")
    subparsers = cli.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in verbs:
        importlib.import_module(f"router_ml.cli.{verb}").register(subparsers)
    _keep_own_parser(cli)
    return cli


def _keep_own_parser(parser: argparse.ArgumentParser) -> None:
    """Let each verb keep its own parser, so that an error about its arguments shows its usage."""
    parser.set_defaults(parser=parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _keep_own_parser(inner)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line; wrong usage ends the program with exit status 2."""
    given = sys.argv[1:] if argv is None else argv
    first = next((word for word in given if not word.startswith("-")), None)
    named = (*DECIDING, *OPERATING)
    verbs = (first,) if first in named else named  # importing what the other verbs need takes a fifth of a second
    options, unknown = parser(verbs).parse_known_args(given)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. An error is one line on standard error and exit status 2."""
    return run_command("router-ml", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    options = parsed(argv)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    mirror = _mirror() if options.verb in SHARING else None
    try:
        return int(options.func(options) or 0)
    finally:
        if mirror is not None and not mirror.sync():
            logging.warning("changes stay on this machine until the database is back: %s", mirror.problem)


def _mirror() -> Mirror | None:
    """Return the files shared with all replicas, brought up to date; None where they are this machine's alone."""
    from router_ml.shared_state.mirror import open_mirror

    mirror = open_mirror(load_settings())
    if mirror is not None:
        mirror.sync()
    return mirror
