"""The quick roads for plain English text give what the general ones give."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from router_ml.decide.features.cues import ASCII_WORD, WORD
from router_ml.decide.features.surface import NAMES, surface_features
from router_ml.types import EMPTY_CONTEXT

PLAIN = st.lists(
    st.text(alphabet=string.printable, max_size=8)
    | st.sampled_from(["don't", "3.50", "10:30", "a_b", "x'y'z", "1,2.3"])
).map("".join)
_UPPER, _DIGITS = NAMES.index("upper_share"), NAMES.index("digits_share")


@given(PLAIN)
def test_the_same_words_are_found(text: str) -> None:
    assert ASCII_WORD.findall(text.lower()) == WORD.findall(text.lower())


@given(PLAIN)
def test_capitals_and_digits_are_counted(text: str) -> None:
    found = surface_features("a" + text, EMPTY_CONTEXT)
    size = len(text) + 1
    if size < 400:
        assert found[_UPPER] == sum(map(str.isupper, text)) / size
    assert found[_DIGITS] == sum(map(str.isdigit, text)) / size


def test_other_scripts_have_capitals_and_digits_too() -> None:
    found = surface_features("Éa ٣", EMPTY_CONTEXT)
    assert (found[_UPPER], found[_DIGITS]) == (1 / 4, 1 / 4)
