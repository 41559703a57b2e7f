"""Read the name of a model: what it is called, its size, its quantisation."""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_QUANTISATION = "q4_K_M"  # of a tag of Ollama's library that names none
_FULL = "f16"  # of other servers
_HUGGING_FACE = ("hf.co/", "huggingface.co/")
_QUANTISATION = re.compile(
    r"(?<![a-z0-9])((?:ud-)?i?q\d(?:_[a-z0-9]+)*|tq\d_\d|mxfp4|nvfp4|b?f(?:p)?16|fp?32|fp8|int[48]|awq|gptq|[348]bit)(?![a-z0-9])"
)
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_PACKAGING = re.compile(r"(?<![a-z0-9])(gguf|latest|hf|mlx|bnb|imatrix|i1|fp|dynamic)(?![a-z0-9])")
_VARIANT = re.compile(r"(?<![a-z0-9])(instruct|it|chat|text|v0\.[0-9]|qat|turbo|\d+k|\d{4})(?![a-z0-9])")
_ASSUMED_BITS = {"int4": "q4_0", "awq": "q4_K_M", "gptq": "q4_K_M", "4bit": "q4_K_M", "3bit": "q3_K_M",
                 "fp8": "q8_0", "int8": "q8_0", "8bit": "q8_0", "nvfp4": "mxfp4"}  # fmt: skip


class Name(NamedTuple):
    """The parts of a model's name."""

    full: str  # without size and quantisation; in lower case, without separators
    head: str  # the same without words such as instruct
    parameters_b: float | None  # billions; None where the name has no size
    quantisation: str | None  # as llama.cpp calls it, in lower case; None where the name does not say


def read_name(name: str) -> Name:
    """Return the parts of a name: Ollama's (`qwen2.5:7b-instruct-q4_K_M`, `hf.co/org/Name-GGUF:Q4_K_M`, with or without
    a registry) or that of another server (`org/Name-7B-Instruct`)."""
    lowered = name.strip().lower()
    base = lowered.rsplit("/", 1)[-1]
    found = _QUANTISATION.search(base)
    quantisation = None if found is None else found[1].removeprefix("ud-")
    if quantisation is None and "/" in lowered and not _from_ollama(lowered):
        quantisation = _FULL
    base = _QUANTISATION.sub(" ", base)
    sizes = list(_SIZE.finditer(base))
    size = sizes[0] if sizes else None
    if size is not None:
        base = base[: size.start()] + " " + base[size.end() :]
    base = _PACKAGING.sub(" ", base)
    full, head = (re.sub(r"[^a-z0-9.]", "", text) for text in (base, _VARIANT.sub(" ", base)))
    return Name(full, head, _billions(size), quantisation and _ASSUMED_BITS.get(quantisation, quantisation))


def _from_ollama(name: str) -> bool:
    parts = name.split("/")
    return name.startswith(_HUGGING_FACE) or "." in parts[0] or parts[0] == "library" or ":" in parts[-1]


def _billions(size: re.Match[str] | None) -> float | None:
    if size is None:
        return None
    billions = float(size[2]) * int(size[1] or 1) * (1.0 if size[3] == "b" else 1e-3)
    return billions if billions > 0 else None
