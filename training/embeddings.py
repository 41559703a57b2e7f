"""Sentence vectors kept on disk by joblib, so that a second fit on the same texts does not compute them again."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Memory
from numpy.typing import NDArray

from router_ml.bundles.format import ENCODER, TOKENIZER, file_sha256
from router_ml.decide.features.onnx import OnnxEmbedder


def cache_dir() -> Path:
    """ROUTER_ML_CACHE_DIR, else `router_ml` under the user's cache folder."""
    chosen = os.environ.get("ROUTER_ML_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(chosen) if chosen else Path(base) / "router_ml").expanduser()


def memory(enabled: bool = True) -> Memory:
    """The joblib cache; switched off it computes anew each time."""
    return Memory(cache_dir() if enabled else None, verbose=0)


class CachedEmbedder:
    """An exported encoder whose vectors are remembered per batch of texts, by the hash of the encoder's file."""

    def __init__(self, folder: Path, *, threads: int = 1, enabled: bool = True) -> None:
        self._embedder = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER, threads=threads)
        self._digest = file_sha256(folder / ENCODER)
        self._compute = memory(enabled).cache(_embed, ignore=["embedder"])

    @property
    def name(self) -> str:
        return self._embedder.name

    @property
    def dim(self) -> int:
        return self._embedder.dim

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (len(texts), dim)."""
        if len(texts) < 64:  # not worth a file
            return self._embedder.embed(texts)
        vectors: NDArray[np.float32] = self._compute(self._digest, tuple(texts), self._embedder)
        return vectors


def _embed(digest: str, texts: tuple[str, ...], embedder: Any) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = embedder.embed(texts)
    return vectors


def frozen_vectors(texts: Sequence[str], source: str | None = None) -> NDArray[np.float32]:
    """Sentence vectors of the untuned encoder (n, d), without its middle layer's part; remembered."""
    from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER

    compute = memory().cache(_frozen)
    vectors: NDArray[np.float32] = compute(tuple(texts), source or DEFAULT_ENCODER)
    return vectors


def _frozen(texts: tuple[str, ...], source: str) -> NDArray[np.float32]:
    import tempfile

    from router_ml.decide.features.sentence_transformer import load_sentence_transformer
    from training.complexity.encoder_export import export_encoder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encoder = load_sentence_transformer(source, device="cpu")
        dim = int(encoder.get_embedding_dimension())
        export_encoder(encoder, folder, texts[:32])
        del encoder
        release_memory()
        vectors = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER, threads=1).embed(texts)[:, :dim]
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def release_memory() -> None:
    """Hand freed pages back: the C library keeps them, and those of several trainings in one process would add up."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
