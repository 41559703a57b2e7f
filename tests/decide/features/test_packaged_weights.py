"""The packaged encoder is used only where its weights are the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_ml.decide.features import sentence_transformer
from router_ml.decide.features.sentence_transformer import load_sentence_transformer
from router_ml.errors import EncoderError


def test_other_weights_than_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_transformer, "encoder_source", lambda name: str(tmp_path))
    with pytest.raises(EncoderError, match="cannot read the weights"):
        load_sentence_transformer()
    (tmp_path / "model.safetensors").write_bytes(b"weights of somebody else")
    with pytest.raises(EncoderError, match="does not hold the published weights"):
        load_sentence_transformer()
