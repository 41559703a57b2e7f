"""Features kept instead of text: what the learned heads read of a query, small and without a word of it.

A vector is stored as 8-bit integers with one scale, the table of features in half precision: about 1.3 kB a decision in
base64. Vectors of different encoders cannot be compared, so each carries the key of the encoder that made it.

**A vector is not anonymous.** Embeddings can be inverted in part (Morris et al. 2023, arXiv 2310.06816, recover most
words of short texts from vectors of an encoder they can query, 8-bit ones included), so whoever holds the bundle and
these rows may learn the topic and often words of a query. They are kept as long as texts, and no longer.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError

_HEADER = struct.Struct("<HHf")  # length of the vector, of the table, and the scale of the vector
_LEVELS = 127
_LARGEST = 65_504.0  # of half precision
MAX_PACKED_CHARS = 400_000


class KeptFeatures(NamedTuple):
    """The features of one query, with the encoder they belong to."""

    encoder: str  # see `encoder_key`
    embedding: NDArray[np.float32]  # (d,)
    table: NDArray[np.float32]  # (m,)


def encoder_key(manifest: Mapping[str, Any], table: tuple[str, ...]) -> str:
    """Return the key under which features may be used together: the same encoder, tokenizer and table columns.

    `manifest` is a bundle's, which names its files with their hashes."""
    files = manifest["files"]
    parts = [str(files[name]["sha256"]) for name in ("encoder.onnx", "tokenizer.json")]
    return hashlib.sha256("\n".join([*parts, *table]).encode()).hexdigest()[:32]


def pack(features: KeptFeatures) -> str:
    """Return embedding and table as base64 text: a header, the vector as int8, the table as float16."""
    embedding = np.asarray(features.embedding, np.float32)
    scale = float(np.abs(embedding).max(initial=0.0)) / _LEVELS or 1.0
    vector = np.rint(embedding / scale).astype(np.int8)
    table = np.clip(features.table, -_LARGEST, _LARGEST).astype("<f2")
    return base64.b64encode(_HEADER.pack(len(vector), len(table), scale) + vector.tobytes() + table.tobytes()).decode()


def unpack(packed: str, encoder: str) -> KeptFeatures:
    """Return the features of `pack`'s text; the vector has length 1 again. Raises `InputError` if it is not one."""
    try:
        if len(packed) > MAX_PACKED_CHARS:
            raise ValueError("it is too long")
        data = base64.b64decode(packed, validate=True)
        d, m, scale = _HEADER.unpack_from(data)
        if len(data) != _HEADER.size + d + 2 * m:
            raise ValueError("its length is not what its header says")
        vector = np.frombuffer(data, np.int8, d, _HEADER.size).astype(np.float32) * np.float32(scale)
        table = np.frombuffer(data, "<f2", m, _HEADER.size + d).astype(np.float32)
        if not (np.isfinite(vector).all() and np.isfinite(table).all()):
            raise ValueError("it holds NaN or infinity")
    except (ValueError, struct.error) as error:
        raise InputError(f"kept features cannot be read: {error}; export them again") from error
    return KeptFeatures(encoder, vector / np.float32(np.linalg.norm(vector) or 1.0), table)
