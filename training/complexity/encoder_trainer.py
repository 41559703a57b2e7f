"""Tuned encoders, remembered on disk: the same texts, labels, recipe and seed are never trained twice."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.bundles.format import ENCODER, TOKENIZER
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.predictors.heads import softmax
from training.complexity.encoder_export import Exported, export_encoder, widened
from training.complexity.finetune import Logits, Progress, Recipe, finetune
from training.embeddings import memory, release_memory
from training.measuring.classification import complexity_scores

Array = NDArray[np.float32]
TRAINING_CODE = ("finetune.py",)
CURVE_ROWS = 500  # judge a training run before its end; at its end all rows do
EXPORT_CODE = ("export.py", "bert_graph.py")


@dataclass(frozen=True)
class Trial:
    """What a tuned encoder said of texts it did not see."""

    logits: Array  # (n, 4)
    curve: tuple[tuple[int, float], ...]  # (examples seen, macro-F1 on those texts)
    seconds: float
    examples: int


@dataclass(frozen=True)
class EncoderFiles:
    """A tuned encoder, ready to be served, and the head it was tuned with."""

    model: bytes
    tokenizer: bytes
    weights: Array
    bias: Array
    exported: Exported
    held_logits: Array  # by the unquantised encoder, of the held-out texts
    seconds: float
    examples: int

    def write(self, folder: Path) -> None:
        """Put the two files of the encoder into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ENCODER).write_bytes(self.model)
        (folder / TOKENIZER).write_bytes(self.tokenizer)


class EncoderTrainer:
    """Trains encoders from one source, with a cache and a progress bar."""

    def __init__(self, source: str, seed: int, *, cache: bool = True, progress: bool = True) -> None:
        self.cache = cache
        self._source, self._seed, self._progress = source, seed, progress
        store = memory(cache)
        self._try = store.cache(_trial, ignore=["seconds", "progress"])
        self._make = store.cache(_files, ignore=["seconds", "progress"])
        self._trained_by, self._exported_by = _digest(TRAINING_CODE), _digest(TRAINING_CODE + EXPORT_CODE)

    def trial(
        self,
        texts: Sequence[str],
        labels: Any,
        held: Sequence[str],
        truth: Any,
        recipe: Recipe,
        seconds: float,
        what: str,
    ) -> Trial:
        """Tune on some texts and judge others with it."""
        with _bar(self._progress, what) as progress:
            result: Trial = self._try(
                tuple(texts),
                _tuple(labels),
                tuple(held),
                _tuple(truth),
                recipe,
                self._source,
                self._seed,
                self._trained_by,
                seconds,
                progress,
            )
        return result

    def files(
        self,
        texts: Sequence[str],
        labels: Any,
        held: Sequence[str],
        recipe: Recipe,
        n_check: int,
        seconds: float,
        what: str,
    ) -> EncoderFiles:
        """Tune on some texts and export the encoder; `n_check` texts hold the export to its reference."""
        with _bar(self._progress, what) as progress:
            how = (recipe, self._source, self._seed, self._exported_by)
            result: EncoderFiles = self._make(
                tuple(texts), _tuple(labels), tuple(held), *how, n_check, seconds, progress
            )
        return result


def _digest(files: Sequence[str]) -> str:
    """What stands for the code in a cache's key: other code, another encoder."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in files)).hexdigest()


def _tuple(labels: Any) -> tuple[int, ...]:
    return tuple(int(label) for label in labels)


def _trial(
    texts: tuple[str, ...],
    labels: tuple[int, ...],
    held: tuple[str, ...],
    truth: tuple[int, ...],
    recipe: Recipe,
    source: str,
    seed: int,
    code: str,
    seconds: float,
    progress: Progress,
) -> Trial:
    curve: list[tuple[int, float]] = []
    last: list[Array] = []

    def judge(seen: int, ended: bool, logits_of: Logits) -> None:
        chosen = slice(None) if ended else slice(None, None, max(1, len(held) // CURVE_ROWS))
        logits = logits_of(held[chosen])
        last[:] = [logits]
        curve.append((seen, complexity_scores(softmax(logits), np.array(truth[chosen]))["macro_f1"]))

    release_memory()
    tuned = finetune(
        texts, np.array(labels), recipe, source=source, seed=seed, seconds=seconds, progress=progress, checkpoint=judge
    )
    trial = Trial(last[0], tuple(curve), tuned.seconds, tuned.examples)
    del tuned
    release_memory()
    return trial


def _files(
    texts: tuple[str, ...],
    labels: tuple[int, ...],
    held: tuple[str, ...],
    recipe: Recipe,
    source: str,
    seed: int,
    code: str,
    n_check: int,
    seconds: float,
    progress: Progress,
) -> EncoderFiles:
    last: list[Array] = []

    def judge(seen: int, ended: bool, logits_of: Logits) -> None:
        last[:] = [logits_of(held)]

    release_memory()
    tuned = finetune(
        texts,
        np.array(labels),
        recipe,
        source=source,
        seed=seed,
        seconds=seconds,
        progress=progress,
        checkpoint=judge,
        checkpoints=1,
    )
    release_memory()  # what the optimiser held, before the export needs as much
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        exported = export_encoder(tuned.encoder, folder, texts[:n_check])
        weights = widened(tuned.weights, OnnxEmbedder(folder / ENCODER, folder / TOKENIZER).dim)
        model, tokenizer = (folder / ENCODER).read_bytes(), (folder / TOKENIZER).read_bytes()
    logits = last[0] if last else np.zeros((len(held), 4), dtype=np.float32)
    files = EncoderFiles(model, tokenizer, weights, tuned.bias, exported, logits, tuned.seconds, tuned.examples)
    del tuned
    release_memory()
    return files


class _bar:
    """A progress bar over training examples; silent where progress is off."""

    def __init__(self, enabled: bool, what: str) -> None:
        from tqdm import tqdm

        self._tqdm = tqdm(desc=what, unit=" rows", disable=not enabled, leave=False, mininterval=0.5)

    def __enter__(self) -> Progress:
        return self._update

    def __exit__(self, *_: object) -> None:
        self._tqdm.close()

    def _update(self, seen: int, planned: int, loss: float) -> None:
        self._tqdm.total = planned
        self._tqdm.set_postfix(loss=f"{loss:.2f}", refresh=False)
        self._tqdm.update(seen - self._tqdm.n)
