"""Learn the complexity part of a bundle: an encoder, a calibrated head, and their test figures.

With tuning, cross-validation chooses between a frozen encoder and a tuned one, and the head is fitted on the held-out
logits of the tuned one. Folds hold whole groups and, where rows name their `writer`, whole writers, since users write
like nobody the encoder has read; how sure the head may be is fitted on groups and a writer that nothing was tuned on.
The test groups take part in nothing but the last figures.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from router_ml.bundles.format import ENCODER, TOKENIZER, Bundle, manifest_metrics
from router_ml.decide.features.composition import compose
from router_ml.decide.features.extractor import TABLE_NAMES, TOOL_COLUMNS, Extractor, Features
from router_ml.decide.predictors.complexity import LearnedComplexity
from router_ml.decide.predictors.heads import LinearHead
from router_ml.decide.predictors.heuristic import HeuristicComplexity
from router_ml.engines.engine import Engine
from router_ml.errors import BundleCorrupt, InputError
from router_ml.numbers import is_number
from router_ml.types import LABELS, Query
from training.arrays import Labels, Singles
from training.complexity.complexity_head import (
    ComplexityFit,
    fit_complexity,
    fit_inverse_temperature,
    held_out_probabilities,
    rescaled,
)
from training.complexity.encoder_source import prepared_source
from training.complexity.encoder_trainer import EncoderFiles, EncoderTrainer, ValidationRun
from training.complexity.finetune import Recipe
from training.complexity.graded import DifficultyPart, Graded, agreement, difficulty_head
from training.complexity.logit_correction import fit_correction
from training.complexity.novelty_fit import NoveltyPart, fit_novelty
from training.embeddings import CachedEmbedder, frozen_vectors
from training.measuring import plots as draw
from training.measuring.classification import classification_figures
from training.measuring.metrics import reliability
from training.splits import TEST_SHARE, group_of, grouped_folds, is_test
from training.tracking.tracker import Tracker

log = logging.getLogger(__name__)


MIN_LABELS = 40
MIN_CALIBRATION = 60  # rows held out of the training run for the calibrated head
# Two free cores with bfloat16 train on about 100 examples a second: 3 min untuned; 2 x 3 and 18 min tuned.
TUNED = Recipe(epochs=3.0, max_examples=112_000, token_learning_rate=3e-3)
VALIDATED = replace(TUNED, epochs=2.0, max_examples=16_000)  # in cross-validation: enough to fit the head on its logits
UNTUNED = replace(TUNED, name="fixed", epochs=1.0, max_examples=16_000)  # the one training run of a fit without tuning
FROZEN = replace(TUNED, name="frozen", epochs=0.0)
FOLDS = 2
SHARPNESS_SHARE = 0.05  # of the training groups, held out of the last training run to fit the inverse temperature
MIN_WRITERS, MIN_WRITER_ROWS = 5, 300  # so many writers of so many rows, before whole writers are held out instead
FROZEN_SCALE = np.float32(4.0)  # of unit vectors, so that C is of the usual order
CHECKED_TEXTS, CHECKED_TEXTS_UNTUNED = 500, 100  # on which the exported encoder must agree with its reference


@dataclass(frozen=True)
class ComplexityPart:
    """The complexity part of a bundle; the encoder's files are already in the bundle's folder."""

    head: LinearHead
    config: dict[str, Any]
    metrics: dict[str, float]
    encoder: dict[str, Any]
    difficulty: DifficultyPart | None = None
    novelty: NoveltyPart | None = None

    def probabilities(self, features: Features) -> Singles:
        """Return label probabilities (n, 4)."""
        return LearnedComplexity(self.head)(features.embedding, features.table)


@dataclass(frozen=True)
class Labelled:
    """Labelled queries as arrays; `texts` are what the encoder reads."""

    queries: list[Query]
    texts: list[str]
    labels: Labels
    groups: list[str]
    writers: list[str]  # empty where a row names none
    table: Singles
    shares: Singles  # (n, 4): of labellers for each label, what the encoder is tuned towards

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(
            self.queries + other.queries,
            self.texts + other.texts,
            np.concatenate([self.labels, other.labels]),
            self.groups + other.groups,
            self.writers + other.writers,
            np.concatenate([self.table, other.table]),
            np.concatenate([self.shares, other.shares]),
        )

    def rows(self, index: Labels) -> Labelled:
        """Return some of the rows."""
        return Labelled(
            [self.queries[i] for i in index],
            [self.texts[i] for i in index],
            self.labels[index],
            [self.groups[i] for i in index],
            [self.writers[i] for i in index],
            self.table[index],
            self.shares[index],
        )


@dataclass(frozen=True)
class Learned:
    """A chosen encoder with its head."""

    files: EncoderFiles
    fitted: ComplexityFit
    head: LinearHead
    unseen: Labelled  # rows the encoder was not tuned on; the test rows are the last of them
    exact: Singles  # their probabilities by the unquantised encoder
    recipe: Recipe
    validation: dict[str, float] = field(default_factory=dict)  # held-out figures of what was chosen


class _NoVectors:
    """An encoder for extractors of which only the table is used."""

    name, dim = "none", 1

    def embed(self, texts: Sequence[str]) -> Singles:
        return np.zeros((len(texts), 1), dtype=np.float32)


def check_label_count(queries: Sequence[Query]) -> None:
    """Raise `InputError` if there are too few labelled queries to learn from, or one label alone."""
    labels = [query.label for query in queries if query.label is not None]
    if len(labels) < MIN_LABELS or len(set(labels)) < 2:
        raise InputError(
            f"{len(labels)} labelled queries with {len(set(labels))} different labels are too few; give at least "
            f"{MIN_LABELS} queries with two labels, or leave out --alone to add the shipped corpus"
        )


def labelled_rows(queries: Sequence[Query]) -> Labelled:
    """Return arrays of queries that all have a label.

    The table's columns about the tools on offer are zero: a label does not depend on them."""
    labels = np.array([LABELS.index(query.label) for query in queries if query.label is not None], dtype=np.int64)
    table = Extractor(_NoVectors()).extract([q.text for q in queries], [q.context for q in queries]).table
    table[:, list(TOOL_COLUMNS)] = 0.0
    texts = [compose(query.text, query.context) for query in queries]
    shares = np.array([_shares(query) for query in queries], np.float32).reshape(-1, len(LABELS))
    groups, writers = [group_of(query) for query in queries], [_writer(query) for query in queries]
    return Labelled(list(queries), texts, labels, groups, writers, table, shares)


