"""The seam every sentence encoder fits: texts in, one float32 row per text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into sentence vectors of Euclidean length 1."""

    @property
    def name(self) -> str:
        """Name shown in reports: a hub name, a folder or a bundle."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return vectors of shape (len(texts), dim), float32, in the order of the texts."""
        ...


def is_failure(error: BaseException) -> bool:
    """Return whether third-party code failed; a panic of Rust code counts although it is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
