"""Compare the tool calls of an answer with the expected ones: names and arguments, in any order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.measuring.argument_values import absent, agrees, matching
from training.measuring.expected_answer import ExpectedCall


class MadeCall(NamedTuple):
    """One call a model made."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallScore:
    """The calls of one answer compared with the expected ones."""

    success: bool  # every expected call made once with the right arguments, and no other that was not allowed
    names: float  # share of the expected and the superfluous calls whose names pair up, 0..1
    arguments: float | None  # share of the arguments that agree, over calls paired by name; None: there are none
    problems: tuple[str, ...] = ()


def score_calls(expected: Sequence[ExpectedCall], made: Sequence[MadeCall], allowed: Collection[str] = ()) -> CallScore:
    """Pair made calls with expected ones, each used once, so that most agree.

    A call of an `allowed` tool that pairs with nothing is ignored; any other unmatched call is a failure."""
    exact = matching(expected, made, fits)
    rest_expected = [i for i in range(len(expected)) if i not in exact.values()]
    rest_made = [j for j in range(len(made)) if j not in exact]
    by_name = _best_by_name(expected, made, rest_expected, rest_made)
    missing = [i for i in rest_expected if i not in by_name.values()]
    surplus = [j for j in rest_made if j not in by_name and made[j].name not in allowed]
    n_named = len(exact) + len(by_name)
    total = n_named + len(missing) + len(surplus)
    problems = [
        *(problem for j, i in sorted(by_name.items()) for problem in differences(expected[i], made[j])),
        *(f"{expected[i].name} was not called" for i in missing),
        *(f"{made[j].name} was called and not expected" for j in surplus),
    ]
    return CallScore(
        success=len(exact) == len(expected) and not surplus,
        names=n_named / total if total else 1.0,
        arguments=_argument_share(expected, made, exact, by_name),
        problems=tuple(problems),
    )


def fits(expected: ExpectedCall, made: MadeCall) -> bool:
    """Return whether a call is the expected one in name and arguments."""
    return expected.name == made.name and not differences(expected, made)


def differences(expected: ExpectedCall, made: MadeCall) -> list[str]:
    """Return a line for each argument that is wrong in a call of the right name."""
    problems = []
    for key, wanted in expected.arguments.items():
        given = made.arguments.get(key)
        if absent(given) and (key in expected.optional or absent(wanted)):
            continue
        if absent(given) and not agrees(wanted, given):
            problems.append(f"{made.name}: {key} is missing")
        elif not agrees(wanted, given):
            problems.append(f"{made.name}: {key} is {given!r:.80}, expected {wanted!r:.80}")
    known = {*expected.arguments, *expected.optional}
    unknown = (key for key, given in made.arguments.items() if key not in known and not absent(given))
    return problems + [f"{made.name}: {key} was not expected" for key in unknown]


def _best_by_name(
    expected: Sequence[ExpectedCall], made: Sequence[MadeCall], rest_expected: Sequence[int], rest_made: Sequence[int]
) -> dict[int, int]:
    """Pair unmatched calls by name alone, fewest differences first; return made index -> expected index."""
    candidates = sorted(
        (len(differences(expected[i], made[j])), i, j)
        for i in rest_expected
        for j in rest_made
        if expected[i].name == made[j].name
    )
    pairs: dict[int, int] = {}
    for _, i, j in candidates:
        if i not in pairs.values() and j not in pairs:
            pairs[j] = i
    return pairs


def _argument_share(
    expected: Sequence[ExpectedCall], made: Sequence[MadeCall], exact: Mapping[int, int], by_name: Mapping[int, int]
) -> float | None:
    right = total = 0
    for j, i in (*exact.items(), *by_name.items()):
        wrong = 0 if j in exact else len(differences(expected[i], made[j]))
        n = max(len(expected[i].arguments), wrong)
        right, total = right + n - wrong, total + n
    return right / total if total else None
