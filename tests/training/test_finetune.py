"""The schedule of a training run, its batches, and the cache of vectors."""

from __future__ import annotations

import collections
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router_ml.bundles.format import ENCODER
from training.cache import ArrayCache, cache_dir
from training.complexity.finetune import (
    DIFFICULTY,
    Recipe,
    Targets,
    _batches,
    _parts,
    _Session,
)
from training.embeddings import CachedEmbedder


def test_the_schedule_is_a_number_of_examples() -> None:
    """Nothing but the rows and the recipe decides it: no clock, no processor."""
    assert Recipe(epochs=2.0).examples(1000) == 2000
    assert Recipe(epochs=0.5).examples(1000) == 500
    assert Recipe(epochs=3.0, max_examples=2500).examples(1000) == 2500
    assert Recipe(epochs=0.001).examples(1000) == 32  # one batch at least
    assert Recipe(epochs=0.0).examples(1000) == 0


def test_a_quick_recipe_has_a_tenth_of_the_examples_and_another_name() -> None:
    quick = Recipe(epochs=3.0, max_examples=20_000).quick()
    assert quick.examples(1000) == 300
    assert quick.examples(100_000) == 2000
    assert quick.name == "tuned-quick"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 32), st.floats(0.1, 3))
def test_batches_see_every_row_before_any_row_again(lengths: list[int], size: int, epochs: float) -> None:
    rows = [[7] * length for length in lengths]
    planned = max(1, round(len(rows) * epochs))
    seen: collections.Counter[int] = collections.Counter()
    for batch in _batches(rows, size, planned, np.random.default_rng(0)):
        assert 0 < len(batch) <= size
        seen.update(int(i) for i in batch)
    assert sum(seen.values()) == planned
    times = [seen[i] for i in range(len(rows))]
    assert max(times) - min(times) <= 1


