"""The table of words gives the numbers the tokenizer gives."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from router_ml.decide.features.composition import compose
from router_ml.decide.features.wordpiece import WordPieces
from router_ml.jsonl import read_queries

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = ROOT / "models" / "default" / "tokenizer.json"
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def reference() -> Any:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


@pytest.fixture(scope="module")
def pieces() -> WordPieces:
    return WordPieces(Tokenizer.from_file(str(TOKENIZER)), MAX_TOKENS)


TEXTS = st.lists(
    st.text(alphabet=string.printable + "\x00\x1f\x7f’é日", max_size=12)
    | st.sampled_from([" [SEP] ", "[SEP]", "[sep]", "[CLS]", "[MASK]", "don't", "3.50", "unbelievable", "x" * 150]),
    max_size=12,
).map("".join)


@given(TEXTS)
@example("")
@example("find a free hour [SEP] u: hi [SEP] tools: calendar, mail")
@example("word " * 100)
def test_any_text_gets_the_numbers_of_the_tokenizer(reference: Any, pieces: WordPieces, text: str) -> None:
    assert pieces(text) == reference.encode(text).ids


def test_the_corpus_gets_the_numbers_of_the_tokenizer(reference: Any) -> None:
    fresh = WordPieces(Tokenizer.from_file(str(TOKENIZER)), MAX_TOKENS)
    texts = [compose(query.text, query.context) for query in read_queries(ROOT / "data" / "queries.jsonl")[::7]]
    assert [fresh(text) for text in texts] == [reference.encode(text).ids for text in texts]


def test_a_tokenizer_of_another_kind_is_asked_itself() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "Ab": 1, "ab": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert WordPieces(tokenizer, 8)("Ab ab") == [1, 2]


def test_the_table_of_words_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_ml.decide.features.wordpiece.CAPACITY", 3)
    fresh = WordPieces(Tokenizer.from_file(str(TOKENIZER)), MAX_TOKENS)
    for word in ["a", "b", "c", "d", "e", "y" * 100]:
        fresh(word)
    assert len(fresh._pieces) <= 3