def _writer(query: Query) -> str:
    """Return who wrote a query, empty if that is not said."""
    return str(query.extra.get("writer") or "")


def _shares(query: Query) -> list[float]:
    """Return the shares of labellers for each label; the label alone where the row has none.

    Raises `InputError` for shares that are no four numbers of 0 or more."""
    given = query.extra.get("shares")
    if given is None:
        return [float(label == query.label) for label in LABELS]
    if not (
        isinstance(given, list)
        and len(given) == len(LABELS)
        and all(is_number(x) and x >= 0 for x in given)
        and sum(given)
    ):
        raise InputError(f"query {query.id}: field 'shares' must be four numbers of 0 or more, found {given!r}")
    return [float(x) / sum(given) for x in given]


def borrow_complexity(bundle: Bundle, folder: Path) -> ComplexityPart:
    """Copy the encoder and the complexity head of another bundle, for queries without labels."""
    for name in (ENCODER, TOKENIZER):
        shutil.copyfile(bundle.path / name, folder / name)
    if tuple(bundle.config.get("table", ())) != TABLE_NAMES:
        raise BundleCorrupt(f"{bundle.path} was fitted on features that this version does not compute; fit it again")
    head = LinearHead(bundle.arrays["complexity/weights"], bundle.arrays["complexity/bias"])
    config = {**bundle.config["complexity"], "borrowed_from": bundle.name}
    difficulty = None
    if settings := bundle.config.get("difficulty"):
        arrays = bundle.section("difficulty")
        difficulty = DifficultyPart(arrays["weights"], arrays["bias"], settings, {})
    novelty = None
    if settings := bundle.config.get("novelty"):
        novelty = NoveltyPart(bundle.section("novelty")["centroids"], settings)
    encoder = {**bundle.manifest.get("encoder", {}), "borrowed_from": bundle.name}
    measured = manifest_metrics(bundle.manifest).items()  # they hold for the same encoder and head
    metrics = {name: value for name, value in measured if _of_complexity(name)}
    return ComplexityPart(head, config, metrics, encoder, difficulty, novelty)


def _of_complexity(name: str) -> bool:
    return name.split("/")[0] in ("val", "test", "val_f1", "test_f1") and not name.startswith("val/outcomes_")