@given(st.lists(st.integers(1, 300), min_size=1, max_size=64))
def test_parts_cover_a_batch_in_order(lengths: list[int]) -> None:
    rows = [[0] * length for length in lengths]
    covered = [row for part in _parts(rows) for row in rows[part]]
    assert covered == rows


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROUTER_ML_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_vectors_are_computed_once(tiny_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    texts = [f"text number {i}" for i in range(70)]
    first = CachedEmbedder(tiny_bundle).embed(texts)
    again = CachedEmbedder(tiny_bundle)
    monkeypatch.setattr(again, "_embedder", None)  # nothing left that could compute
    assert again.embed(texts).tolist() == first.tolist()
    assert first.shape == (70, 32)


def test_another_encoder_is_never_served_from_the_cache(tiny_bundle: Path, cache: Path, tmp_path: Path) -> None:
    import shutil

    texts = [f"text number {i}" for i in range(70)]
    CachedEmbedder(tiny_bundle).embed(texts)
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    data = bytearray((other / ENCODER).read_bytes())
    position = data.find(np.float32(1.0).tobytes() * 16)  # the scale of a layer's normalisation
    data[position : position + 64] = np.linspace(0.5, 2, 16).astype(np.float32).tobytes()
    (other / ENCODER).write_bytes(bytes(data))
    assert CachedEmbedder(other).embed(texts) != pytest.approx(CachedEmbedder(tiny_bundle).embed(texts), abs=1e-4)


def test_few_texts_and_a_cache_switched_off_write_nothing(tiny_bundle: Path, cache: Path) -> None:
    CachedEmbedder(tiny_bundle, enabled=False).embed(["x"] * 70)
    CachedEmbedder(tiny_bundle).embed(["x"] * 10)
    assert not list(cache.rglob("*.npz"))


def test_the_cache_holds_no_text_and_is_its_owners(tiny_bundle: Path, cache: Path) -> None:
    CachedEmbedder(tiny_bundle).embed([f"a secret {i} of mine" for i in range(70)])
    (entry,) = [path for path in cache.rglob("*") if path.is_file()]
    assert b"secret" not in entry.read_bytes()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert stat.S_IMODE(entry.parent.stat().st_mode) == 0o700


def test_what_older_versions_cached_with_its_texts_is_removed(cache: Path) -> None:
    old = cache / "joblib" / "training" / "metadata.json"
    old.parent.mkdir(parents=True)
    old.write_text("a secret")
    ArrayCache()
    assert not old.exists()


def test_an_entry_nobody_used_for_a_month_is_forgotten(cache: Path) -> None:
    ArrayCache().get("kind", ["old"], lambda: {"x": np.ones(1)})
    ArrayCache().get("kind", ["new"], lambda: {"x": np.ones(1)})
    old, _ = sorted((cache / "arrays").iterdir(), key=lambda path: path.stat().st_mtime)
    os.utime(old, (0, 0))
    ArrayCache()
    assert [path.exists() for path in (old, *(cache / "arrays").iterdir())] == [False, True]


def test_a_cache_that_others_may_write_is_not_read(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    ArrayCache().get("kind", ["key"], lambda: {"x": np.zeros(1)})
    (cache / "arrays").chmod(0o777)
    assert ArrayCache().get("kind", ["key"], lambda: {"x": np.ones(1)})["x"] == 1
    assert "can be written by others" in caplog.text
    (cache / "arrays").chmod(0o700)
    (entry,) = (cache / "arrays").iterdir()
    entry.chmod(0o666)
    assert ArrayCache().get("kind", ["key"], lambda: {"x": np.ones(1)})["x"] == 1


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_entry_is_computed_anew(cache: Path, content: bytes) -> None:
    ArrayCache().get("kind", ["key"], lambda: {"x": np.zeros(1)})
    (entry,) = (cache / "arrays").iterdir()
    entry.write_bytes(content)
    assert ArrayCache().get("kind", ["key"], lambda: {"x": np.ones(1)})["x"] == 1


def test_pickles_in_an_entry_are_never_loaded(cache: Path) -> None:
    ArrayCache().get("kind", ["key"], lambda: {"x": np.zeros(1)})
    (entry,) = (cache / "arrays").iterdir()
    np.savez(entry, x=np.array([object()], dtype=object))
    assert ArrayCache().get("kind", ["key"], lambda: {"x": np.ones(1)})["x"] == 1


class _Words(torch.nn.Module):
    """An encoder of a table alone: what a session asks of one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 4)
        self.dense = torch.nn.Linear(4, 4)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.dense(self.table(input_ids)))


class _Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = SimpleNamespace(auto_model=_Words())

    def __getitem__(self, _: int) -> SimpleNamespace:
        return self.body

    def get_embedding_dimension(self) -> int:
        return 8


@pytest.mark.parametrize(("rate", "moved"), [(0.01, {3, 7, 9}), (0.0, set())])
def test_of_the_token_table_only_what_was_read_learns(rate: float, moved: set[int]) -> None:
    torch.manual_seed(0)
    encoder = _Encoder()
    table = encoder.body.auto_model.table.weight
    before = table.detach().clone()
    session = _Session(encoder, Recipe(token_learning_rate=rate, dropout=0.0))
    session.schedule(4)
    losses = [session.step([[3, 7], [9, 3]], Targets.of_labels(np.array([0, 1]))) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert set(np.flatnonzero((table.detach() != before).any(dim=1).numpy())) == moved


def test_a_row_counts_for_what_it_has() -> None:
    session = _Session(_Encoder(), Recipe(dropout=0.0, difficulty_weight=0.5, family_weight=0.2))
    outputs = torch.zeros(3, 10)
    outputs[1, DIFFICULTY] = 3.0
    targets = Targets(
        np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0.5, 0.5, 0, 0]], np.float32),
        np.array([np.nan, 1.0, np.nan], np.float32),
        np.array([-1, 2, -1]),
    )
    loss, labels = session._loss(outputs, targets)
    assert float(labels) == pytest.approx(2 * np.log(4))  # two labelled rows of four equal logits
    smooth_l1 = 2.0 - 0.5  # beyond an error of 1 it is the error less a half
    assert float(loss) == pytest.approx(2 * np.log(4) + 0.2 * np.log(5) + 0.5 * smooth_l1)
