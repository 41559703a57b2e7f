"""Tokenizing word by word gives the numbers of the tokenizer itself."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from router_ml.decide.features.words import WordTokenizer
from router_ml.jsonl import read_queries

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = str(ROOT / "models" / "default" / "tokenizer.json")
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def reference() -> Any:
    tokenizer = Tokenizer.from_file(TOKENIZER)
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    return WordTokenizer(Tokenizer.from_file(TOKENIZER), MAX_TOKENS)


TEXTS = st.lists(
    st.text(alphabet=string.printable + "\x00\x1f\x7f’é日", max_size=12)
    | st.sampled_from([" [SEP] ", "[SEP]", "[sep]", "[CLS]", "[MASK]", "don't", "3.50", "unbelievable", "x" * 150]),
    max_size=12,
).map("".join)


@given(TEXTS)
@example("")
@example("find a free hour [SEP] u: hi [SEP] file: a.pdf")
@example("word " * 100)
def test_any_text_gets_the_numbers_of_the_tokenizer(reference: Any, words: WordTokenizer, text: str) -> None:
    assert words(text) == reference.encode(text).ids


def test_queries_get_the_numbers_of_the_tokenizer(reference: Any, words: WordTokenizer) -> None:
    texts = [query.text for query in read_queries(ROOT / "data" / "queries.jsonl")[::7]]
    assert [words(text) for text in texts] == [reference.encode(text).ids for text in texts]


def test_an_added_token_that_takes_the_spaces_around_it_is_left_to_the_tokenizer() -> None:
    def tokenizer() -> Any:
        changed = Tokenizer.from_file(TOKENIZER)
        changed.add_special_tokens([AddedToken("<hr>", lstrip=True, rstrip=True), AddedToken("two words")])
        return changed

    for text in ("a <hr> b", "these two words"):
        assert WordTokenizer(tokenizer(), MAX_TOKENS)(text) == tokenizer().encode(text).ids


def _pieces(prepend: str = "always") -> Any:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁send", -5.0), ("s", -3.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("e", -3.0), ("n", -3.0), ("d", -3.0), ("▁it", -4.0)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@given(st.text(alphabet="senditx 日", max_size=30))
@example("send it")
@example("d" * 22)  # as many pieces as are kept
@example("x " * 22)
def test_pieces_that_begin_with_a_space_get_the_numbers_of_the_tokenizer(text: str) -> None:
    words, reference = WordTokenizer(_pieces(), MAX_TOKENS), _pieces()
    reference.enable_truncation(MAX_TOKENS)
    assert words._by_word
    assert words(text) == reference.encode(" ".join(text.split()) if text.isascii() else text).ids


def test_a_tokenizer_without_marks_is_left_alone() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "Ab": 1, "ab": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert WordTokenizer(tokenizer, 8)("Ab ab") == [1, 2]
