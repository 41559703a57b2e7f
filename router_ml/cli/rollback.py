"""router-ml rollback: serve the bundle that was served before."""

from __future__ import annotations

import argparse
from pathlib import Path

from router_ml.cli.promote import run

DESCRIPTION = """Returns to the bundle that was active before; again: one further back.

It is the same as 'router-ml promote --rollback', and prints the registry's folder. 'router-ml status' shows which
bundle it would return to, 'router-ml promote' lists them all.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "rollback",
        help="return to the bundle that was active before",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--models-dir", type=Path, help="another folder as the registry")
    verb.set_defaults(func=run, rollback=True, bundle=None)
