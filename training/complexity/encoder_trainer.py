"""Fine-tuned encoders, cached: the same texts, labels, recipe and seed are never trained twice."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.bundles.format import ENCODER, TOKENIZER
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.predictors.heads import softmax
from router_ml.types import LABELS
from training.arrays import Arrays, Labels, Singles
from training.cache import ArrayCache
from training.complexity.encoder_export import Exported, export_encoder, widened
from training.complexity.finetune import (
    Checkpoint,
    Logits,
    ProgressCallback,
    Recipe,
    Targets,
    Tuned,
    finetune,
)
from training.complexity.graded import Graded
from training.embeddings import release_memory
from training.measuring.classification import classification_figures

TRAINING_CODE = ("finetune.py", "graded.py")
EXPORT_CODE = (*TRAINING_CODE, "encoder_export.py", "bert_graph.py")
CURVE_ROWS = 500  # judge a training run before its end; at its end all rows do


@dataclass(frozen=True)
class ValidationRun:
    """What a tuned encoder predicts for texts it was not trained on."""

    logits: Singles  # (n, 4)
    curve: tuple[tuple[int, float], ...]  # (examples seen, macro-F1 on those texts)


@dataclass(frozen=True)
class EncoderFiles:
    """A tuned encoder, ready to be served, and the heads it was tuned with."""

    model: bytes
    tokenizer: bytes
    all_weights: Singles  # (N_OUTPUTS, dim)
    all_bias: Singles  # (N_OUTPUTS,)
    exported: Exported
    held_logits: Singles  # (n, 4) by the unquantised encoder, of the held-out texts
    seconds: float
    examples: int

    @property
    def weights(self) -> Singles:
        """Return the weights (4, dim) of the labels."""
        return self.all_weights[: len(LABELS)]

    @property
    def bias(self) -> Singles:
        """Return the bias (4,) of the labels."""
        return self.all_bias[: len(LABELS)]

    def write(self, folder: Path) -> None:
        """Write the two files of the encoder into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ENCODER).write_bytes(self.model)
        (folder / TOKENIZER).write_bytes(self.tokenizer)


