"""Learns the complexity part of a bundle: which encoder, which head, how good, and how sure.

With tuning, grouped cross-validation chooses between a frozen encoder and a tuned one; held-out logits of the tuned one
teach the calibrated head. The test groups take part in nothing before the last figure.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.bundles.format import ENCODER, TOKENIZER, Bundle
from router_ml.decide.features.composition import compose
from router_ml.decide.features.extractor import TABLE_NAMES, TOOL_COLUMNS, Extractor, Features
from router_ml.decide.predictors.complexity import LearnedComplexity
from router_ml.decide.predictors.heads import LinearHead
from router_ml.decide.predictors.heuristic import HeuristicComplexity
from router_ml.errors import BundleCorrupt, InputError
from router_ml.types import LABELS, Query
from training.complexity.complexity_head import (
    ComplexityFit,
    fit_complexity,
    fit_sharpness,
    held_out_probabilities,
    sharpened,
)
from training.complexity.encoder_trainer import EncoderFiles, EncoderTrainer, Trial
from training.complexity.finetune import Recipe
from training.complexity.logit_correction import Correction, fit_correction
from training.embeddings import CachedEmbedder
from training.measuring.classification import complexity_scores, confusion
from training.splits import TEST_SHARE, group_of, grouped_folds, is_test
from training.tracking import plots as draw
from training.tracking.tracker import Tracker

log = logging.getLogger(__name__)

Array = NDArray[np.float32]

MIN_LABELS = 40
MIN_CALIBRATION = 60  # rows kept from the training run to teach the calibrated head
FIXED = Recipe(epochs=3.0)
TRIAL = replace(FIXED, epochs=2.0)  # of the cross-validation: enough to teach the head what to make of logits
TRIAL_SECONDS = 100.0  # bound on each training run of the cross-validation
FINAL_SECONDS = 180.0
FIXED_SECONDS = 38.0  # bound on the one training run of a fit without tuning
FOLDS = 2
SHARPNESS_SHARE = 0.05  # of the training groups, kept from the last training run to set how sure it may be
FROZEN_SCALE = np.float32(4.0)  # unit rows, stretched so that C is of the usual order
CHECKED_TEXTS = 500  # on which the exported encoder must agree with its reference


@dataclass(frozen=True)
class ComplexityBundle:
    """The complexity part of a bundle; the encoder's files are already in the bundle's folder."""

    head: LinearHead
    config: dict[str, Any]
    metrics: dict[str, float]
    encoder: dict[str, Any]

    def probabilities(self, features: Features) -> Array:
        """Label probabilities (n, 4)."""
        return LearnedComplexity(self.head)(features.embedding, features.table)


@dataclass(frozen=True)
class Labelled:
    """Labelled queries as arrays; `texts` are what the encoder reads."""

    queries: list[Query]
    texts: list[str]
    labels: NDArray[np.int64]
    groups: list[str]
    table: Array

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(
            self.queries + other.queries,
            self.texts + other.texts,
            np.concatenate([self.labels, other.labels]),
            self.groups + other.groups,
            np.concatenate([self.table, other.table]),
        )

    def rows(self, index: NDArray[np.int64]) -> Labelled:
        """Some of the rows."""
        return Labelled(
            [self.queries[i] for i in index],
            [self.texts[i] for i in index],
            self.labels[index],
            [self.groups[i] for i in index],
            self.table[index],
        )


@dataclass(frozen=True)
class Learned:
    """A chosen encoder with its head."""

    files: EncoderFiles
    fitted: ComplexityFit
    head: LinearHead
    unseen: Labelled  # rows the encoder was not tuned on; the test rows are the last of them
    exact: Array  # their probabilities by the unquantised encoder
    recipe: Recipe


class _NoVectors:
    """Stands in for an encoder where only the table is wanted."""

    name, dim = "none", 1

    def embed(self, texts: Sequence[str]) -> Array:
        return np.zeros((len(texts), 1), dtype=np.float32)


def refuse_few_labels(queries: Sequence[Query]) -> None:
    """Raises `InputError` where there are too few labelled queries to learn from, or one label alone."""
    labels = [query.label for query in queries if query.label is not None]
    if len(labels) < MIN_LABELS or len(set(labels)) < 2:
        raise InputError(
            f"{len(labels)} labelled queries with {len(set(labels))} different labels; at least {MIN_LABELS} "
            "queries and two labels are needed to learn complexity alone; leave --alone out to add the shipped corpus"
        )


def labelled_arrays(queries: Sequence[Query]) -> Labelled:
    """Arrays of labelled queries. Raises `InputError` where there are too few, or one label alone."""
    refuse_few_labels(queries)
    return labelled_rows(queries)


def labelled_rows(queries: Sequence[Query]) -> Labelled:
    """Arrays of queries that all have a label; the table's columns about tools on offer are zero: they bear on no
    label."""
    labels = np.array([LABELS.index(query.label) for query in queries if query.label is not None], dtype=np.int64)
    table = Extractor(_NoVectors()).extract([q.text for q in queries], [q.context for q in queries]).table
    table[:, list(TOOL_COLUMNS)] = 0.0
    texts = [compose(query.text, query.context) for query in queries]
    return Labelled(list(queries), texts, labels, [group_of(query) for query in queries], table)


def borrow_complexity(bundle: Bundle, folder: Path) -> ComplexityBundle:
    """The encoder and the complexity head of another bundle, for queries that carry no labels."""
    for name in (ENCODER, TOKENIZER):
        shutil.copyfile(bundle.path / name, folder / name)
    if tuple(bundle.config.get("table", ())) != TABLE_NAMES:
        raise BundleCorrupt(f"{bundle.path} was fitted on other features than this version computes; fit it again")
    head = LinearHead(bundle.arrays["complexity/weights"], bundle.arrays["complexity/bias"])
    config = {**bundle.config["complexity"], "borrowed_from": bundle.name}
    return ComplexityBundle(head, config, {}, {**bundle.manifest.get("encoder", {}), "borrowed_from": bundle.name})


def learn_complexity(
    queries: Sequence[Query],
    folder: Path,
    plots: Path,
    tracker: Tracker,
    *,
    source: str,
    seed: int,
    tune: bool,
    cache: bool,
    progress: bool,
) -> ComplexityBundle:
    """Learn from labelled queries; writes the encoder into `folder` and pictures into `plots`."""
    data = labelled_arrays(queries)
    test_mask = np.array([is_test(group) for group in data.groups])
    test = data.rows(np.flatnonzero(test_mask))
    train = data.rows(np.flatnonzero(~test_mask))
    if len(set(train.labels.tolist())) < 2 or not len(test.labels):
        raise InputError(
            f"the {len(set(data.groups))} groups of labelled queries are too few to keep a tenth of them for the test; "
            "give more queries, or leave --alone out to add the shipped corpus"
        )
    workshop = EncoderTrainer(source, seed, cache=cache, progress=progress)
    learned = (
        _tuned(train, test, workshop, source, seed, tracker, plots) if tune else _fixed(train, test, workshop, seed)
    )
    learned.files.write(folder)
    unseen = learned.unseen
    vectors = CachedEmbedder(folder, enabled=cache).embed(unseen.texts)
    served = LearnedComplexity(learned.head)(vectors, unseen.table)
    _pictures(served[-len(test.texts) :], test, plots)
    metrics = _metrics(served, learned, test)
    recipe, files = learned.recipe, learned.files
    config = {"recipe": asdict(recipe), "strength": learned.fitted.strength, "examples": files.examples}
    encoder = {"source": source, "pooling": ["cls", "mean"], "recipe": recipe.name, **asdict(files.exported)}
    return ComplexityBundle(learned.head, config, metrics, encoder)


def _fixed(train: Labelled, test: Labelled, workshop: EncoderTrainer, seed: int) -> Learned:
    """One training run bounded in time; a tenth of the groups is kept from it to teach the calibrated head."""
    held_mask = np.array([is_test(f"calibration:{group}") for group in train.groups])
    seen, held = train.rows(np.flatnonzero(~held_mask)), train.rows(np.flatnonzero(held_mask))
    if len(held.labels) < MIN_CALIBRATION or set(held.labels.tolist()) != set(train.labels.tolist()):
        return _frozen(train, test, workshop, seed)  # too few to keep some apart, and too few to tune on
    recipe = replace(FIXED, name="fixed", epochs=1.0)
    unseen = held + test
    files = workshop.files(seen.texts, seen.labels, unseen.texts, recipe, 100, FIXED_SECONDS, "tuning the encoder")
    fitted = fit_complexity(files.held_logits[: len(held.texts)], held.table, held.labels, held.groups)
    exact = fitted.probabilities(files.held_logits, unseen.table)
    correction = _correction(files, unseen, len(held.texts), workshop.cache)
    return Learned(files, fitted, _head(fitted, files, correction), unseen, exact, recipe)


def _tuned(
    train: Labelled, test: Labelled, workshop: EncoderTrainer, source: str, seed: int, tracker: Tracker, plots: Path
) -> Learned:
    """Cross-validate, choose, and train once more on all of the training groups."""
    logits, trials = _held_out_logits(train, workshop, TRIAL, seed)
    fitted = fit_complexity(logits, train.table, train.labels, train.groups, seed=seed)
    calibrated = held_out_probabilities(logits, train.table, train.labels, train.groups, fitted.strength, seed)
    scores = {
        "tuned encoder": complexity_scores(calibrated, train.labels),
        "frozen encoder": _frozen_scores(train, source, seed),
        "heuristic rules": _heuristic_scores(train),
    }
    for name, values in scores.items():
        params = {"part": "complexity", "candidate": name}
        tracker.tried(f"complexity: {name}", params, _sectioned("val", values))
    draw.learning_curve(_curves(trials, scores), plots / "learning_curve.png", "Macro-F1 while the encoder is tuned")
    frozen = scores["frozen encoder"]["macro_f1"] > scores["tuned encoder"]["macro_f1"]
    chosen = scores["frozen encoder" if frozen else "tuned encoder"]
    tracker.metrics(_sectioned("val", chosen))
    if frozen:
        return _frozen(train, test, workshop, seed)
    held_mask = np.array([is_test(f"sharpness:{group}", SHARPNESS_SHARE) for group in train.groups])
    seen, held = train.rows(np.flatnonzero(~held_mask)), train.rows(np.flatnonzero(held_mask))
    what = "tuning the encoder on the training groups"
    unseen = held + test
    files = workshop.files(seen.texts, seen.labels, unseen.texts, FIXED, CHECKED_TEXTS, FINAL_SECONDS, what)
    head = _head(fitted, files, _correction(files, unseen, len(held.texts), workshop.cache))
    exact = fitted.probabilities(files.held_logits, unseen.table)
    sharpness = fit_sharpness(exact[: len(held.texts)], held.labels)
    sure = LinearHead(head.weights * sharpness, head.bias * sharpness)
    return Learned(files, fitted, sure, unseen, sharpened(exact, sharpness), FIXED)


def _correction(files: EncoderFiles, unseen: Labelled, n_held: int, cache: bool) -> Correction:
    """From the int8 encoder's logits to the exact ones, learned on the first `n_held` rows: those kept from the
    training run."""
    with tempfile.TemporaryDirectory() as scratch:
        files.write(Path(scratch))
        vectors = CachedEmbedder(Path(scratch), enabled=cache).embed(unseen.texts)  # all: figures ask for them again
    rough = vectors @ files.weights.T + files.bias
    return fit_correction(rough[:n_held], files.held_logits[:n_held])


def _head(fitted: ComplexityFit, files: EncoderFiles, correction: Correction) -> LinearHead:
    return fitted.head(*correction.folded(files.weights, files.bias))


def _frozen(train: Labelled, test: Labelled, workshop: EncoderTrainer, seed: int) -> Learned:
    """The encoder as it is, and the head on its vectors: what few labels are enough for."""
    recipe = replace(FIXED, name="frozen", epochs=0.0)
    files = workshop.files(train.texts, train.labels, test.texts, recipe, CHECKED_TEXTS, 0.0, "exporting the encoder")
    with tempfile.TemporaryDirectory() as scratch:
        files.write(Path(scratch))
        vectors = CachedEmbedder(Path(scratch), enabled=workshop.cache).embed(train.texts + test.texts)
    vectors = vectors * FROZEN_SCALE
    block, rest = vectors[: len(train.texts)], vectors[len(train.texts) :]
    fitted = fit_complexity(block, train.table, train.labels, train.groups, seed=seed)
    stretch = np.eye(block.shape[1], dtype=np.float32) * FROZEN_SCALE
    head = fitted.head(stretch, np.zeros(block.shape[1], dtype=np.float32))
    return Learned(files, fitted, head, test, fitted.probabilities(rest, test.table), recipe)


def _held_out_logits(train: Labelled, workshop: EncoderTrainer, recipe: Recipe, seed: int) -> tuple[Array, list[Trial]]:
    logits = np.zeros((len(train.labels), len(LABELS)), dtype=np.float32)
    trials = []
    for fold, (seen, held) in enumerate(grouped_folds(train.groups, FOLDS, seed), 1):
        part, rest = train.rows(seen), train.rows(held)
        what = f"cross-validation {fold}/{FOLDS}"
        trial = workshop.trial(part.texts, part.labels, rest.texts, rest.labels, recipe, TRIAL_SECONDS, what)
        logits[held] = trial.logits
        trials.append(trial)
    return logits, trials


def _frozen_scores(train: Labelled, source: str, seed: int) -> dict[str, float]:
    from training.embeddings import frozen_vectors

    block = frozen_vectors(train.texts, source) * FROZEN_SCALE
    return complexity_scores(
        held_out_probabilities(block, train.table, train.labels, train.groups, 1.0, seed), train.labels
    )


def _heuristic_scores(data: Labelled) -> dict[str, float]:
    return complexity_scores(HeuristicComplexity(TABLE_NAMES)(None, data.table), data.labels)


def _curves(trials: list[Trial], scores: Mapping[str, Mapping[str, float]]) -> dict[str, Sequence[tuple[int, float]]]:
    curves: dict[str, Sequence[tuple[int, float]]] = {
        f"tuned, fold {i}": trial.curve for i, trial in enumerate(trials, 1)
    }
    last = max((seen for trial in trials for seen, _ in trial.curve), default=1)
    for name in ("frozen encoder", "heuristic rules"):
        value = scores[name]["macro_f1"]
        curves[name] = [(0, value), (last, value)]
    return curves


def _metrics(served: Array, learned: Learned, test: Labelled) -> dict[str, float]:
    """Figures of the test groups: served int8 encoder and head, rules beside them; and what int8 gives up, on every row
    the encoder did not see, since a difference of a few rows in a thousand wants many rows."""
    truth, files = learned.unseen.labels, learned.files
    metrics = _sectioned("test", complexity_scores(served[-len(test.labels) :], test.labels))
    metrics["test/heuristic_macro_f1"] = _heuristic_scores(test)["macro_f1"]
    metrics["encoder/accuracy_lost_to_int8"] = float(
        (learned.exact.argmax(1) == truth).mean() - (served.argmax(1) == truth).mean()
    )
    metrics["encoder/int8_cosine_mean"] = files.exported.quantised_cosine_mean
    metrics["encoder/float_cosine_min"] = files.exported.float_cosine_min
    metrics["fit/encoder_seconds"] = files.seconds
    return metrics


def _sectioned(split: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Metric names whose first segment is the section of MLflow's page: the split, and apart from it F1 per label."""
    return {
        f"{split}_f1/{name.removeprefix('f1_')}" if name.startswith("f1_") else f"{split}/{name}": value
        for name, value in scores.items()
    }


def _pictures(served: Array, test: Labelled, plots: Path) -> None:
    predicted = served.argmax(axis=1)
    share = f"{TEST_SHARE:.0%} of the groups, never trained on"
    draw.confusion_matrix(confusion(test.labels, predicted), plots / "confusion.png", f"Complexity, {share}")
    draw.reliability(served.max(axis=1), predicted == test.labels, plots / "reliability.png", f"Confidence, {share}")