def learn_complexity(
    queries: Sequence[Query],
    folder: Path,
    plots: Path,
    tracker: Tracker,
    *,
    source: str,
    seed: int,
    tune: bool,
    graded: Graded | None = None,
    quick: bool = False,
    cache: bool,
    engine: Engine | None = None,
    progress: bool,
) -> ComplexityPart:
    """Learn from labelled queries, and write the encoder into `folder` and plots into `plots`.

    With graded requests the same encoder learns to read difficulty."""
    check_label_count(queries)
    data = labelled_rows(queries)
    test_mask = np.array([is_test(group) for group in data.groups])
    test = data.rows(np.flatnonzero(test_mask))
    train = data.rows(np.flatnonzero(~test_mask))
    if len(set(train.labels.tolist())) < 2 or not len(test.labels):
        raise InputError(
            f"{len(set(data.groups))} groups of labelled queries are too few to hold out a tenth of them for the test; "
            "give more queries, or leave out --alone to add the shipped corpus"
        )
    seen_graded, held_graded = (None, None) if graded is None else graded.split()
    read = data.texts + ([] if seen_graded is None else seen_graded.texts)
    source = prepared_source(name := source, read, None if cache else plots.parent)
    trainer = EncoderTrainer(source, seed, graded=seen_graded, cache=cache, progress=progress)
    run = _Run(train, test, trainer, source, seed, quick, engine)
    learned = run.tuned(tracker, plots) if tune else run.untuned()
    learned.files.write(folder)
    unseen = learned.unseen
    vectors = CachedEmbedder(folder, enabled=cache, engine=engine).embed(unseen.texts)
    served = LearnedComplexity(learned.head)(vectors, unseen.table)
    _draw(served[-len(test.texts) :], test, plots)
    metrics = _metrics(served, learned, test) | learned.validation
    recipe, files = learned.recipe, learned.files
    trained = len(data.labels) - len(unseen.labels) + (0 if seen_graded is None else len(seen_graded.texts))
    metrics["fit/epochs"] = files.examples / max(trained, 1)
    difficulty = None
    if graded is not None and held_graded is not None and recipe.epochs:
        reading = vectors, unseen.labels, len(TABLE_NAMES)
        judged = CachedEmbedder(folder, enabled=cache, engine=engine).embed(held_graded.texts)
        difficulty = difficulty_head(files.all_weights, files.all_bias, judged, held_graded, reading)
        metrics |= difficulty.metrics | {"data/grade_agreement": agreement(graded.grades)}
    config = {"recipe": asdict(recipe), "strength": learned.fitted.strength, "examples": files.examples}
    encoder = {"source": name, "pooling": ["cls", "mean"], "recipe": recipe.name, **asdict(files.exported)}
    return ComplexityPart(learned.head, config, metrics, encoder, difficulty, fit_novelty(vectors, seed))


