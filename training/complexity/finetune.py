"""Fine-tune the sentence encoder on complexity and difficulty; serving it still takes one encoder pass.

Linear heads on the normalised [CLS, mean] vector: cross-entropy for the labels (shares of four where labellers
differed) and the task family, a smooth absolute error for the difficulty. A row counts for what it has. The length of a
run is a number of examples, so it is the same on every machine; processors differ in rounding alone. On two CPU cores
it takes minutes: of the token table only the rows that a batch reads are touched, batches hold texts of similar length,
and the arithmetic is bfloat16 where the processor has instructions for it.

The token table is trained, too, since rare word pieces are known least. Adagrad (Duchi et al. 2011, JMLR 12:2121-2159)
gives rare pieces large steps and common ones small steps.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.decide.features.onnx import MAX_TOKENS as SERVED_TOKENS
from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER, load_sentence_transformer
from router_ml.types import LABELS, TASK_FAMILIES
from training.arrays import Labels, Singles
from training.measuring.progress import duration

log = logging.getLogger(__name__)

MAX_PART_TOKENS = 1024
STEP_COST = 1.25  # time of a whole optimiser step over that of its forward and backward pass
TIMINGS = 3  # of which the fastest counts
N_OUTPUTS = len(LABELS) + 1 + len(TASK_FAMILIES)
DIFFICULTY, FAMILIES = len(LABELS), slice(len(LABELS) + 1, N_OUTPUTS)  # their places among the outputs
QUICK_SHARE = 0.1  # of the examples, for a fit that is only tried out

ProgressCallback = Callable[[int, int, float], None]  # examples seen, examples in all, running loss
Logits = Callable[[Sequence[str]], Singles]  # texts to outputs (n, N_OUTPUTS)
Checkpoint = Callable[[int, bool, Logits], None]  # examples seen, whether these were all, logits of texts


@dataclass(frozen=True, slots=True)
class Targets:
    """What n texts are tuned towards."""

    labels: Singles  # (n, 4) shares; zeros where there is no label
    difficulty: Singles  # (n,) standardised; NaN where there is none
    family: Labels  # (n,) index into TASK_FAMILIES; -1 where there is none

    @classmethod
    def of_labels(cls, labels: Labels | Singles) -> Targets:
        """Return the targets of texts that have labels (0..3) or shares of labels (n, 4) alone."""
        shares = np.eye(len(LABELS), dtype=np.float32)[labels] if labels.ndim == 1 else labels
        n = len(shares)
        return cls(shares.astype(np.float32), np.full(n, np.nan, np.float32), np.full(n, -1, np.int64))

    def __len__(self) -> int:
        return len(self.family)

    def __add__(self, other: Targets) -> Targets:
        return Targets(
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.difficulty, other.difficulty]),
            np.concatenate([self.family, other.family]),
        )

    def rows(self, index: Any) -> Targets:
        """Return some of the rows."""
        return Targets(self.labels[index], self.difficulty[index], self.family[index])


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the encoder is tuned."""

    name: str = "tuned"
    epochs: float = 2.0
    max_examples: int | None = None  # bounds the training time on large data; epochs over fewer rows stay whole
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    token_learning_rate: float = 1e-2  # of the token table; 0 leaves it as it is
    batch_size: int = 32
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    dropout: float = 0.1
    scale: float = 20.0  # of the unit vector before the head
    max_tokens: int = 128
    difficulty_weight: float = 0.5  # of its loss beside that of the labels
    family_weight: float = 0.2

    def examples(self, rows: int) -> int:
        """Return how many examples a run over so many rows sees: the same on every machine."""
        wanted = round(rows * self.epochs)
        if self.max_examples is not None:
            wanted = min(wanted, self.max_examples)
        return max(wanted, self.batch_size) if wanted else 0

    def quick(self) -> Recipe:
        """Return the recipe with a tenth of the examples: to try a fit out, not to serve it."""
        limit = None if self.max_examples is None else round(self.max_examples * QUICK_SHARE)
        return replace(self, name=f"{self.name}-quick", epochs=self.epochs * QUICK_SHARE, max_examples=limit)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How this processor trains: bfloat16 where it has instructions for it, threads as measured."""

    threads: int
    bfloat16: bool
    seconds_per_batch: float


@dataclass(frozen=True)
class Tuned:
    """A tuned encoder (a sentence-transformers model) and the heads it was tuned with.

    The heads are four labels, the standardised difficulty and the task families: `N_OUTPUTS` in all."""

    encoder: Any
    weights: Singles  # (outputs, dim), acts on unit vectors
    bias: Singles  # (outputs,)
    seconds: float
    examples: int


def pooled_encoder(source: str | Path, max_tokens: int) -> Any:
    """Load a sentence-transformers model; its vector is the CLS state beside the mean, normalised as a whole."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = load_sentence_transformer(source, device="cpu")[0]
    transformer.max_seq_length = max_tokens
    pooling = Pooling(int(transformer.get_embedding_dimension()), pooling_mode=("cls", "mean"))
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def finetune(
    texts: Sequence[str],
    targets: Targets,
    recipe: Recipe,
    *,
    source: str | Path = DEFAULT_ENCODER,
    seed: int = 0,
    what: str = "training",
    progress: ProgressCallback | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoints: int = 4,
) -> Tuned:
    """Tune an encoder on texts and their targets; with a recipe of no epochs it stays as it is.

    `what` names the run in the log line that estimates its time. `checkpoint` is called `checkpoints` times at equal
    distances, the last time at the end, for a learning curve.
    Raises what `progress` and `checkpoint` raise; a run that is interrupted returns nothing."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    encoder = pooled_encoder(source, recipe.max_tokens)
    rows = _tokenise(encoder, texts, recipe.max_tokens)
    session = _Session(encoder, recipe)
    planned = recipe.examples(len(rows))
    if not planned:
        return session.finish(0.0, 0)
    arithmetic = _fastest(session, rows, targets, recipe.batch_size)
    session.use(arithmetic)
    torch.manual_seed(seed)  # timing drew random numbers, more or fewer depending on the number of cores
    session.schedule(max(1, planned // recipe.batch_size))
    expected_s = planned / recipe.batch_size * arithmetic.seconds_per_batch * STEP_COST
    log.info("%s: %d examples, about %s at the speed measured now", what, planned, duration(expected_s))
    started, seen, running = time.monotonic(), 0, float(np.log(len(LABELS)))
    marks = [planned * k // checkpoints for k in range(1, checkpoints + 1)]
    for batch in _batches(rows, recipe.batch_size, planned, rng):
        running += 0.05 * (session.step([rows[i] for i in batch], targets.rows(batch)) - running)
        seen += len(batch)
        if progress is not None:
            progress(min(seen, planned), planned, running)
        if checkpoint is not None and marks and seen >= marks[0]:
            marks = [mark for mark in marks if mark > seen]
            checkpoint(seen, not marks, session.logits_of)
    return session.finish(time.monotonic() - started, seen)


class _Session:
    """The encoder, the head and the optimiser of one run."""

    def __init__(self, encoder: Any, recipe: Recipe) -> None:
        import torch

        self.encoder, self.recipe, self._torch = encoder, recipe, torch
        self._body = encoder[0].auto_model
        tokens = self._body.get_input_embeddings()
        tokens.requires_grad_(False)
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # else torch warns
        self._head = torch.nn.Linear(int(encoder.get_embedding_dimension()), N_OUTPUTS)
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
        """Set a linear warm-up, then a linear decay to zero."""
        warm = max(1, round(steps * self.recipe.warmup))

        def share(step: int) -> float:
            return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

        self._schedulers = [self._torch.optim.lr_scheduler.LambdaLR(o, share) for o in self._optimizers]

    def step(self, rows: Sequence[Sequence[int]], targets: Targets) -> float:
        """Take one optimiser step and return the loss."""
        torch = self._torch
        self.encoder.train()
        self._zero_gradients()
        total = 0.0
        for part in _parts(rows):  # long texts in smaller portions: the memory of one backward pass stays small
            loss, labelled = self._loss(self._logits(rows[part]), targets.rows(part))
            (loss / len(rows)).backward()
            total += float(labelled) / len(rows)
        torch.nn.utils.clip_grad_norm_(self._dense, 1.0)
        for part_of_step in (*self._optimizers, *self._schedulers):
            part_of_step.step()
        return total

    def _loss(self, outputs: Any, targets: Targets) -> tuple[Any, Any]:
        """Return the weighted sum of the rows' losses, and that of the labels alone."""
        torch, functional = self._torch, self._torch.nn.functional
        shares, family = torch.from_numpy(targets.labels), torch.from_numpy(targets.family)
        known, hard = torch.from_numpy(np.isfinite(targets.difficulty)), torch.from_numpy(targets.difficulty)
        labels = -(shares * functional.log_softmax(outputs[:, : len(LABELS)], dim=1)).sum()
        families = functional.cross_entropy(outputs[:, FAMILIES], family, ignore_index=-1, reduction="sum")
        error = functional.smooth_l1_loss(outputs[known, DIFFICULTY], hard[known], reduction="sum")
        weighted = labels + self.recipe.family_weight * families + self.recipe.difficulty_weight * error
        return weighted, labels.detach()

    def timed(self, rows: Sequence[Sequence[int]], targets: Targets, arithmetic: Arithmetic) -> float:
        """Return the seconds of one forward and backward pass that changes nothing."""
        self.use(arithmetic)
        self.encoder.train()
        started = time.monotonic()
        self._loss(self._logits(rows), targets)[0].backward()
        elapsed = time.monotonic() - started
        self._zero_gradients()
        return elapsed

    def _zero_gradients(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def logits_of(self, texts: Sequence[str]) -> Singles:
        """Return the outputs (n, N_OUTPUTS) for texts, in evaluation mode."""
        rows = _tokenise(self.encoder, texts, self.recipe.max_tokens)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.zeros((len(rows), N_OUTPUTS), dtype=np.float32)
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
            weight = mask.unsqueeze(-1).float()
            mean = (hidden * weight).sum(1) / weight.sum(1)
            vector = torch.nn.functional.normalize(torch.cat([hidden[:, 0], mean], dim=1), dim=1)
            vector = vector * self.recipe.scale
            logits = self._head(self._dropout(vector) if self.encoder.training else vector)
        return logits.float()


def _parts(rows: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Yield slices of a batch of at most `MAX_PART_TOKENS` padded tokens."""
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


def _fastest(session: _Session, rows: list[list[int]], targets: Targets, size: int) -> Arithmetic:
    """Time one average batch with one thread and with several, which on a busy machine can be slower.

    The number of threads changes rounding alone; bfloat16, which changes more, depends on the processor only."""
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batch = by_length[len(by_length) * 6 // 10 :][:size]
    chosen, truth = [rows[i] for i in batch], targets.rows(batch)
    bfloat16 = _has_bfloat16(session._torch)
    measured = []
    for threads in sorted({1, min(os.cpu_count() or 1, 4)}):
        candidate = Arithmetic(threads, bfloat16, 0.0)
        seconds = min(session.timed(chosen, truth, candidate) for _ in range(TIMINGS))
        measured.append(replace(candidate, seconds_per_batch=seconds))
    best = min(measured, key=lambda one: one.seconds_per_batch)
    log.info(
        "training with %d threads, bfloat16 %s: %.0f ms a batch",
        best.threads,
        best.bfloat16,
        best.seconds_per_batch * 1e3,
    )
    return best


def _has_bfloat16(torch: Any) -> bool:
    """Return whether the processor multiplies bfloat16 natively; without that it is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


def _batches(rows: list[list[int]], size: int, planned: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield batches of texts of similar length, in random order, until `planned` examples were seen."""
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
