"""The serving encoder: onnxruntime and tokenizers, one session, no padding beyond the longest text of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.errors import EncoderError
from router_ml.features.embedder import Floats

MAX_TOKENS = 256
BATCH_SIZE = 16  # small, length-sorted batches: padding costs more than batching gains


class OnnxEmbedder:
    """Runs an exported encoder whose graph pools and normalises.

    The session is thread-safe. With `threads=1` (the default) a busy machine does not stretch the tail of the
    latency; raise it only for large offline batches. Raises `EncoderError` where the files cannot be loaded."""

    def __init__(self, model: Path, tokenizer: Path, *, threads: int = 1, max_tokens: int = MAX_TOKENS) -> None:
        import onnxruntime  # deferred: `import router_ml` alone must not pay for it
        from tokenizers import Tokenizer

        self._name = str(model)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
            self._session: Any = onnxruntime.InferenceSession(
                str(model), sess_options=_options(onnxruntime, threads), providers=["CPUExecutionProvider"]
            )
            self._dim = int(self._session.get_outputs()[0].shape[-1])
        except Exception as error:  # both libraries raise bare exceptions of many kinds
            raise EncoderError(f"cannot load the encoder {model}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._inputs = tuple(i.name for i in self._session.get_inputs())

    @property
    def name(self) -> str:
        return self._name

    @property
    def dim(self) -> int:
        return self._dim

    def embed(self, texts: Sequence[str]) -> Floats:
        try:
            return self._embed(texts)
        except (UnicodeEncodeError, TypeError):  # half of a character (a lone surrogate) in a history or a tool
            return self._embed([text.encode("utf-8", "replace").decode("utf-8") for text in texts])

    def _embed(self, texts: Sequence[str]) -> Floats:
        if len(texts) == 1:
            ids = self._tokenizer.encode(texts[0]).ids
            return self._run(np.array([ids], dtype=np.int64), None)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.empty((len(rows), self._dim), dtype=np.float32)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            out[chosen] = self._run(*_pad([rows[i] for i in chosen]))
        return out

    def _run(self, ids: Any, mask: Any) -> Floats:
        feed = {"input_ids": ids}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones_like(ids) if mask is None else mask
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        result: Floats = self._session.run(None, feed)[0]
        return result


def _pad(rows: list[list[int]]) -> tuple[Any, Any]:
    width = max(len(row) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    return options
