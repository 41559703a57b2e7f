"""Fine-tunes the sentence encoder on the complexity labels; at serving it is still one encoder pass.

Cross-entropy through a linear head on the normalised [CLS, mean] vector. A frozen MiniLM cannot read complexity off
tricky wording; a few passes over the labels teach it, and the vectors become better for predicting outcomes, too. On
two CPU cores this takes minutes: of the token table only the rows that a batch reads are touched, short batches hold
texts of like length, and the arithmetic is bfloat16 where this processor is faster with it.

The token table learns, too, since an encoder made for English knows little of the word pieces of other languages.
Adagrad (Duchi et al. 2011, JMLR 12:2121-2159) moves a rare piece far and a common one little.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.features.onnx import MAX_TOKENS as SERVED_TOKENS
from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER, load_sentence_transformer
from router_ml.types import LABELS

log = logging.getLogger(__name__)

MAX_PART_TOKENS = 1024
OPTIMISER_SHARE = 1.25  # time of a whole step over that of its forward and backward pass

Progress = Callable[[int, int, float], None]  # examples seen, examples in all, running loss
Logits = Callable[[Sequence[str]], NDArray[np.float32]]
Checkpoint = Callable[[int, bool, Logits], None]  # examples seen, whether these were all, logits of texts


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the encoder is tuned."""

    name: str = "tuned"
    epochs: float = 2.0
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    token_learning_rate: float = 1e-2  # of the token table; 0 leaves it as it is
    batch_size: int = 32
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    dropout: float = 0.1
    scale: float = 20.0  # the unit vector is stretched by this before the head
    max_tokens: int = 128
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The fastest way to train on this processor, as measured."""

    threads: int
    bfloat16: bool
    seconds_per_batch: float


@dataclass(frozen=True)
class Tuned:
    """A tuned encoder (a sentence-transformers model) and the head it was tuned with."""

    encoder: Any
    weights: NDArray[np.float32]  # (4, dim), acts on unit vectors
    bias: NDArray[np.float32]  # (4,)
    seconds: float
    examples: int


def pooled_encoder(source: str | Path, max_tokens: int) -> Any:
    """A sentence-transformers model whose vector is the CLS state beside the mean, normalised as a whole."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = load_sentence_transformer(source, device="cpu")[0]
    transformer.max_seq_length = max_tokens
    pooling = Pooling(int(transformer.get_embedding_dimension()), pooling_mode=("cls", "mean"))
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def finetune(
    texts: Sequence[str],
    labels: NDArray[np.int64],
    recipe: Recipe,
    *,
    source: str | Path = DEFAULT_ENCODER,
    seed: int = 0,
    seconds: float | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoints: int = 4,
) -> Tuned:
    """Tune an encoder on texts and their labels (0..3); with a recipe of no epochs it stays as it is.

    `seconds` bounds the training time: where the measured speed would not allow all epochs, the schedule is shortened
    before it begins. `checkpoint` is called `checkpoints` times at equal distances, the last time at the end,
    for a learning curve."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    encoder = pooled_encoder(source, recipe.max_tokens)
    rows = _tokenise(encoder, texts, recipe.max_tokens)
    session = _Session(encoder, recipe, seed)
    if not recipe.epochs:
        return session.finish(0.0, 0)
    arithmetic = _fastest(session, rows, labels, recipe.batch_size)
    session.use(arithmetic)
    planned = _planned_examples(len(rows), recipe, arithmetic, seconds)
    session.schedule(max(1, planned // recipe.batch_size))
    started, seen, running = time.monotonic(), 0, float(np.log(len(LABELS)))
    marks = [planned * k // checkpoints for k in range(1, checkpoints + 1)]
    for batch in _batches(rows, recipe.batch_size, planned, rng):
        running += 0.05 * (session.step([rows[i] for i in batch], labels[batch]) - running)
        seen += len(batch)
        if progress is not None:
            progress(min(seen, planned), planned, running)
        if checkpoint is not None and marks and seen >= marks[0]:
            marks = [mark for mark in marks if mark > seen]
            checkpoint(seen, not marks, session.logits_of)
    return session.finish(time.monotonic() - started, seen)


class _Session:
    """The encoder, the head and the optimiser of one run."""

    def __init__(self, encoder: Any, recipe: Recipe, seed: int) -> None:
        import torch

        self.encoder, self.recipe, self._torch = encoder, recipe, torch
        self._body = encoder[0].auto_model
        tokens = self._body.get_input_embeddings()
        tokens.requires_grad_(False)
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # else torch warns
        self._head = torch.nn.Linear(int(encoder.get_embedding_dimension()), len(LABELS))
        self._dropout = torch.nn.Dropout(recipe.dropout)
        self._dense = [p for p in self._body.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(
            [
                {"params": self._dense, "lr": recipe.learning_rate},
                {"params": list(self._head.parameters()), "lr": recipe.head_learning_rate},
            ],
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._optimizers: list[Any] = [adam]
        if recipe.token_learning_rate:
            tokens.requires_grad_(True)
            tokens.sparse = True
            self._optimizers.append(torch.optim.Adagrad(tokens.parameters(), lr=recipe.token_learning_rate))
        self._bfloat16 = False
        self._schedulers: list[Any] = []

    def use(self, arithmetic: Arithmetic) -> None:
        self._torch.set_num_threads(arithmetic.threads)
        self._bfloat16 = arithmetic.bfloat16

    def schedule(self, steps: int) -> None:
        """A linear warm-up, then a linear decay to zero."""
        warm = max(1, round(steps * self.recipe.warmup))

        def share(step: int) -> float:
            return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

        self._schedulers = [self._torch.optim.lr_scheduler.LambdaLR(o, share) for o in self._optimizers]

    def step(self, rows: Sequence[Sequence[int]], labels: NDArray[np.int64]) -> float:
        """One optimiser step; returns the loss."""
        torch = self._torch
        self.encoder.train()
        self._forget_gradients()
        total = 0.0
        for part in _parts(rows):  # long texts in smaller portions: the memory of one backward pass stays small
            target = torch.from_numpy(np.asarray(labels[part], dtype=np.int64))
            logits = self._logits(rows[part])
            loss = torch.nn.functional.cross_entropy(logits, target, label_smoothing=self.recipe.label_smoothing)
            share = len(target) / len(rows)
            (loss * share).backward()
            total += float(loss.detach()) * share
        torch.nn.utils.clip_grad_norm_(self._dense, 1.0)
        for part_of_step in (*self._optimizers, *self._schedulers):
            part_of_step.step()
        return total

    def trial(self, rows: Sequence[Sequence[int]], labels: NDArray[np.int64], arithmetic: Arithmetic) -> float:
        """Seconds of one forward and backward pass that changes nothing."""
        self.use(arithmetic)
        self.encoder.train()
        target = self._torch.from_numpy(np.asarray(labels, dtype=np.int64))
        started = time.monotonic()
        self._torch.nn.functional.cross_entropy(self._logits(rows), target).backward()  # type: ignore[no-untyped-call]
        elapsed = time.monotonic() - started
        self._forget_gradients()
        return elapsed

    def _forget_gradients(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def logits_of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Logits (n, 4) of texts, in evaluation mode."""
        rows = _tokenise(self.encoder, texts, self.recipe.max_tokens)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.zeros((len(rows), len(LABELS)), dtype=np.float32)
        self.encoder.eval()
        with self._torch.inference_mode():
            for start in range(0, len(order), 32):
                chosen = order[start : start + 32]
                out[chosen] = self._logits([rows[i] for i in chosen]).numpy()
        return out

    def finish(self, seconds: float, examples: int) -> Tuned:
        self.encoder.eval()
        self.encoder.max_seq_length = SERVED_TOKENS
        weights = self._head.weight.detach().float().numpy() * np.float32(self.recipe.scale)
        return Tuned(self.encoder, weights, self._head.bias.detach().float().numpy(), seconds, examples)

    def _logits(self, rows: Sequence[Sequence[int]]) -> Any:
        torch = self._torch
        ids, mask = _padded(torch, rows)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
            hidden = self._body(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            kept = mask.unsqueeze(-1).float()
            mean = (hidden * kept).sum(1) / kept.sum(1)
            vector = torch.nn.functional.normalize(torch.cat([hidden[:, 0], mean], dim=1), dim=1)
            vector = vector * self.recipe.scale
            logits = self._head(self._dropout(vector) if self.encoder.training else vector)
        return logits.float()


def _parts(rows: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Slices of a batch of at most `MAX_PART_TOKENS` padded tokens."""
    size = max(1, MAX_PART_TOKENS // max(map(len, rows)))
    for start in range(0, len(rows), size):
        yield slice(start, start + size)


def _tokenise(encoder: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    ids: list[list[int]] = encoder.tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return ids


def _padded(torch: Any, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _fastest(session: _Session, rows: list[list[int]], labels: NDArray[np.int64], size: int) -> Arithmetic:
    """Time one average batch with each kind of arithmetic: two threads can be slower than one on a busy machine, and
    bfloat16 is slow on processors without it."""
    torch = session._torch
    middle = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batch = middle[len(middle) * 6 // 10 :][:size]
    cores = os.cpu_count() or 1
    best: Arithmetic | None = None
    for threads in sorted({1, min(cores, 4)}):
        for bfloat16 in (False, True):
            candidate = Arithmetic(threads, bfloat16, 0.0)
            chosen, answers = [rows[i] for i in batch], labels[batch]
            elapsed = min(session.trial(chosen, answers, candidate) for _ in range(3))
            if best is None or elapsed < best.seconds_per_batch:
                best = Arithmetic(threads, bfloat16, elapsed)
    assert best is not None
    log.info(
        "training with %d threads, bfloat16 %s: %.0f ms a batch",
        best.threads,
        best.bfloat16,
        best.seconds_per_batch * 1e3,
    )
    torch.set_num_threads(best.threads)
    return best


def _planned_examples(n: int, recipe: Recipe, arithmetic: Arithmetic, seconds: float | None) -> int:
    wanted = round(n * recipe.epochs)
    if seconds is None:
        return wanted
    affordable = int(seconds / (arithmetic.seconds_per_batch * OPTIMISER_SHARE) * recipe.batch_size)
    if affordable < wanted:
        log.warning("time for %.1f of %.1f epochs only", affordable / n, recipe.epochs)
    return max(min(wanted, affordable), recipe.batch_size)


def _batches(rows: list[list[int]], size: int, planned: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches of texts of like length, in random order, until `planned` examples were seen."""
    seen = 0
    while seen < planned:
        order = rng.permutation(len(rows))[: planned - seen]
        pools = [order[i : i + 20 * size] for i in range(0, len(order), 20 * size)]
        batches: list[list[int]] = []
        for pool in pools:
            by_length = sorted(pool.tolist(), key=lambda i: len(rows[i]))
            batches += [by_length[i : i + size] for i in range(0, len(by_length), size)]
        for index in rng.permutation(len(batches)):
            yield batches[index]
        seen += len(order)
