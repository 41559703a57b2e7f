"""Token numbers of a text, word by word: what a BERT or SentencePiece tokenizer makes of a word does not depend on what
is around it.

So the numbers of a word can be cached, which takes a tenth of the tokenizer's time: a decision takes 40 us at most
outside the encoder, 160 us with a context, and tokenizing alone would take half of that. Texts with other than
printable ASCII characters, and other kinds of tokenizers, are left to the tokenizer.
"""

from __future__ import annotations

import functools
from typing import Any

MAX_WORDS = 20_000  # that are cached
MAX_WORD_CHARS = 40  # a longer one is not


class WordTokenizer:
    """Turns a text into token numbers, at most `max_tokens` with the marks at both ends. Thread-safe."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._tokenizer, self._max_pieces = tokenizer, max_tokens - 2
        self._marks: list[int] = tokenizer.encode("").ids
        self._by_word = len(self._marks) == 2 and _splits_at_spaces(tokenizer)
        self._cached = functools.lru_cache(MAX_WORDS)(self._pieces)

    def __call__(self, text: str) -> list[int]:
        """Return the token numbers that the encoder reads."""
        if not (self._by_word and text.isascii() and text.isprintable()):
            return self._encode(text)
        pieces: list[int] = []
        for word in text.split():
            pieces += self._cached(word) if len(word) <= MAX_WORD_CHARS else self._pieces(word)
        return [self._marks[0], *pieces[: self._max_pieces], self._marks[1]]

    def _pieces(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        return ids

    def _encode(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except (UnicodeEncodeError, TypeError):  # an unpaired surrogate in the name of a tool, say
            ids = self._tokenizer.encode(text.encode("utf-8", "replace").decode("utf-8")).ids
        return ids


def _splits_at_spaces(tokenizer: Any) -> bool:
    """Return whether words are read one by one: a BERT tokenizer, or pieces of words that begin with a mark for the
    space before them; and no added token reaches beyond a word."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace

    before = tokenizer.pre_tokenizer
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        (isinstance(tokenizer.normalizer, BertNormalizer) and isinstance(before, BertPreTokenizer))
        or (isinstance(before, Metaspace) and before.split and before.prepend_scheme == "always")
    ) and not any(token.lstrip or token.rstrip or " " in token.content for token in added)
