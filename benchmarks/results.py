"""Rewrite the figures of docs/results.md by running the command that stands above each of them.

    python -m benchmarks.results                     every block (hours where BENCH is set)
    python -m benchmarks.results --only speed        the blocks whose command contains this text
    python -m benchmarks.results --list              the commands, and nothing is run

A block is a fenced text between `<!-- command: ... -->` and `<!-- end -->`. Commands that read real outcomes name the
folder $BENCH; without that variable their blocks are left as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
_BLOCK = re.compile(r"(<!-- command: (?P<command>.+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)


def commands(page: str) -> list[str]:
    """Return the commands of a page, in order."""
    return [match["command"] for match in _BLOCK.finditer(page)]


def rewritten(page: str, run: Callable[[str], str | None]) -> str:
    """Return the page with each block's body replaced by what `run` returns; None leaves the body unchanged."""

    def replace(match: re.Match[str]) -> str:
        output = run(match["command"])
        body = match["body"] if output is None else f"```text\n{output.rstrip()}\n```\n"
        return f"{match[1]}{body}{match[4]}"

    return _BLOCK.sub(replace, page)


def _run(command: str) -> str | None:
    if "$BENCH" in command and not os.environ.get("BENCH"):
        print(f"skipped, BENCH is not set: {command}", file=sys.stderr)
        return None
    words = [os.path.expandvars(word) for word in shlex.split(command)]
    print(f"running: {command}", file=sys.stderr)
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"unchanged, exit status {done.returncode}: {command}\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite docs/results.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description="Measure docs/results.md anew.")
    parser.add_argument("--only", default="", help="only commands that contain this text")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    if options.list:
        print("\n".join(commands(page)))
        return 0
    PAGE.write_text(rewritten(page, lambda c: _run(c) if options.only in c else None), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
