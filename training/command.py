"""What the command lines of this package share: help from the module's docstring, and errors as one line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from router_ml.errors import InputError, RouterError

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130  # exit codes


def command_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a module's docstring: its first line, the options, then the rest."""
    first, _, rest = (doc or "").partition("\n")
    return argparse.ArgumentParser(
        prog=f"python -m {prog}",
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command and return its exit code; an error is one line on standard error.

    2 for bad input, 1 where something else failed (a bundle, a host, a disk), 130 where it was interrupted."""
    try:
        code = action() or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output left; Python must not try to write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except (RouterError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT if isinstance(error, InputError) else FAILED
    return code


def write_json(path: Path | None, value: Any) -> None:
    """Write a value as JSON where a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
