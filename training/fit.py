"""Learns a bundle from labelled queries and measured outcomes.

    python -m training.fit                                  the shipped corpus, with tuning (minutes)
    python -m training.fit --no-tune                        the same with a fixed recipe, in a minute and a half
    python -m training.fit --queries Q --outcomes O         your own queries and what your models did with them

Queries without labels lend the encoder and the complexity head from the active bundle; a few labels of your own are
learned together with the shipped corpus. Every fit is a run in MLflow; the new bundle is a candidate until
`python -m training.promote` makes it the active one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.bundles.format import (
    ARRAYS,
    CATALOGUE,
    ENCODER,
    HEADS,
    SELF_CHECK_TEXTS,
    TOKENIZER,
    load_bundle,
    write_manifest,
)
from router_ml.bundles.registry import active_bundle, registry_folder, replace_bundle
from router_ml.catalogue import Catalogue, Model, load_catalogue, model_entry
from router_ml.decide.features.extractor import TABLE_NAMES, Extractor, Features
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.files import make_private_folder
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.settings import load_settings
from router_ml.terminal import SAMPLE_QUERIES, decision_table, run_command, savings
from router_ml.types import LABELS, Outcome, Query
from training.complexity.export import self_check_vectors
from training.complexity.learning import ComplexityBundle, borrow_complexity, learn_complexity, refuse_few_labels
from training.corpus import corpus_path, data_sha256
from training.embeddings import CachedEmbedder
from training.outcomes.table import LEARNED_FROM, not_learned, outcome_table, query_keys, refuse_strangers
from training.tracking.tracker import FITS, Tracker, tracked

log = logging.getLogger(__name__)

FEW_LABELS = 2000  # below this the shipped corpus is learned together with the given labels
NOTICE = """The sentence encoder in this bundle derives from sentence-transformers/all-MiniLM-L6-v2
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), Apache License 2.0, itself derived from
nreimers/MiniLM-L6-H384-uncased (MIT License, Microsoft). It was fine-tuned on the labelled queries of this project,
converted to ONNX and quantised to 8 bits. The heads were learned from the data named by `data_sha256` in manifest.json.
"""


@dataclass(frozen=True)
class FitJob:
    """What to learn from, and how."""

    queries: tuple[Query, ...]
    outcomes: tuple[Outcome, ...]
    catalogue: Catalogue
    models_dir: Path
    name: str
    data_sha256: str
    experiment: str = FITS
    seed: int = 0
    tune: bool = True
    cache: bool = True
    progress: bool = True
    encoder: str = DEFAULT_ENCODER
    corpus: tuple[Query, ...] = ()  # the shipped rows learned beside few labels
    given: dict[str, Any] = field(default_factory=dict)  # for the record


def fit(job: FitJob, tracker: Tracker) -> tuple[Path, dict[str, float]]:
    """Learn a bundle, check it through the serving code, and put it on the shelf; returns its folder and metrics."""
    started = time.monotonic()
    make_private_folder(job.models_dir)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=job.models_dir) as scratch:
        folder, plots = Path(scratch) / "bundle", Path(scratch) / "plots"
        folder.mkdir()
        plots.mkdir()
        complexity = _complexity(job, folder, plots, tracker)
        config: dict[str, Any] = {"table": list(TABLE_NAMES), "complexity": complexity.config}
        arrays = {"complexity/weights": complexity.head.weights, "complexity/bias": complexity.head.bias}
        metrics, models = dict(complexity.metrics), list(job.catalogue)
        if job.outcomes:
            metrics |= _outcomes(job, folder, complexity, config, arrays, models, tracker)
        _write_heads(folder, config, arrays, models)
        metrics["fit/seconds"] = time.monotonic() - started
        _write_manifest(job, folder, metrics, complexity)
        router = Router.load(folder)
        tracker.metrics(metrics)
        tracker.note(_headline(job, metrics))
        tracker.files(plots, "plots")
        target = _shelve(folder, job)
    tracker.files(target, "bundle")
    tracker.register(target, champion=job.name == "default")
    _show(router)
    return target, metrics


def _complexity(job: FitJob, folder: Path, plots: Path, tracker: Tracker) -> ComplexityBundle:
    labelled = [query for query in (*job.corpus, *job.queries) if query.label is not None]
    if not labelled:
        return borrow_complexity(load_bundle(active_bundle(load_settings())), folder)
    return learn_complexity(
        labelled,
        folder,
        plots,
        tracker,
        source=job.encoder,
        seed=job.seed,
        tune=job.tune,
        cache=job.cache,
        progress=job.progress,
    )


def _outcomes(
    job: FitJob,
    folder: Path,
    complexity: ComplexityBundle,
    config: dict[str, Any],
    arrays: dict[str, Any],
    models: list[Model],
    tracker: Tracker,
) -> dict[str, float]:
    """Learn success and latency per model into `config`, `arrays` and `models`; returns the metrics."""
    from training.outcomes.learning import fit_outcomes

    measured = {outcome.query_id for outcome in job.outcomes}
    queries = [query for query in job.queries if query.id in measured]
    features = _features(queries, folder, job.cache)
    fitted = fit_outcomes(
        queries,
        list(job.outcomes),
        features,
        complexity.probabilities(features),
        job.catalogue,
        seed=job.seed,
        tune=job.tune,
        log=lambda name, values: tracker.tried(name, {"part": "outcomes", "learner": name}, values),
    )
    if fitted.report.get("learner") == "prior" and "reason" not in fitted.report:
        _note("what the outcomes say of single queries did not beat each model's mean success in cross-validation; "
              "the models are told apart by their means until there are more outcomes")  # fmt: skip
    arrays[LEARNED_FROM] = np.sort(query_keys(queries))
    config["outcomes"] = fitted.config
    arrays |= {f"outcomes/{name}": value for name, value in fitted.arrays.items()}
    models += [model for model in fitted.profiles if model.name not in job.catalogue]
    (folder / "outcomes_report.json").write_text(json.dumps(fitted.report, indent=2, default=str), encoding="utf-8")
    numbers = {key: value for key, value in fitted.report.items() if isinstance(value, int | float)}
    return {key if "/" in key else f"outcomes/{key}": float(value) for key, value in numbers.items()}


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _features(queries: Sequence[Query], folder: Path, cache: bool) -> Features:
    extractor = Extractor(CachedEmbedder(folder, enabled=cache))
    return extractor.extract([query.text for query in queries], [query.context for query in queries])


def _write_heads(folder: Path, config: dict[str, Any], arrays: dict[str, Any], models: Sequence[Model]) -> None:
    embedder = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER)
    config["self_check"] = list(SELF_CHECK_TEXTS)
    arrays["self_check/vectors"] = self_check_vectors(embedder, config["self_check"])
    (folder / HEADS).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    np.savez(folder / ARRAYS, **arrays)
    entries = [model_entry(model) for model in models]
    (folder / CATALOGUE).write_text(json.dumps({"models": entries}, indent=1) + "\n", encoding="utf-8")
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")


def _write_manifest(job: FitJob, folder: Path, metrics: dict[str, float], complexity: ComplexityBundle) -> None:
    write_manifest(
        folder,
        {
            "name": job.name,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "data_sha256": job.data_sha256,
            "labels": list(LABELS),
            "encoder": complexity.encoder,
            "given": job.given,
            "metrics": {key: round(value, 5) for key, value in sorted(metrics.items())},
        },
    )


def _shelve(folder: Path, job: FitJob) -> Path:
    """Move a finished bundle to its place in one step; one of the same name steps aside first."""
    target = job.models_dir / job.name
    replace_bundle(folder, target)
    return target


def _headline(job: FitJob, metrics: dict[str, float]) -> str:
    """The one plain line that lists of runs show."""
    parts = []
    if "test/macro_f1" in metrics:
        rules = metrics.get("test/heuristic_macro_f1", float("nan"))
        parts.append(f"complexity macro-F1 {metrics['test/macro_f1']:.3f} on unseen groups (rules {rules:.3f})")
    if job.outcomes:
        parts.append(f"{len(job.outcomes)} outcomes learned")
    return "; ".join([*parts, "tuned" if job.tune else "fixed recipe"])


def _show(router: Router) -> None:
    decisions = router.decide_many(SAMPLE_QUERIES)
    print(decision_table(SAMPLE_QUERIES, decisions, router.learned))
    print(savings(decisions, learned=router.learned))


def prepare(options: argparse.Namespace) -> FitJob:
    """Read and check everything a fit needs. Raises `InputError` for anything that is wrong with it."""
    shipped = corpus_path()
    queries = read_queries(options.queries or shipped)
    outcomes = read_outcomes(options.outcomes) if options.outcomes else []
    n_labels = sum(query.label is not None for query in queries)
    for path, rows in ((options.queries, queries), (options.outcomes, outcomes)):
        if path is not None and not rows:
            raise InputError(f"{path} holds no rows; there is nothing to learn from it")
    if not n_labels and not outcomes:
        raise InputError(
            f"{options.queries}: no row has a label and no --outcomes are given; there is nothing to learn"
        )
    refuse_strangers(queries, outcomes)  # now, not after minutes of tuning
    together = options.queries is not None and 0 < n_labels < FEW_LABELS and not options.alone
    corpus = read_queries(shipped) if together and Path(options.queries).resolve() != shipped.resolve() else []
    if n_labels:
        refuse_few_labels([*corpus, *queries])
    catalogue = _catalogue(options.catalogue, outcomes)
    digest = data_sha256([*corpus, *queries], options.outcomes, options.catalogue)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = options.name or f"{stamp}-{digest[:6]}-{os.getpid()}"
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"--name {name!r} must be the plain name of a folder; --models-dir says where it stands")
    models_dir = options.models_dir or registry_folder(load_settings())
    if (models_dir / name).exists() and not options.force:
        raise InputError(f"{models_dir / name} exists; choose another --name, or --force to replace it")
    return FitJob(
        queries=tuple(queries),
        outcomes=tuple(outcomes),
        catalogue=catalogue,
        models_dir=models_dir,
        name=name,
        data_sha256=digest,
        experiment=options.experiment,
        seed=options.seed,
        tune=not options.no_tune,
        cache=not options.no_cache,
        progress=not options.quiet and sys.stderr.isatty(),
        encoder=options.encoder,
        corpus=tuple(corpus),
        given={
            "queries": len(queries),
            "labels": n_labels + len(corpus),
            "outcomes": len(outcomes),
            "seed": options.seed,
            "tune": not options.no_tune,
        },
    )


def _catalogue(path: Path | None, outcomes: Sequence[Outcome]) -> Catalogue:
    """The catalogue that was given; else the packaged one, unless the outcomes are of quite other models: then those
    models alone, with profiles derived from what they did."""
    catalogue = load_catalogue(path)
    if path is None and outcomes and not any(outcome.model in catalogue for outcome in outcomes):
        return Catalogue((), source="outcomes")
    return catalogue


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = (__doc__ or "").split("\n", 1)
    cli = argparse.ArgumentParser(
        prog="python -m training.fit",
        description=text[0],
        epilog=text[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_argument("--queries", type=Path, help="labelled or unlabelled queries, JSON Lines (the shipped corpus)")
    cli.add_argument("--outcomes", type=Path, help="measured outcomes of models on those queries, JSON Lines")
    cli.add_argument("--catalogue", type=Path, help="models and their priors, TOML (the packaged three models)")
    cli.add_argument("--models-dir", type=Path, help="where bundles live (models/)")
    cli.add_argument("--name", help="folder of the new bundle (date, time and data hash)")
    cli.add_argument("--force", action="store_true", help="replace a bundle of that name")
    cli.add_argument("--experiment", default=FITS, help="MLflow experiment (%(default)s)")
    cli.add_argument("--encoder", default=DEFAULT_ENCODER, help="sentence encoder: hub name or folder (%(default)s)")
    cli.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    cli.add_argument("--no-tune", action="store_true", help="one fixed recipe and no search: under 90 seconds")
    cli.add_argument("--alone", action="store_true", help="few labels of your own: do not add the shipped corpus")
    cli.add_argument("--no-cache", action="store_true", help="neither read nor write cached encoders and vectors")
    cli.add_argument("--json", action="store_true", help="last line of standard output: bundle and metrics as JSON")
    cli.add_argument("--quiet", action="store_true", help="no progress bars")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run a fit; exit status 2 for bad input, 1 where something else went wrong."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return run_command("training.fit", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    job = prepare(options)
    if job.outcomes and (why := not_learned(outcome_table(job.queries, job.outcomes))):
        _note(why)
    note = f"{len(job.queries)} queries, {len(job.outcomes)} outcomes, {'tuned' if job.tune else 'fixed recipe'}"
    with tracked(job.experiment, job.name, note) as tracker:
        tracker.params({**job.given, "data_sha256": job.data_sha256, "encoder": job.encoder, "bundle": job.name})
        target, metrics = fit(job, tracker)
    print(f"bundle: {target}")
    print(f"to serve it: router-ml promote {shlex.quote(str(target))}")
    if options.json:
        print(json.dumps({"bundle": str(target), "metrics": metrics}))


if __name__ == "__main__":
    sys.exit(main())
