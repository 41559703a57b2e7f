"""The exported encoder agrees with sentence-transformers, and padding or batches never change a vector."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router_ml.bundles.format import ENCODER, TOKENIZER
from router_ml.context import parse_context
from router_ml.decide.features.composition import compose
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import SentenceTransformerEmbedder
from router_ml.errors import EncoderError
from router_ml.jsonl import read_queries
from training.complexity import encoder_export as export
from training.complexity.bert_graph import smoothquant_scale
from training.corpus import corpus_path

N_TEXTS = 500


def _texts() -> list[str]:
    """Texts of the corpus as the encoder reads them: every other language, the longest, and some of all the rest."""
    queries = read_queries(corpus_path())
    foreign = [q for q in queries if q.extra.get("language") != "en"][:150]
    longest = sorted(queries, key=lambda q: -len(compose(q.text, q.context)))[:40]
    rest = queries[:: len(queries) // 400]
    texts = list(dict.fromkeys(compose(q.text, q.context) for q in [*foreign, *longest, *rest]))[: N_TEXTS - 6]
    crowded = parse_context({"history": ["word " * 200] * 4, "tools": ["tool" * 12] * 8, "attachment": "f" * 99})
    return [*texts, "", "?", "👀", "x" * 900, "a b " * 300, compose("word " * 400, crowded)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The default encoder with the pooling that is served: reference vectors, the float graph and the int8 one."""
    from training.complexity.finetune import pooled_encoder

    folder = tmp_path_factory.mktemp("export")
    texts = _texts()
    encoder = pooled_encoder("all-MiniLM-L6-v2", 256)
    reference = export.reference_vectors(encoder, texts)
    kept: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        quantise = export._quantise

        def keep(encoder: Any, source: Path, *rest: Any) -> None:
            kept.append(Path(shutil.copy(source, folder / "float.onnx")))
            quantise(encoder, source, *rest)

        patch.setattr(export, "_quantise", keep)
        report = export.export_encoder(encoder, folder / "int8", texts[:16])
    return SimpleNamespace(
        texts=texts,
        reference=reference,
        report=report,
        encoder=encoder,
        exact=OnnxEmbedder(kept[0], folder / "int8" / TOKENIZER),
        small=OnnxEmbedder(folder / "int8" / ENCODER, folder / "int8" / TOKENIZER),
        folder=folder,
    )


def test_the_float_graph_agrees_on_every_text(exported: SimpleNamespace) -> None:
    assert len(exported.texts) == N_TEXTS
    cosines = (exported.exact.embed(exported.texts) * exported.reference).sum(axis=1)
    assert cosines.min() >= 0.999


def test_the_quantised_graph_agrees_on_average(exported: SimpleNamespace) -> None:
    vectors = exported.small.embed(exported.texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(N_TEXTS), abs=1e-5)
    assert (vectors * exported.reference).sum(axis=1).mean() >= 0.99
    assert exported.report.quantised
    assert exported.report.quantised_cosine_mean >= 0.99
    assert exported.report.float_cosine_min >= 0.999
    assert exported.report.bytes == (exported.folder / "int8" / ENCODER).stat().st_size < 30e6
    assert sorted(path.name for path in (exported.folder / "int8").iterdir()) == [ENCODER, TOKENIZER]


def test_weights_on_the_sentence_vector_give_the_same_on_what_was_exported(exported: SimpleNamespace) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 768)).astype(np.float32)
    sentence = SentenceTransformerEmbedder("reference", model=exported.encoder).embed(exported.texts[:8])
    wide = export.widened(weights, exported.exact.dim)
    assert wide.shape == (4, exported.exact.dim) == (4, 768 + 384)
    assert exported.exact.embed(exported.texts[:8]) @ wide.T == pytest.approx(sentence @ weights.T, abs=1e-3)
    assert export.widened(weights, 768) is weights


def test_padding_and_batches_change_no_vector(exported: SimpleNamespace) -> None:
    texts = exported.texts[:24] + exported.texts[-6:]
    alone = np.concatenate([exported.exact.embed([text]) for text in texts])
    assert exported.exact.embed(texts) == pytest.approx(alone, abs=2e-5)
    assert exported.exact.embed(texts[::-1])[::-1] == pytest.approx(alone, abs=2e-5)


def test_neighbours_change_no_quantised_vector(exported: SimpleNamespace) -> None:
    texts = exported.texts[:24] + exported.texts[-6:]
    alone = np.concatenate([exported.small.embed([text]) for text in texts])
    assert np.array_equal(exported.small.embed(texts), alone)


def test_the_tokenizer_neither_pads_nor_cuts_as_shipped(exported: SimpleNamespace) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(exported.folder / "int8" / TOKENIZER))
    assert (tokenizer.padding, tokenizer.truncation) == (None, None)
    assert len(tokenizer.encode("check email").ids) == 4  # [CLS] check email [SEP]
    first = exported.exact.embed(["word " * 254])  # with [CLS] and [SEP] these are 256 tokens
    assert exported.exact.embed(["word " * 5000]) == pytest.approx(first, abs=1e-5)
    assert exported.exact.embed(["word " * 253]) != pytest.approx(first, abs=1e-5)


def test_no_texts_give_no_vectors(exported: SimpleNamespace) -> None:
    assert exported.small.embed([]).shape == (0, exported.small.dim)


def test_an_export_that_disagrees_is_refused(
    exported: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.complexity.bert_graph import BertGraph

    class Spoilt(BertGraph):
        def __init__(self, weights: dict, **kwargs: object) -> None:  # type: ignore[type-arg]
            name = "encoder.layer.0.attention.self.query.weight"
            super().__init__({**weights, name: weights[name] * -3}, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "BertGraph", Spoilt)
    with pytest.raises(EncoderError, match="disagrees"):
        export.export_encoder(exported.encoder, tmp_path, exported.texts[:4])
    assert not (tmp_path / ENCODER).exists()


def test_smoothquant_changes_nothing_but_the_ranges() -> None:
    """One column of the input is a hundred times the others; after scaling it is not, and the product is the same."""
    rng = np.random.default_rng(4)
    inputs, kernel = rng.normal(0, 1, (50, 8)).astype(np.float32), rng.normal(0, 1, (8, 5)).astype(np.float32)
    inputs[:, 3] *= 100
    factor = smoothquant_scale(np.abs(inputs).max(axis=0), kernel, 0.8)
    scaled = inputs / factor
    assert scaled @ (kernel * factor[:, None]) == pytest.approx(inputs @ kernel, rel=1e-3, abs=1e-3)
    columns = np.abs(scaled).max(axis=0)
    assert columns.max() / np.median(columns) < 5 < 30 < np.abs(inputs).max() / np.median(np.abs(inputs).max(axis=0))
    assert smoothquant_scale(np.zeros(8, np.float32), kernel, 0.5).min() > 0  # a column that is never used


def test_activation_ranges_bring_int8_nearer_to_the_reference(exported: SimpleNamespace, tmp_path: Path) -> None:
    import onnx

    shutil.copy(exported.folder / "int8" / TOKENIZER, tmp_path)
    near = []
    for texts in ((), exported.texts[:60]):
        onnx.save(export._graph(exported.encoder, 7, texts), tmp_path / ENCODER)
        vectors = OnnxEmbedder(tmp_path / ENCODER, tmp_path / TOKENIZER).embed(exported.texts[100:300])
        top = (vectors * exported.reference[100:300])[:, :768].sum(axis=1)  # half of it: the middle is half the length
        near.append(1 - 2 * top.mean())
    assert near[1] < 0.8 * near[0]
