"""Shared parts of the commands: exit statuses, progress and tables."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeVar

from router_ml.arm import arm_key
from router_ml.errors import InputError, RouterError
from router_ml.files import reason
from router_ml.types import Candidate, Decision

T = TypeVar("T")

INTERRUPTED = 130  # as a shell reports a program that was ended by Ctrl-C
QUERY_WIDTH = 44
BAR_WIDTH = 20
SAMPLE_QUERIES: tuple[str, ...] = (
    "check email",
    "turn off the kitchen lights",
    "schedule a 45 minute call with Dana and Luis on Thursday after 3pm",
    "find a free hour with Dana and mail her the agenda",
    "when the parcel arrives, text Omar and move my dentist appointment",
    "book a flight",
    "send it",
)
MIN_CELL_CHARS = 12  # the last column of a table is cut no shorter


def run_command(name: str, command: Callable[[], int | None], *, failure: int = 2, interrupted: str = "") -> int:
    """Run a command and return its exit status; every error is one line on standard error.

    An `InputError` gives 2, another error of this project or of the system (a full disk) `failure`, Ctrl-C 130. A
    reader that closes the pipe, such as `head`, has seen enough: 0. `interrupted` is the message after Ctrl-C."""
    logging.raiseExceptions = False  # a log line that cannot be written ends nothing
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character still gets its answer
    try:
        try:
            return int(command() or 0)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # now, so that a full disk or a closed pipe is met here and not at exit
    except BrokenPipeError:
        _discard(sys.stdout)
        return 0
    except KeyboardInterrupt:
        _report(name, interrupted or "interrupted")
        return INTERRUPTED
    except RouterError as error:
        _report(name, str(error))
        return 2 if isinstance(error, InputError) else failure
    except OSError as error:
        _discard(sys.stdout)
        _report(
            name, f"{f'cannot use {error.filename}' if error.filename else 'cannot write the output'}: {reason(error)}"
        )
        return failure


def report_interrupts() -> None:
    """Let Ctrl-C before `run_command`, while modules are imported, end the program in one line, too."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _report(Path(sys.argv[0]).stem, "interrupted")  # the interpreter itself ends by the signal
        else:
            usual(kind, error, trace)

    sys.excepthook = hook


def _report(name: str, message: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be closed or full, too
        print(f"{name}: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


def _discard(stream: TextIO | None) -> None:
    """Discard buffered output, about which the interpreter would complain at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items with a progress bar on standard error, where that is a terminal."""
    for done, item in enumerate(items):
        show_progress(what, done / len(items), f"{done + 1}/{len(items)} {item}")
        yield item
    end_progress()


def show_progress(what: str, share: float, text: str) -> None:
    """Show a progress bar on standard error, where that is a terminal, in place of the one before."""
    if sys.stderr is not None and sys.stderr.isatty():
        filled = int(BAR_WIDTH * share)
        line = f"{what} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {text}"
        print(f"\r\x1b[K{cut(line, shutil.get_terminal_size().columns - 1)}", end="", file=sys.stderr, flush=True)


def end_progress() -> None:
    """Take the progress bar away."""
    if sys.stderr is not None and sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def print_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> None:
    """Print rows, the first of which is the head, with their columns lined up."""
    print(format_table(rows, left, columns=terminal_columns(), bold_head=_shows_styles()))


def format_table(
    rows: Sequence[Sequence[str]],
    left: Collection[int] = (0,),
    *,
    columns: int | None = None,
    bold_head: bool = False,
    rule: bool = False,
) -> str:
    """Return rows as lines: the columns in `left` to the left, the others to the right.

    Where `columns`, the width of a terminal, is too small, the last cell of each row is cut. `rule` draws a line below
    the head."""
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if columns is not None:
        room = columns - sum(widths[:-1]) - 2 * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(room, MIN_CELL_CHARS))
    lines = [
        "  ".join(
            cut(cell, width).ljust(width) if i in left else cut(cell, width).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if bold_head:
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    return "\n".join([lines[0], *(["  ".join("-" * width for width in widths)] if rule else []), *lines[1:]])


def terminal_columns() -> int | None:
    """Return the width of the terminal in characters; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if _is_terminal() else None


def _is_terminal() -> bool:
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # closed
        return False


def _shows_styles() -> bool:
    """Return whether standard output takes bold text (no-color.org)."""
    return _is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")


def decision_table(queries: Sequence[str], decisions: Sequence[Decision], learned: Collection[str] = ()) -> str:
    """Return one line a query: model, complexity, chance of success, latency, where these come from, and the reason.

    A model with a choice is shown by its arm, such as `qwen3:8b+nothink`. `learned` names the arms whose predictions
    were learned from outcomes."""
    rows = [("query", "model", "complexity", "p_success", "p50/p90/p95 s", "source", "reason")]
    for query, decision in zip(queries, decisions, strict=True):
        chosen = decision.candidate
        share = decision.complexity_probabilities[decision.complexity]
        rows.append(
            (
                cut(_one_line(query), QUERY_WIDTH),
                arm_key(decision.model, decision.think) + (" (clarify)" if decision.action == "clarify" else ""),
                f"{decision.complexity} {share:.2f}",
                f"{chosen.p_success:.2f}",
                _quantiles(chosen),
                source_of(chosen, learned),
                decision.reason,
            )
        )
    return format_table(rows, left=range(7), columns=terminal_columns(), rule=True)


def source_of(candidate: Candidate, learned: Collection[str]) -> str:
    """Return where the chance of success of an arm comes from: "learned" from own outcomes, else its own source."""
    return "learned" if _arm(candidate) in learned else candidate.source


_BASIS = {frozenset({"learned"}): "learned from outcomes", frozenset({"prior"}): "by priors, not measured"}


def savings(decisions: Sequence[Decision], reference: str | None = None, learned: Collection[str] = ()) -> str:
    """Return what the decisions are predicted to save against always using the model most likely to succeed."""
    if not decisions:
        return ""
    reference = reference or _likeliest(decisions)
    pairs = [(d.candidate, next((c for c in d.ranked if _arm(c) == reference), None)) for d in decisions]
    known = [(a, b) for a, b in pairs if b is not None and a.latency_s.p50 > 0]
    if not known:
        return ""
    routed_s = sum(a.latency_s.p50 for a, _ in known) / len(known)
    reference_s = sum(b.latency_s.p50 for _, b in known) / len(known)
    success = sum(a.p_success - b.p_success for a, b in known) / len(known)
    sources = {source_of(candidate, learned) for pair in known for candidate in pair}
    return (
        f"expected: {routed_s:.1f} s a query instead of {reference_s:.1f} s with {reference} for all "
        f"({reference_s / routed_s:.1f} times faster, {success * 100:+.1f} points of success; "
        f"{_BASIS.get(frozenset(sources), 'partly by priors, not measured')})"
    )


def _likeliest(decisions: Sequence[Decision]) -> str:
    totals: dict[str, float] = {}
    for decision in decisions:
        for candidate in decision.ranked:
            totals[_arm(candidate)] = totals.get(_arm(candidate), 0.0) + candidate.p_success
    return max(totals, key=totals.__getitem__)


def _arm(candidate: Candidate) -> str:
    return arm_key(candidate.model, candidate.think)


def _quantiles(candidate: Candidate) -> str:
    return "/".join(f"{value:.1f}" if value == value else "?" for value in candidate.latency_s)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def cut(text: str, width: int) -> str:
    """Return a text of at most `width` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"
