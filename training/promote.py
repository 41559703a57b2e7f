"""Makes a bundle the active one, or returns to the one before it, and sets its alias in MLflow: `router-ml promote`.

python -m training.promote                      which bundles there are, and which one is active
python -m training.promote BUNDLE               make it active; it is verified first
python -m training.promote --rollback           return to the one that was active before; again: one further back
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from router_ml.bundles.registry import REMEMBERED, roll_back
from router_ml.cli.promote import add_options, listing, promote, run
from router_ml.terminal import run_command

__all__ = ["REMEMBERED", "listing", "main", "promote", "roll_back"]


def main(argv: Sequence[str] | None = None) -> int:
    """List, promote or roll back."""
    first, rest = (__doc__ or "").split("\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m training.promote",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    options = parser.parse_args(argv)
    return run_command("training.promote", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
