"""Measure what the router does before it has a single outcome, on models with measured outcomes.

    python -m benchmarks.as_shipped --bench DIR [--bundle DIR] [--catalogue F]

Of a weak and a strong model (routellm-mmlu, routellm-gsm8k): the area APGR, and that of prompt length alone. Of local
models (local5): the normalised area AIQ beside the static mix of the same models. With --catalogue a model has that
catalogue's priors, else those of the library; GPT-4 is expected to do what the library expects of Llama 3.3 70B.
Nothing is learned and nothing is fitted: the outcomes only judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from router_ml.bundles.registry import active_bundle
from router_ml.catalogue import Catalogue, Model, load_catalogue
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.library import prior_of
from router_ml.settings import load_settings
from router_ml.terminal import format_table, run_command
from training.arrays import Matrix
from training.command import command_parser
from training.evaluate import JudgedOutcomes, report
from training.measuring.baselines import length_scores
from training.measuring.metrics import apgr
from training.outcomes.table import OutcomeTable, outcome_table

PAIRS = ("routellm-mmlu", "routellm-gsm8k")
NOT_OF_OLLAMA = {"gpt-4-1106-preview": "llama3.3:70b", "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral:8x7b"}


def expected_model(name: str, catalogue: Catalogue) -> Model:
    """Return the catalogue's entry of a model under the given name, else the library's expectation of it."""
    if (entry := catalogue.find(name)) is not None:
        return replace(entry, name=name, aliases=())
    return Model(name, prior_of(NOT_OF_OLLAMA.get(name, name)))


def judged(table: OutcomeTable, bundle: Path, catalogue: Catalogue) -> JudgedOutcomes:
    """Return what a bundle and priors alone predict of a table."""
    models = Catalogue(tuple(expected_model(name, catalogue) for name in table.models))
    router = Router.load(bundle, catalogue=models)
    texts, contexts = [q.text for q in table.queries], [q.context for q in table.queries]
    parts = [router.predict_many(texts[i : i + 256], contexts[i : i + 256])[1] for i in range(0, len(texts), 256)]
    order = [parts[0].models.index(name) for name in table.models]
    return JudgedOutcomes(
        table=table,
        p_success=np.concatenate([part.p_success for part in parts])[:, order].astype(np.float64),
        latency_s=np.concatenate([part.latency_s for part in parts])[:, order].astype(np.float64),
        cost_usd=np.concatenate([part.cost_usd for part in parts])[:, order].astype(np.float64),
        novelty=np.zeros(len(table)),
        policy_choices={},
    )


def _read(folder: Path) -> OutcomeTable | None:
    """Return the outcomes of a data set, without models that lack the latency others have; None where it is absent."""
    queries, outcomes = folder / "queries.jsonl", folder / "outcomes.jsonl"
    if not (queries.is_file() and outcomes.is_file()):
        print(f"skipped {folder.name}: no {queries} or outcomes.jsonl beside it", file=sys.stderr)
        return None
    rows = read_outcomes(outcomes)
    timed = {row.model for row in rows if row.latency_s is not None}
    return outcome_table(read_queries(queries), [row for row in rows if not timed or row.model in timed])


def _apgr(scores: Matrix, table: OutcomeTable) -> float:
    """Return the APGR of scores (n, M) between the better and the poorer of two models."""
    strong = int(table.success.mean(axis=0).argmax())
    return apgr(scores[:, strong] - scores[:, 1 - strong], table.success[:, strong], table.success[:, 1 - strong])


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.as_shipped", __doc__)
    cli.add_argument("--bench", type=Path, required=True, help="folder of the data sets")
    cli.add_argument("--bundle", type=Path, help="the bundle (default: the active one)")
    cli.add_argument("--catalogue", type=Path, help="models and priors, TOML (default: the library alone)")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; exit code 2 if the folder is absent, 1 if the bundle cannot be used."""
    options = parser().parse_args(argv)
    return run_command("benchmarks.as_shipped", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    if not options.bench.is_dir():
        raise InputError(f"{options.bench} is not a folder; give the one that holds the data sets")
    bundle = options.bundle or active_bundle(load_settings())
    catalogue = load_catalogue(options.catalogue) if options.catalogue else Catalogue(())
    rows = [("data set", "figure", "as shipped", "beside it")]
    for name in PAIRS:
        if (table := _read(options.bench / name)) is not None:
            found = judged(table, bundle, catalogue)
            length = f"prompt length {_apgr(np.asarray(length_scores(table), np.float64), table):.3f}"
            rows.append((name, "apgr", f"{_apgr(np.asarray(found.p_success, np.float64), table):.3f}", length))
    if (table := _read(options.bench / "local5")) is not None:
        figures = report(judged(table, bundle, catalogue), resamples=1)["figures"]
        static = figures["aiq_normalised_static_mix"]["value"]
        rows.append(
            ("local5", "aiq_normalised", f"{figures['aiq_normalised']['value']:.3f}", f"static mix {static:.3f}")
        )
    print(format_table(rows, left=range(4)))


if __name__ == "__main__":
    sys.exit(main())