class EncoderTrainer:
    """Trains encoders from one source, with a cache and a progress bar; every run learns the graded requests, too."""

    def __init__(
        self, source: str, seed: int, *, graded: Graded | None = None, cache: bool = True, progress: bool = True
    ) -> None:
        self.cache, self._graded = cache, graded
        self._source, self._seed, self._progress, self._store = source, seed, progress, ArrayCache(cache)

    def validate(
        self, texts: Sequence[str], shares: Singles, held: Sequence[str], truth: Labels, recipe: Recipe, what: str
    ) -> ValidationRun:
        """Train on some texts and predict others."""
        key = (*self._key(texts, shares, recipe, TRAINING_CODE), list(held), truth.tolist())
        found = self._store.get("validation", key, lambda: self._validate(texts, shares, held, truth, recipe, what))
        return ValidationRun(found["logits"], tuple((int(seen), float(f1)) for seen, f1 in found["curve"]))

    def train(
        self, texts: Sequence[str], shares: Singles, held: Sequence[str], recipe: Recipe, n_check: int, what: str
    ) -> EncoderFiles:
        """Train on some texts and export the encoder, checked on `n_check` texts against its reference."""
        key = (*self._key(texts, shares, recipe, EXPORT_CODE), list(held), n_check)
        found = self._store.get("encoder", key, lambda: self._train(texts, shares, held, recipe, n_check, what))
        meta = json.loads(found["meta"].tobytes())
        return EncoderFiles(
            model=found["model"].tobytes(),
            tokenizer=found["tokenizer"].tobytes(),
            all_weights=found["weights"],
            all_bias=found["bias"],
            exported=Exported(**meta["exported"]),
            held_logits=found["held_logits"],
            seconds=meta["seconds"],
            examples=meta["examples"],
        )

    def _key(self, texts: Sequence[str], shares: Singles, recipe: Recipe, code: Sequence[str]) -> tuple[Any, ...]:
        """Return what a result depends on; other training code makes another encoder."""
        here = Path(__file__).parent
        digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in code)).hexdigest()
        graded = (
            []
            if self._graded is None
            else [self._graded.texts, self._graded.grades.tolist(), self._graded.family.tolist()]
        )
        return list(texts), shares.tolist(), graded, asdict(recipe), self._source, self._seed, digest

    def _finetune(
        self, texts: Sequence[str], shares: Singles, recipe: Recipe, what: str, checkpoint: Checkpoint, checkpoints: int
    ) -> Tuned:
        release_memory()
        targets, texts = Targets.of_labels(shares), list(texts)
        if self._graded is not None:
            targets, texts = targets + self._graded.targets, texts + self._graded.texts
        with _Bar(self._progress, what) as progress:
            return finetune(
                texts,
                targets,
                recipe,
                source=self._source,
                seed=self._seed,
                what=what,
                progress=progress,
                checkpoint=checkpoint,
                checkpoints=checkpoints,
            )

    def _validate(
        self, texts: Sequence[str], shares: Singles, held: Sequence[str], truth: Labels, recipe: Recipe, what: str
    ) -> Arrays:
        curve: list[tuple[int, float]] = []
        last = np.zeros((len(held), 4), dtype=np.float32)

        def judge(seen: int, ended: bool, logits_of: Logits) -> None:
            chosen = slice(None) if ended else slice(None, None, max(1, len(held) // CURVE_ROWS))
            logits = logits_of(held[chosen])[:, : len(LABELS)]
            if ended:
                last[:] = logits
            curve.append((seen, classification_figures(softmax(logits), truth[chosen])["macro_f1"]))

        self._finetune(texts, shares, recipe, what, judge, 4)
        release_memory()
        return {"logits": last, "curve": np.array(curve, dtype=np.float64)}

    def _train(
        self, texts: Sequence[str], shares: Singles, held: Sequence[str], recipe: Recipe, n_check: int, what: str
    ) -> Arrays:
        held_logits = np.zeros((len(held), 4), dtype=np.float32)

        def judge(seen: int, ended: bool, logits_of: Logits) -> None:
            held_logits[:] = logits_of(held)[:, : len(LABELS)]

        tuned = self._finetune(texts, shares, recipe, what, judge, 1)
        release_memory()  # what the optimiser held, before the export needs as much
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            exported = export_encoder(tuned.encoder, folder, texts[:n_check])
            weights = widened(tuned.weights, OnnxEmbedder(folder / ENCODER, folder / TOKENIZER).dim)
            model, tokenizer = (folder / ENCODER).read_bytes(), (folder / TOKENIZER).read_bytes()
        meta = {"exported": asdict(exported), "seconds": tuned.seconds, "examples": tuned.examples}
        arrays = {"weights": weights, "bias": tuned.bias, "held_logits": held_logits}
        del tuned
        release_memory()
        content = {"model": model, "tokenizer": tokenizer, "meta": json.dumps(meta).encode()}
        return arrays | {name: np.frombuffer(data, dtype=np.uint8) for name, data in content.items()}


class _Bar:
    """A progress bar over training examples with the time left; silent where progress is off."""

    def __init__(self, enabled: bool, what: str) -> None:
        from tqdm import tqdm

        interval_s = 0.5 if sys.stderr.isatty() else 60.0  # in a log, once a minute
        self._tqdm = tqdm(desc=what, unit=" examples", disable=not enabled, leave=False, mininterval=interval_s)

    def __enter__(self) -> ProgressCallback:
        return self._update

    def __exit__(self, *_: object) -> None:
        self._tqdm.close()

    def _update(self, seen: int, planned: int, loss: float) -> None:
        self._tqdm.total = planned
        self._tqdm.set_postfix(loss=f"{loss:.2f}", refresh=False)
        self._tqdm.update(seen - self._tqdm.n)
