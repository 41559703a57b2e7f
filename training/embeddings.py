"""Sentence vectors, cached so that a second fit on the same texts does not compute them again."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_ml.bundles.format import ENCODER, TOKENIZER, file_sha256
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER, load_sentence_transformer
from router_ml.engines.engine import LOCAL, Engine, open_engine
from training.arrays import Arrays, Singles
from training.cache import ArrayCache

MIN_CACHED_TEXTS = 64  # fewer are not cached, nor sent to an engine
ENGINE_TEXTS = 64  # of one item of an engine


def vector_engine(name: str) -> Engine | None:
    """Return the engine that computes vectors; None for `local`: threads of this process use all cores already.

    Raises `InputError` for an unknown or missing one."""
    return None if name == LOCAL else open_engine(name)


@dataclass(frozen=True)
class EncoderCopy:
    """The files of an exported encoder as bytes, for processes that do not see its folder."""

    encoder: bytes
    tokenizer: bytes

    @classmethod
    def of(cls, folder: Path) -> EncoderCopy:
        """Return the encoder of a bundle's folder."""
        return cls((folder / ENCODER).read_bytes(), (folder / TOKENIZER).read_bytes())

    def open(self) -> Callable[[Sequence[str]], Singles]:
        """Return what computes vectors (texts, dim), on one thread."""
        with tempfile.TemporaryDirectory() as scratch:  # both are in memory once they are loaded
            folder = Path(scratch)
            (folder / ENCODER).write_bytes(self.encoder)
            (folder / TOKENIZER).write_bytes(self.tokenizer)
            return OnnxEmbedder(folder / ENCODER, folder / TOKENIZER, workers=1).embed


def embed_on(engine: Engine, folder: Path, texts: Sequence[str]) -> Singles:
    """Return the vectors of texts, computed on an engine by the encoder of a folder; those of this process on a
    processor of the same kind. Raises as an engine does."""
    parts = [list(texts[first : first + ENGINE_TEXTS]) for first in range(0, len(texts), ENGINE_TEXTS)]
    return np.concatenate(list(engine.map(EncoderCopy.of(folder).open, parts)))


class CachedEmbedder:
    """An exported encoder whose vectors are cached per batch of texts, by the hash of the encoder's file.

    They are computed by threads of this process, or on an engine."""

    def __init__(self, folder: Path, *, threads: int = 1, enabled: bool = True, engine: Engine | None = None) -> None:
        self._embedder = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER, threads=threads)
        self._digest = file_sha256(folder / ENCODER)
        self._cache = ArrayCache(enabled)
        self._folder, self._engine = folder, engine

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
        vectors: Singles = self._cache.get("vectors", key, lambda: {"vectors": self._computed(texts)})["vectors"]
        return vectors

    def _computed(self, texts: Sequence[str]) -> Singles:
        return self._embedder.embed(texts) if self._engine is None else embed_on(self._engine, self._folder, texts)


def frozen_vectors(
    texts: Sequence[str], source: str = DEFAULT_ENCODER, *, cache: bool = True, engine: Engine | None = None
) -> Singles:
    """Return sentence vectors (n, d) of an encoder that was not tuned, without its middle layer's part."""
    key = (source, list(texts))

    def compute() -> Arrays:
        return {"vectors": _frozen(texts, source, engine)}

    vectors: Singles = ArrayCache(cache).get("frozen", key, compute)["vectors"]
    return vectors


def _frozen(texts: Sequence[str], source: str, engine: Engine | None) -> Singles:
    from training.complexity.encoder_export import export_encoder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        encoder = load_sentence_transformer(source, device="cpu")
        dim = int(encoder.get_embedding_dimension())
        export_encoder(encoder, folder, texts[:32])
        del encoder
        release_memory()
        vectors = CachedEmbedder(folder, enabled=False, engine=engine).embed(texts)[:, :dim]
    unit: Singles = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def release_memory() -> None:
    """Return freed pages to the system: the C library keeps them, and those of several trainings would add up."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
