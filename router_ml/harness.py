"""Separate the user's own text from what a program added to the same message.

Coding agents put reminders and descriptions of the environment in XML-like blocks beside the user's text; retrieval
puts the question into a template with the documents found. The router must classify the question.
"""

from __future__ import annotations

import re

MAX_BLOCKS = 64  # beyond them a text is left as it is, so that the time stays linear in its length
# Blocks whose content is the user's own text (in lower case, without "_" and "-").
_USER_BLOCKS = frozenset({
    "userquery", "userrequest", "usermessage", "userquestion", "userinput", "userprompt", "question", "query", "task",
    "feedback", "request",
})  # fmt: skip
# Blocks a program writes, besides all with a joined name (system-reminder, environment_details, editorContext).
_PROGRAM = frozenset({
    "context", "env", "environment", "documents", "document", "rules", "instructions", "skills", "memory", "memories",
    "files", "docs", "reminder", "attachments", "sources",
})  # fmt: skip
_OPEN = re.compile(r"<([A-Za-z][\w-]{1,48})(?:\s[^<>\n]{0,200})?>")
_JOINED = re.compile(r"[a-z\d][_-][a-z\d]|[a-z][A-Z]", re.ASCII)
_TEMPLATE_WORDS = ("ontext", "ONTEXT", "nformation", "ocuments", "assages", "ources")
_TEMPLATE = re.compile(
    r"(?:provided|following|given|retrieved|above|below) (?:pieces of )?(?:retrieved )?"
    r"(?:context|information|documents|passages|sources)|context information|^(?:#+ *)?context:",
    re.IGNORECASE | re.MULTILINE,
)
_ASKED = re.compile(
    r"^[#* ]*(?:user(?:'s)? )?(?:question|query|request)[* ]*:[* ]*\n?(.+?)"
    r"(?=^[#* ]*(?:(?:helpful |final |your )?answer|context|response|documents)[* ]*:|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_EDGE_CHARS = 100_000  # a template's question stands within so many characters of the beginning or the end


def user_text(text: str) -> str:
    """Return the user's own text in a user message; "" if a program wrote all of it.

    A text without blocks and templates is returned as it is."""
    said = None
    if "<" in text:
        text, said = _without_blocks(text)
    return _question(text) if said is None else said


def _without_blocks(text: str) -> tuple[str, str | None]:
    """Return the text without a program's blocks, and the content of the last block with the user's text, or None."""
    parts: list[str] = []
    said: str | None = None
    unclosed: set[str] = set()
    place, position, n_blocks = 0, 0, 0
    while n_blocks < MAX_BLOCKS and (opening := _OPEN.search(text, position)):
        name, position = opening[1], opening.end()
        of_user = name.replace("_", "").replace("-", "").lower() in _USER_BLOCKS
        if name in unclosed or not (of_user or name.lower() in _PROGRAM or _JOINED.search(name)):
            continue
        n_blocks += 1
        end = text.find(f"</{name}>", position)
        if end < 0:
            unclosed.add(name)
            continue
        if of_user:
            said = text[position:end].strip() or said
        parts.append(text[place : opening.start()])
        place = position = end + len(name) + 3
    if not parts:
        return text, said
    before, after = "".join(parts), text[place:].strip()
    if after and _is_template(before):  # a template before the documents, the question after them
        return after, said
    return (before + after).strip(), said


def _is_template(text: str) -> bool:
    return any(word in text for word in _TEMPLATE_WORDS) and _TEMPLATE.search(text[:_EDGE_CHARS]) is not None


def _question(text: str) -> str:
    """Return the question of a retrieval template; any other text as it is."""
    if ":" not in text or not _is_template(text):
        return text
    edges = text if len(text) <= 2 * _EDGE_CHARS else f"{text[:_EDGE_CHARS]}\n{text[-_EDGE_CHARS:]}"
    asked = [found.strip() for found in _ASKED.findall(edges)]
    return next((str(question) for question in reversed(asked) if question), text)
