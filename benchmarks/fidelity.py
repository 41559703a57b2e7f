"""Measure what int8 costs: the same outcomes fitted on vectors of the fp32 encoder and of its int8 export.

    python -m benchmarks.fidelity --bench DIR [--encoder NAME] [--only bfcl-a gsm8k ...] [--repeats N]

DIR is the folder `python -m benchmarks.study` reads; absent sets are skipped with a message. A bundle ships its encoder
in int8 alone, so an encoder is exported anew: the untuned one, or any sentence-transformers folder given. Both fits of
a pair share folds and seed, are grouped cross-validations, and use no complexity labels. The last column is the range
of the fp32 fits over folds and seeds: smaller differences are noise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import SETS, Data, cross_validated
from router_ml.bundles.format import ENCODER, TOKENIZER
from router_ml.decide.embedder import Embedder
from router_ml.decide.features.extractor import Extractor
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import (
    DEFAULT_ENCODER,
    SentenceTransformerEmbedder,
    load_sentence_transformer,
)
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.terminal import run_command
from router_ml.types import LABELS
from training.command import command_parser
from training.complexity.encoder_export import export_encoder
from training.evaluate import report

FIGURES = ("aiq", "accuracy")
CHECKED = 64  # texts on which the export is compared with its reference


def fidelity(
    bench: Path, encoder: str = DEFAULT_ENCODER, only: Sequence[str] = tuple(SETS), repeats: int = 3
) -> Iterator[dict[str, Any]]:
    """Yield a row for each data set and figure: fp32, int8, and the mean loss over the repeats."""
    model = load_sentence_transformer(encoder, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        for name in only:
            if (paths := _paths(bench, name)) is None:
                continue
            folder = Path(scratch)
            if not (folder / ENCODER).is_file():
                export_encoder(model, folder, [query.text for query in read_queries(paths[0])[:CHECKED]])
            exact = _read(name, *paths, SentenceTransformerEmbedder("fp32", model=model))
            rough = _read(name, *paths, OnnxEmbedder(folder / ENCODER, folder / TOKENIZER))
            yield from _compared(exact, rough, repeats)


def _paths(bench: Path, name: str) -> tuple[Path, Path] | None:
    folder, outcomes, _ = SETS[name]
    paths = bench / folder / "queries.jsonl", bench / folder / f"{outcomes}.jsonl"
    if all(path.is_file() for path in paths):
        return paths
    print(f"skipped {name}: no {paths[0]} or {paths[1].name} beside it", file=sys.stderr)
    return None


def _read(name: str, queries_path: Path, outcomes_path: Path, embedder: Embedder) -> Data:
    queries = read_queries(queries_path)
    features = Extractor(embedder).extract([q.text for q in queries], [q.context for q in queries])
    unknown = np.full((len(queries), len(LABELS)), 1 / len(LABELS), np.float32)
    return Data(name, queries, read_outcomes(outcomes_path), features, unknown)


def _compared(exact: Data, rough: Data, repeats: int) -> Iterator[dict[str, Any]]:
    figures = {kind: [_figures(data, seed) for seed in range(repeats)] for kind, data in (("a", exact), ("b", rough))}
    cosine = float((exact.features.embedding * rough.features.embedding).sum(axis=1).mean())
    for figure in FIGURES:
        fp32, int8 = (np.array([found[figure] for found in figures[kind]]) for kind in ("a", "b"))
        yield {
            "what": f"{exact.name} {figure}, cosine {cosine:.4f}",
            "fp32": float(fp32.mean()),
            "int8": float(int8.mean()),
            "given_up": float((fp32 - int8).mean()),
            "most": float((fp32 - int8).max()),
            "by_seed": float(np.ptp(fp32)),
        }


def _figures(data: Data, seed: int) -> dict[str, float]:
    found = report(cross_validated(data, seed)[0], resamples=1)["figures"]
    return {figure: float(found[figure]["value"]) for figure in FIGURES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 if the folder is absent."""
    parser = command_parser("benchmarks.fidelity", __doc__)
    parser.add_argument("--bench", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="sentence-transformers folder or name (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), help="some of the data sets")
    parser.add_argument("--repeats", type=int, default=3, help="cross-validations of each (%(default)s)")
    options = parser.parse_args(arguments)
    return run_command(
        "benchmarks.fidelity", lambda: _print(options.bench, options.encoder, options.only, options.repeats), failure=1
    )


def _print(bench: Path, encoder: str, only: Sequence[str], repeats: int) -> None:
    if not bench.is_dir():
        raise InputError(f"{bench} is not a folder; give the one that holds the data sets")
    print(f"{'what':<36}{'fp32':>9}{'int8':>9}{'given up':>10}{'most':>9}{'by seed':>9}")
    for row in fidelity(bench, encoder, only, repeats):
        figures = f"{row['fp32']:>9.4f}{row['int8']:>9.4f}{row['given_up']:>10.4f}"
        print(f"{row['what']:<36}{figures}{row['most']:>9.4f}{row['by_seed']:>9.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
