"""Sentence vectors, cached so that a second fit on the same texts does not compute them again."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.bundles.format import ENCODER, TOKENIZER, file_sha256
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER, load_sentence_transformer
from training.arrays import Singles
from training.cache import ArrayCache

MIN_CACHED_TEXTS = 64  # fewer are not cached


class CachedEmbedder:
    """An exported encoder whose vectors are cached per batch of texts, by the hash of the encoder's file."""

    def __init__(self, folder: Path, *, threads: int = 1, enabled: bool = True) -> None:
        self._embedder = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER, threads=threads)
        self._digest = file_sha256(folder / ENCODER)
        self._cache = ArrayCache(enabled)

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self._embedder.name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._embedder.dim

    def embed(self, texts: Sequence[str]) -> Singles:
        """Return vectors of shape (len(texts), dim)."""
        if len(texts) < MIN_CACHED_TEXTS:
            return self._embedder.embed(texts)
        key = (self._digest, list(texts))
        vectors: Singles = self._cache.get("vectors", key, lambda: {"vectors": self._embedder.embed(texts)})["vectors"]
        return vectors


def frozen_vectors(texts: Sequence[str], source: str = DEFAULT_ENCODER, *, cache: bool = True) -> Singles:
    """Return sentence vectors (n, d) of an encoder that was not tuned, without its middle layer's part."""
    key = (source, list(texts))
    vectors: Singles = ArrayCache(cache).get("frozen", key, lambda: {"vectors": _frozen(texts, source)})["vectors"]
    return vectors


def _frozen(texts: Sequence[str], source: str) -> Singles:
    from training.complexity.encoder_export import export_encoder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encoder = load_sentence_transformer(source, device="cpu")
        dim = int(encoder.get_embedding_dimension())
        export_encoder(encoder, folder, texts[:32])
        del encoder
        release_memory()
        vectors = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER, threads=1).embed(texts)[:, :dim]
    unit: Singles = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def release_memory() -> None:
    """Return freed pages to the system: the C library keeps them, and those of several trainings would add up."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