@dataclass(frozen=True)
class _Run:
    """One way from labelled rows to an encoder and a head."""

    train: Labelled
    test: Labelled
    trainer: EncoderTrainer
    source: str
    seed: int
    quick: bool
    engine: Engine | None = None  # computes vectors

    def untuned(self) -> Learned:
        """Train once; a tenth of the groups is held out for the calibrated head."""
        seen, held = _split(self.train, "calibration", TEST_SHARE)
        if len(held.labels) < MIN_CALIBRATION or set(held.labels.tolist()) != set(self.train.labels.tolist()):
            return self.frozen()  # too few to hold some out, and too few to tune on
        recipe, unseen = self._recipe(UNTUNED), held + self.test
        what = "tuning the encoder"
        files = self.trainer.train(seen.texts, seen.shares, unseen.texts, recipe, CHECKED_TEXTS_UNTUNED, what)
        n_held = len(held.texts)
        fitted = fit_complexity(files.held_logits[:n_held], held.table, held.labels, held.groups)
        exact = fitted.probabilities(files.held_logits, unseen.table)
        head, validation = self._head(fitted, files, unseen, n_held), self._validation(files.held_logits, held, fitted)
        return Learned(files, fitted, head, unseen, exact, recipe, validation)

    def tuned(self, tracker: Tracker, plots: Path) -> Learned:
        """Cross-validate, choose between a frozen and a tuned encoder, and train once more on the training groups."""
        train = self.train
        logits, runs = self._held_out_logits()
        fitted = fit_complexity(logits, train.table, train.labels, train.groups, seed=self.seed)
        tuned = held_out_probabilities(logits, train.table, train.labels, train.groups, fitted.strength, self.seed)
        figures = {
            "tuned encoder": classification_figures(tuned, train.labels),
            "frozen encoder": self._frozen_figures(),
            "heuristic rules": _heuristic_figures(train),
        }
        for name, values in figures.items():
            tracker.tried(f"complexity: {name}", {"part": "complexity", "candidate": name}, _sectioned("val", values))
        draw.learning_curve(_curves(runs, figures), plots / "learning_curve.png", "Macro-F1 while the encoder is tuned")
        if figures["frozen encoder"]["macro_f1"] > figures["tuned encoder"]["macro_f1"]:
            return self.frozen(_sectioned("val", figures["frozen encoder"]))
        return self._final(fitted, _sectioned("val", figures["tuned encoder"]))

    def frozen(self, validation: dict[str, float] | None = None) -> Learned:
        """Leave the encoder as it is and fit the head on its vectors, for which few labels are enough."""
        train, test = self.train, self.test
        what = "exporting the encoder"
        files = self.trainer.train(train.texts, train.shares, test.texts, FROZEN, CHECKED_TEXTS, what)
        vectors = self._embed(files, train + test) * FROZEN_SCALE
        block, rest = vectors[: len(train.texts)], vectors[len(train.texts) :]
        fitted = fit_complexity(block, train.table, train.labels, train.groups, seed=self.seed)
        scale = np.eye(block.shape[1], dtype=np.float32) * FROZEN_SCALE
        head = fitted.head(scale, np.zeros(block.shape[1], dtype=np.float32))
        exact = fitted.probabilities(rest, test.table)
        return Learned(files, fitted, head, test, exact, FROZEN, validation or self._validation(block, train, fitted))

    def _validation(self, block: Singles, held: Labelled, fitted: ComplexityFit) -> dict[str, float]:
        """Return cross-validated figures of the head on rows (at the start of `block`) that the encoder did not see."""
        block = block[: len(held.labels)]
        p = held_out_probabilities(block, held.table, held.labels, held.groups, fitted.strength, self.seed)
        return _sectioned("val", classification_figures(p, held.labels))

    def _final(self, fitted: ComplexityFit, validation: dict[str, float]) -> Learned:
        seen, held = _sharpness_split(self.train)
        recipe, unseen = self._recipe(TUNED), held + self.test
        what = "tuning the encoder on the training groups"
        files = self.trainer.train(seen.texts, seen.shares, unseen.texts, recipe, CHECKED_TEXTS, what)
        head = self._head(fitted, files, unseen, len(held.texts))
        exact = fitted.probabilities(files.held_logits, unseen.table)
        factor = fit_inverse_temperature(exact[: len(held.texts)], held.labels)
        scaled = LinearHead(head.weights * factor, head.bias * factor)
        return Learned(files, fitted, scaled, unseen, rescaled(exact, factor), recipe, validation)

    def _recipe(self, recipe: Recipe) -> Recipe:
        return recipe.quick() if self.quick else recipe

    def _embed(self, files: EncoderFiles, rows: Labelled) -> Singles:
        with tempfile.TemporaryDirectory() as scratch:
            files.write(Path(scratch))
            embedder = CachedEmbedder(Path(scratch), enabled=self.trainer.cache, engine=self.engine)
            return embedder.embed(rows.texts)

    def _head(self, fitted: ComplexityFit, files: EncoderFiles, unseen: Labelled, n_held: int) -> LinearHead:
        """Return the head, with the correction from int8 logits to exact ones, fitted on the first `n_held` rows."""
        rough = self._embed(files, unseen) @ files.weights.T + files.bias
        correction = fit_correction(rough[:n_held], files.held_logits[:n_held])
        return fitted.head(*correction.folded(files.weights, files.bias))

    def _held_out_logits(self) -> tuple[Singles, list[ValidationRun]]:
        logits = np.zeros((len(self.train.labels), len(LABELS)), dtype=np.float32)
        runs, recipe = [], self._recipe(VALIDATED)
        for fold, (seen, held) in enumerate(grouped_folds(_units(self.train), FOLDS, self.seed), 1):
            rest = self.train.rows(held)
            part = _without_groups_of(rest, self.train.rows(seen))
            what = f"cross-validation {fold}/{FOLDS}"
            run = self.trainer.validate(part.texts, part.shares, rest.texts, rest.labels, recipe, what)
            logits[held] = run.logits
            runs.append(run)
        return logits, runs

    def _frozen_figures(self) -> dict[str, float]:
        train = self.train
        block = frozen_vectors(train.texts, self.source, cache=self.trainer.cache, engine=self.engine)
        block *= FROZEN_SCALE
        probabilities = held_out_probabilities(block, train.table, train.labels, train.groups, 1.0, self.seed)
        return classification_figures(probabilities, train.labels)


