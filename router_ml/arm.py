"""An arm is a model with the way it is asked: `think` off, on, or an effort. Its key names it in tables and files."""

from __future__ import annotations

from typing import Any, TypeGuard

from router_ml.types import Think

EFFORTS: tuple[Think, ...] = ("low", "medium", "high")
_WAYS: dict[str, Think] = {"nothink": False, "think": True, "low": "low", "medium": "medium", "high": "high"}
_PHRASES = {"nothink": "without thinking", "think": "with thinking"}


def is_think(value: Any) -> TypeGuard[Think]:
    """Return whether a value says how a model is asked."""
    return isinstance(value, bool) or (isinstance(value, str) and value in EFFORTS)


def arm_key(model: str, think: Think | None) -> str:
    """Return the key of an arm: the model's name alone where nothing is said about thinking, else `name+think`,
    `name+nothink`, `name+low` and so on."""
    return model if think is None else f"{model}+{_way(think)}"


def split_key(key: str) -> tuple[str, Think | None]:
    """Return model and `think` of a key."""
    model, _, way = key.rpartition("+")
    return (model, _WAYS[way]) if model and way in _WAYS else (key, None)


def arm_phrase(model: str, think: Think | None) -> str:
    """Return an arm as people read it: "qwen3:8b without thinking"."""
    if think is None:
        return model
    return f"{model} {_PHRASES.get(way := _way(think), f'with {way} thinking')}"


def think_text(think: Think | None) -> str:
    """Return how an arm is asked as headers, labels and parameters have it: false, true, low, medium or high; ""."""
    return "" if think is None else str(think).lower()


def _way(think: Think) -> str:
    return think if isinstance(think, str) else "think" if think else "nothink"
