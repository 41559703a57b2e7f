"""Judge a challenger on logged decisions: better, not worse, worse, or cannot tell.

    python -m training.offpolicy --challenger new.toml             a policy file, on the recorded events
    python -m training.offpolicy --challenger BUNDLE               a bundle's folder; needs the stored text of queries
    python -m training.offpolicy --challenger always:qwen3:8b      one model for everything
    python -m training.offpolicy --events decisions.jsonl --queries queries.jsonl --challenger BUNDLE

--events takes an event store (a folder, a file or a URL) or what `router-ml events export --what bandit` wrote.
Exit status: 0 better or not worse, 1 worse or cannot tell, 2 bad input.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from router_ml.decide.router import Router
from router_ml.decide.selection.policy import PRESETS, resolve_policy
from router_ml.errors import InputError
from router_ml.events.connect import open_store
from router_ml.events.export import bandit_rows
from router_ml.jsonl import read_queries
from router_ml.settings import load_settings
from router_ml.terminal import run_command
from training.command import command_parser
from training.offpolicy.challengers import always, by_policy, predictions, with_arms
from training.offpolicy.gate import MARGIN, Verdict, judge
from training.offpolicy.log import Challenger, Log
from training.offpolicy.reading import log_of, read_log

_ALWAYS = "always:"
Stored: TypeAlias = dict[str, tuple[str, Mapping[str, Any] | None]]


def parser() -> ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.offpolicy", __doc__)
    cli.add_argument("--events", help="event store, or exported decisions (default: the store of the settings)")
    cli.add_argument("--challenger", required=True, help="a bundle's folder, a policy, or always:MODEL")
    cli.add_argument("--queries", type=Path, help="texts of exported decisions, as events export --what queries writes")
    cli.add_argument("--policy", help="policy a bundle is judged under (default: the one in force at each decision)")
    cli.add_argument("--measure", choices=("success", "utility"), default="success", help="what counts (%(default)s)")
    cli.add_argument("--margin", type=float, default=MARGIN, help="what it may be worse by and pass (%(default)s)")
    cli.add_argument("--json", action="store_true", help="as JSON")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Judge a challenger; see the module's first lines for the exit status."""
    options = parser().parse_args(argv)
    return run_command("training.offpolicy", lambda: _run(options))


def _run(options: Namespace) -> int:
    if not options.margin > 0:
        raise InputError(f"--margin must be above 0, found {options.margin:g}")
    log, stored = _read(options)
    verdict = _judged(options, log, stored)
    print(json.dumps(verdict.as_dict()) if options.json else verdict)
    return 0 if verdict.passes else 1


def _read(options: Namespace) -> tuple[Log, Stored]:
    utility = options.measure == "utility"
    if options.events is not None and options.events.endswith(".jsonl"):
        queries = read_queries(options.queries) if options.queries else []
        return read_log(options.events, utility=utility), {q.id: (q.text, q.raw_context) for q in queries}
    settings = load_settings()
    store = open_store(options.events or settings.events or settings.state_dir, read_only=True)
    try:
        rows = ((row, number) for number, row in enumerate(bandit_rows(store), 1))
        log = log_of(rows, utility=utility)
        wants_text = (Path(options.challenger) / "manifest.json").is_file()
        texts = store.texts() if wants_text else ()
        return log, {found.decision_id: (found.text, found.context) for found in texts}
    finally:
        store.close()


def _judged(options: Namespace, log: Log, stored: Stored) -> Verdict:
    name = options.challenger
    challenger: Challenger
    if name.startswith(_ALWAYS):
        challenger = always(name.removeprefix(_ALWAYS))
    elif name in PRESETS or name.endswith(".toml"):
        challenger = by_policy(resolve_policy(name))
    else:
        router = Router.load(name)
        log = log.where(np.array([row["decision_id"] in stored for row in log.rows]))
        if not len(log):
            raise InputError(
                "a bundle can only be judged on decisions whose text was stored: set ROUTER_ML_KEEP_TEXT=1 "
                "while it is recorded, or give --queries beside exported decisions"
            )
        log = with_arms(log, (model.name for model in router.models))
        policy = None if options.policy is None else resolve_policy(options.policy)
        challenger = by_policy(policy, predictions(log, router, stored))
    return judge(log, challenger(log), margin=options.margin)


if __name__ == "__main__":
    sys.exit(main())
