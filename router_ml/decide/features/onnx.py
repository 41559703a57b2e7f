"""The serving encoder: onnxruntime and tokenizers, one session, one text a run, many runs at once.

Texts are not batched: int8 activations are scaled per run, so that a text's vector would depend on its neighbours, and
on CPUs batches gain little over one run per core.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.bundles.native import check_graph, check_tokenizer
from router_ml.decide.embedder import Floats, is_failure
from router_ml.decide.features.words import WordTokenizer
from router_ml.errors import EncoderError

MAX_TOKENS = 256
MAX_CHARS = 100_000  # a longer text is read by its beginning; `max_tokens` never need so many


class OnnxEmbedder:
    """Runs an exported encoder whose graph pools and normalises. Thread-safe, and usable in a forked process.

    One text runs on the calling thread. Many are shared out, one by one, among `workers` threads, the caller's included
    (by default as many as the cores allow). `threads` is how many the session itself uses within one run: with more
    than one, a busy machine stretches the tail of the latency. Raises `EncoderError` if the files cannot be loaded.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: Path,
        *,
        threads: int = 1,
        max_tokens: int = MAX_TOKENS,
        workers: int | None = None,
    ) -> None:
        self._model, self._threads = model, threads
        try:
            check_graph(model)
            check_tokenizer(tokenizer)
            self._words = WordTokenizer(_tokenizer(tokenizer), max_tokens)
            self._session, self._pid = _session(model, threads), os.getpid()
            self._inputs = frozenset(i.name for i in self._session.get_inputs())
            output = self._session.get_outputs()[0]
            self._outputs, self._dim = [output.name], int(output.shape[-1])
        except BaseException as error:  # both libraries raise many kinds
            if isinstance(error, EncoderError) or not is_failure(error):
                raise
            raise EncoderError(f"cannot load the encoder {model}: {error}") from error
        self._workers = _Workers(workers or max(1, _cores() // threads))

    @property
    def name(self) -> str:
        """Return the name of the encoder."""
        return str(self._model)

    @property
    def dim(self) -> int:
        """Return the width of a vector."""
        return self._dim

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the encoder reads, its own marks included."""
        return len(self._tokens(text))

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return the vectors (texts, dim) of texts, each of length 1."""
        if self._pid != os.getpid():
            self._reopen()
        if len(texts) == 1:
            return self._run(self._tokens(texts[0]))
        rows = [self._tokens(text) for text in texts]
        out = np.empty((len(rows), self._dim), dtype=np.float32)

        def embed_row(i: int) -> None:
            out[i] = self._run(rows[i])[0]

        longest_first = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)  # to end evenly
        self._workers.share(embed_row, longest_first)
        return out

    def _tokens(self, text: str) -> list[int]:
        return self._words(text[:MAX_CHARS])

    def _run(self, row: list[int]) -> Floats:
        """Return the vector (1, dim) of one text."""
        ids = np.array([row], dtype=np.int64)
        feed = {"input_ids": ids}
        if len(self._inputs) > 1:  # graphs of other makers
            feed |= {"attention_mask": np.ones_like(ids)} if "attention_mask" in self._inputs else {}
            feed |= {"token_type_ids": np.zeros_like(ids)} if "token_type_ids" in self._inputs else {}
        result: Floats = self._session.run(self._outputs, feed)[0]
        return result

    def _reopen(self) -> None:
        """Open the session anew after a fork: the parent's threads and the locks they held are not in this process.

        The parent's session is never destroyed here, for that would wait for its threads."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._workers = _Workers(self._workers.n)
        self._session = _session(self._model, self._threads)
        self._pid = os.getpid()


class _Workers:
    """Threads that help the calling one. A helper that is still waiting for its turn when the work is done is
    cancelled, so that no caller waits for a busy pool."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[int], None], items: Sequence[int]) -> None:
        """Run `work` on every item; the first error is raised."""
        todo = iter(items)
        n_helpers = min(self.n, len(items)) - 1
        if n_helpers < 1:
            self._drain(work, todo)
            return
        helpers = [self._helpers().submit(self._drain, work, todo) for _ in range(n_helpers)]
        try:
            self._drain(work, todo)
        finally:
            started = [helper for helper in helpers if not helper.cancel()]
        for helper in started:
            helper.result()

    def _drain(self, work: Callable[[int], None], todo: Iterator[int]) -> None:
        while (item := next(todo, None)) is not None:  # a list's iterator hands out each item once
            work(item)

    def _helpers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.n - 1, thread_name_prefix="router_ml-encoder")
            return self._pool


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer  # deferred: `import router_ml` alone must not pay for it

    return Tokenizer.from_file(str(path))


def _session(model: Path, threads: int) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it is read when the library is loaded
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
    return onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
