"""router-ml: decide, explain and look after the router from a terminal."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from router_ml.errors import RouterError

DECIDING = ("route", "explain", "demo", "models", "status")
LOOKING_AFTER = ("serve", "keys", "feedback", "experiment", "metrics", "alerts", "events", "sync")

EPILOG = """examples:
  router-ml demo                                     decisions for a few sample queries
  router-ml route "check email"                      one query
  router-ml route --json < queries.txt               one query a line, one JSON decision a line
  router-ml route "summarise this" --context '{"attachment": "report.pdf"}'
  router-ml explain "book a flight"                  why, and what else there was
  router-ml status                                   which bundle is in use, and how good it is

environment:
  ROUTER_ML_BUNDLE      folder of the bundle to use        ROUTER_ML_MODELS_DIR  shelf of bundles
  ROUTER_ML_CATALOGUE   your models, TOML                  ROUTER_ML_POLICY      preset or policy file
  ROUTER_ML_STATE_DIR   events and latches                 OLLAMA_HOST           where Ollama listens
"""


def parser() -> argparse.ArgumentParser:
    """The command line with all its verbs."""
    cli = argparse.ArgumentParser(
        prog="router-ml",
        description="Chooses the model that serves each query best: fast enough, likely to succeed, cheap.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--version", action="version", version=f"router-ml {_version()}")
    cli.add_argument("-v", "--verbose", action="store_true", help="say what is done")
    subparsers = cli.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (*DECIDING, *LOOKING_AFTER):
        importlib.import_module(f"router_ml.cli.{verb}").register(subparsers)
    _remember(cli)
    return cli


def _remember(parser: argparse.ArgumentParser) -> None:
    """Each verb leaves its own parser behind, so that what is wrong with its words is told with its usage."""
    parser.set_defaults(parser=parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _remember(inner)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line; wrong usage ends the program with exit code 2."""
    options, strange = parser().parse_known_args(argv)
    if strange:
        options.parser.error(f"unrecognized arguments: {' '.join(strange)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. An error is one line on standard error and exit code 2."""
    options = parsed(argv)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character still gets its answer
    try:
        return int(options.func(options) or 0)
    except RouterError as error:
        print(f"router-ml: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _version() -> str:
    try:
        return metadata.version("router-ml")
    except metadata.PackageNotFoundError:
        return "(checkout)"