def _split(rows: Labelled, salt: str, share: float) -> tuple[Labelled, Labelled]:
    """Return the rows to train on and, of whole groups, about a share of them to hold out."""
    held = np.array([is_test(f"{salt}:{group}", share) for group in rows.groups])
    return rows.rows(np.flatnonzero(~held)), rows.rows(np.flatnonzero(held))


def _sharpness_split(rows: Labelled) -> tuple[Labelled, Labelled]:
    """Return the rows to train on and those that tell how sure the head may be: a share of the groups and, where
    there are several large writers, all rows of the smallest of these."""
    held = np.array([is_test(f"sharpness:{group}", SHARPNESS_SHARE) for group in rows.groups])  # a salt never changes
    if writers := _large_writers(rows):
        held |= np.array([writer == writers[0] for writer in rows.writers])
    unseen = rows.rows(np.flatnonzero(held))
    return _without_groups_of(unseen, rows.rows(np.flatnonzero(~held))), unseen


def _units(rows: Labelled) -> list[str]:
    """Return what stays whole in cross-validation, per row: its writer where there are several large ones, or group."""
    if not _large_writers(rows):
        return rows.groups
    return [writer or group for writer, group in zip(rows.writers, rows.groups, strict=True)]


def _large_writers(rows: Labelled) -> list[str]:
    """Return the writers of `MIN_WRITER_ROWS` rows or more, smallest first; none if they are under `MIN_WRITERS`."""
    counts = Counter(writer for writer in rows.writers if writer)
    large = sorted((n, writer) for writer, n in counts.items() if n >= MIN_WRITER_ROWS)
    return [writer for _, writer in large] if len(large) >= MIN_WRITERS else []


def _without_groups_of(held: Labelled, rows: Labelled) -> Labelled:
    """Return the rows that share no group with those held out: rows alike by two writers have one."""
    groups = set(held.groups)
    return rows.rows(np.flatnonzero([group not in groups for group in rows.groups]))


def _heuristic_figures(data: Labelled) -> dict[str, float]:
    return classification_figures(HeuristicComplexity(TABLE_NAMES)(None, data.table), data.labels)


def _curves(
    runs: list[ValidationRun], figures: Mapping[str, Mapping[str, float]]
) -> dict[str, Sequence[tuple[int, float]]]:
    curves: dict[str, Sequence[tuple[int, float]]] = {f"tuned, fold {i}": run.curve for i, run in enumerate(runs, 1)}
    last = max((seen for run in runs for seen, _ in run.curve), default=1)
    for name in ("frozen encoder", "heuristic rules"):
        value = figures[name]["macro_f1"]
        curves[name] = [(0, value), (last, value)]
    return curves


def _metrics(served: Singles, learned: Learned, test: Labelled) -> dict[str, float]:
    """Return figures of the test groups, of the rules beside them, and of what int8 costs.

    The cost of int8 is measured on every row the encoder did not see, since it is a few rows in a thousand."""
    truth, files = learned.unseen.labels, learned.files
    metrics = _sectioned("test", classification_figures(served[-len(test.labels) :], test.labels))
    metrics["test/heuristic_macro_f1"] = _heuristic_figures(test)["macro_f1"]
    metrics["encoder/accuracy_lost_to_int8"] = float(
        (learned.exact.argmax(1) == truth).mean() - (served.argmax(1) == truth).mean()
    )
    metrics["encoder/int8_cosine_mean"] = files.exported.quantised_cosine_mean
    metrics["encoder/float_cosine_min"] = files.exported.float_cosine_min
    metrics["fit/encoder_seconds"] = files.seconds
    metrics["fit/examples"] = float(files.examples)
    return metrics


def _sectioned(split: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under `split/`, and F1 per label under `split_f1/`: MLflow shows a section for each."""
    return {
        f"{split}_f1/{name.removeprefix('f1_')}" if name.startswith("f1_") else f"{split}/{name}": value
        for name, value in scores.items()
    }


def _draw(served: Singles, test: Labelled, plots: Path) -> None:
    predicted, confidence = served.argmax(axis=1), served.max(axis=1)
    counts = confusion_matrix(test.labels, predicted, labels=range(len(LABELS)))
    share = f"{TEST_SHARE:.0%} of the groups, not trained on"
    draw.confusion(counts, plots / "confusion.png", f"Complexity, {share}")
    lines = {"complexity": reliability(confidence, (predicted == test.labels).astype(float))}
    draw.reliability(lines, plots / "reliability.png", f"Confidence, {share}")
