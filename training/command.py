"""What the command lines of this package share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from router_ml.engines.engine import ENGINES, LOCAL
from router_ml.files import atomic_write


def command_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring: its first line, the options, then the rest."""
    first, _, rest = (doc or "").partition("\n")
    return argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_engine_option(group: argparse._ActionsContainer, what: str) -> None:
    """Add --engine, whose help says what the engine does."""
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default=LOCAL,
        help=f"where {what}: this machine, or a Ray cluster (RAY_ADDRESS names it, else Ray starts here; extra 'ray') "
        "(%(default)s)",
    )


def write_json(path: Path | None, value: Any) -> None:
    """Write a value as JSON where a path was given."""
    if path is not None:
        atomic_write(path, json.dumps(value, indent=1, default=str) + "\n")
