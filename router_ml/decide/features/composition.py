"""Put a query and its context into the one text the sentence encoder reads.

One encoder pass must see what resolves a query: the last turns, the attachment. The tools on offer are left out: they
say what an assistant can do, not what was asked, and stand in the table of features instead. The query stands
first and each part has its own share of the length, so that a long history never crowds out the query itself.
"""

from __future__ import annotations

import re
import unicodedata

from router_ml.messages import clean_text
from router_ml.types import Context

SEPARATOR = " [SEP] "  # BERT-style encoders read it as their own segment mark
MAX_QUERY_CHARS = 800
MAX_TURNS = 4
MAX_TURN_CHARS = 240
MAX_ATTACHMENT_CHARS = 80
_MARK = {"user": "u: ", "assistant": "a: "}
_SPECIAL_TOKEN = re.compile(r"\[(?=(?:SEP|CLS|PAD|MASK|UNK)\])|<(?=/?(?:s|pad|unk|mask)>)")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def shorten(text: str, limit: int) -> str:
    """Keep the first two thirds and the last third of a text that is too long."""
    if len(text) <= limit:
        return text
    head = 2 * limit // 3
    return f"{text[:head]} … {text[-(limit - head) :]}"


def visible_text(text: str) -> str:
    """Return the text with composed letters and plain spaces, without unpaired surrogates and invisible characters."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _SPACE.sub(" ", _INVISIBLE.sub("", clean_text(text))))


def compose(text: str, context: Context) -> str:
    """Return the encoder's input for a query in its context; the bare query where there is no context.

    What looks like a mark of the encoder in a text is written apart, so that no text can forge a turn."""
    parts = [_plain(text.strip(), MAX_QUERY_CHARS)]
    if context.history:
        turns = context.history[-MAX_TURNS:]
        parts.append(" ".join(_MARK.get(turn.role, "") + _plain(turn.content, MAX_TURN_CHARS) for turn in turns))
    if context.attachment:
        parts.append("file: " + _plain(context.attachment[:MAX_ATTACHMENT_CHARS], MAX_ATTACHMENT_CHARS))
    return SEPARATOR.join(parts) if len(parts) > 1 else parts[0]


def _plain(text: str, limit: int) -> str:
    text = visible_text(shorten(text, limit))
    return _SPECIAL_TOKEN.sub(r"\g<0> ", text) if "[" in text or "<" in text else text
