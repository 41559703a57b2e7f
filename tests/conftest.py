"""What every room's tests share: a quiet environment, patient property tests, a bundle made on the spot."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.fixtures"]

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "ROUTER_ML_STATE_DIR": tempfile.mkdtemp(prefix="router_ml-tests-"),  # never the bundles and events of who tests
}.items():
    os.environ.setdefault(_name, _value)

# The same commit gets the same answer: the gate draws no examples at random. `--hypothesis-profile search` does.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", _PATIENT, max_examples=60, derandomize=True)
settings.register_profile("search", _PATIENT, max_examples=1_000)
settings.load_profile("gate")

TINY_DIM = 16
TINY_LAYERS = 1


def _tiny_weights(n_words: int) -> dict[str, Any]:
    """Random weights of a BERT with one layer, under the names that transformers gives them."""
    import numpy as np

    rng = np.random.default_rng(7)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": normal(n_words, TINY_DIM),
        "embeddings.position_embeddings.weight": normal(512, TINY_DIM),
        "embeddings.token_type_embeddings.weight": normal(2, TINY_DIM),
        "encoder.layer.0.intermediate.dense.weight": normal(4 * TINY_DIM, TINY_DIM),
        "encoder.layer.0.intermediate.dense.bias": normal(4 * TINY_DIM),
        "encoder.layer.0.output.dense.weight": normal(TINY_DIM, 4 * TINY_DIM),
        "encoder.layer.0.output.dense.bias": normal(TINY_DIM),
    }
    for part in ("self.query", "self.key", "self.value", "output.dense"):
        weights[f"encoder.layer.0.attention.{part}.weight"] = normal(TINY_DIM, TINY_DIM)
        weights[f"encoder.layer.0.attention.{part}.bias"] = normal(TINY_DIM)
    for norm in (
        "embeddings.LayerNorm",
        "encoder.layer.0.attention.output.LayerNorm",
        "encoder.layer.0.output.LayerNorm",
    ):
        weights[f"{norm}.weight"] = np.ones(TINY_DIM, np.float32)
        weights[f"{norm}.bias"] = np.zeros(TINY_DIM, np.float32)
    return weights


def _tiny_tokenizer(path: Path) -> int:
    """A WordPiece tokenizer over single characters; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(path))
    return len(words)


def _write_tiny_bundle(folder: Path) -> None:
    import numpy as np
    import onnx

    from router_ml.bundles.format import ARRAYS, CATALOGUE, ENCODER, HEADS, TOKENIZER, write_manifest
    from router_ml.catalogue import load_catalogue, model_entry
    from router_ml.decide.features.extractor import TABLE_NAMES
    from router_ml.decide.features.onnx import OnnxEmbedder
    from training.complexity.bert_graph import BertGraph

    folder.mkdir(parents=True)
    n_words = _tiny_tokenizer(folder / TOKENIZER)
    graph = BertGraph(_tiny_weights(n_words), layers=TINY_LAYERS, heads=2, epsilon=1e-12, pooling=("cls", "mean"))
    onnx.save(graph.build(), folder / ENCODER)
    texts = ["check email", "book a flight"]
    vectors = OnnxEmbedder(folder / ENCODER, folder / TOKENIZER).embed(texts)
    rng = np.random.default_rng(3)
    width = vectors.shape[1] + len(TABLE_NAMES)
    np.savez(
        folder / ARRAYS,
        **{
            "complexity/weights": rng.normal(0, 0.5, (4, width)).astype(np.float32),
            "complexity/bias": np.zeros(4, np.float32),
            "self_check/vectors": vectors.astype(np.float16),
        },
    )
    (folder / HEADS).write_text(json.dumps({"table": list(TABLE_NAMES), "complexity": {}, "self_check": texts}))
    (folder / CATALOGUE).write_text(json.dumps({"models": [model_entry(m) for m in load_catalogue()]}))
    write_manifest(folder, {"name": "tiny", "metrics": {}})


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle with a random encoder of one layer. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    _write_tiny_bundle(folder)
    return folder


class _Scripted:
    """Says the label it was told to say, with the probability it was told."""

    def __init__(self, label: str, share: float) -> None:
        self.label, self.share = label, share

    def __call__(self, embedding: Any, table: Any) -> Any:
        import numpy as np

        from router_ml.types import LABELS

        out = np.full((len(table), 4), (1 - self.share) / 3, dtype=np.float32)
        out[:, LABELS.index(self.label)] = self.share  # type: ignore[arg-type]
        return out


class _NoEmbedding:
    """Features without an encoder."""

    def extract(self, texts: Sequence[str], contexts: Sequence[Any]) -> Any:
        import numpy as np

        from router_ml.decide.features.extractor import TABLE_NAMES, Features

        return Features(np.zeros((len(texts), 1), np.float32), np.zeros((len(texts), len(TABLE_NAMES)), np.float32))


@pytest.fixture
def router_that_says() -> Callable[..., Any]:
    """Makes a router whose label is scripted, on the packaged catalogue (or another) and its priors."""

    def make(label: str, share: float = 0.9, catalogue: Any = None, **options: Any) -> Any:
        from router_ml.catalogue import load_catalogue
        from router_ml.decide.predictors.outcomes import OutcomePredictor
        from router_ml.decide.router import Router

        catalogue = catalogue or load_catalogue()
        return Router(
            features=_NoEmbedding(),
            complexity=_Scripted(label, share),
            outcomes=OutcomePredictor.from_arrays({}, {}, catalogue),
            catalogue=catalogue,
            name="scripted",
            **options,
        )

    return make
