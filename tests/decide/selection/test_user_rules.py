"""Rules a user decrees: which query they speak for, what they do to the choice, and what is wrong with a bad one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.catalogue import load_catalogue
from router_ml.decide.router import Router
from router_ml.decide.selection.language import language_of
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.decide.selection.rules import Reading, RuleBook
from router_ml.errors import CatalogueError, PolicyError
from router_ml.hosts.names import ModelNames
from router_ml.rule import Rule, rules_from
from router_ml.serve.order import arm_chain
from router_ml.types import Context, Tool

ROOT = Path(__file__).resolve().parents[3]
MODELS = """
[[model]]
name = "small"
[model.prior]
latency_s = 1.0
success = 0.9
[[model]]
name = "coder"
aliases = ["coder:latest-q4"]
[model.prior]
latency_s = 2.0
success = 0.8
[[model]]
name = "large"
[model.prior]
latency_s = 1.5
success = 0.85
"""


def catalogue(tmp_path: Path, rules: str) -> Path:
    file = tmp_path / "catalogue.toml"
    file.write_text(MODELS + rules)
    return file


def router(tmp_path: Path, rules: str) -> Router:
    return Router.heuristic(load_catalogue(catalogue(tmp_path, rules)))


def test_a_preferred_model_comes_first_though_another_is_worth_more(tmp_path: Path) -> None:
    decide = router(
        tmp_path, '[[rule]]\nname = "sql"\npattern = "\\\\bselect\\\\b"\nprefer = ["coder:latest-q4"]\n'
    ).decide
    decision = decide("SELECT name FROM people")
    assert (decision.model, decision.rule) == ("coder", "sql")
    assert "the rule 'sql' prefers it" in decision.reason
    assert {c.model for c in decision.ranked} == {"small", "coder", "large"}
    other = decide("what is the weather")
    assert (other.model, other.rule) == ("small", None)


def test_a_preferred_model_over_a_limit_does_not_come_first(tmp_path: Path) -> None:
    rules = '[[rule]]\nname = "sql"\npattern = "select"\nprefer = ["coder"]\n'
    decision = router(tmp_path, rules).decide("select 1", policy=Policy("quick", latency_budget_s=1.9))
    assert decision.model == "small"


def test_a_required_model_is_the_only_one_and_a_forbidden_one_is_left_out(tmp_path: Path) -> None:
    rules = (
        '[[rule]]\nname = "images"\nattachment = "image"\nrequire = ["large"]\n'
        '[[rule]]\nname = "not the small one"\ntool = "pay*"\nforbid = "small"\n'
    )
    decide = router(tmp_path, rules).decide
    seen = decide("what is this", {"attachment": "cat.png"})
    assert [c.model for c in seen.ranked] == ["large"]
    assert "rule 'images'" in seen.excluded["small"]
    paid = decide("pay it", {"tools": ["pay_bill"]})
    assert {c.model for c in paid.ranked} == {"coder", "large"}
    assert decide("pay it", {"tools": ["mail"]}).model == "small"


def test_the_first_rule_that_matches_speaks_and_those_of_a_policy_before_those_of_the_catalogue(tmp_path: Path) -> None:
    mine = '[[rule]]\nname = "{}"\npattern = "x"\nprefer = ["{}"]\n'
    policy = tmp_path / "own.toml"
    policy.write_text('preset = "balanced"\n' + mine.format("policy's", "large"))
    decide = router(tmp_path, mine.format("first", "coder") + mine.format("second", "large")).decide
    assert decide("x").rule == "first"
    assert (decide("x", policy=str(policy)).rule, decide("x", policy=str(policy)).model) == ("policy's", "large")


def test_a_rule_that_would_leave_no_model_is_said_and_leaves_all(tmp_path: Path) -> None:
    rules = '[[rule]]\nname = "gone"\npattern = "x"\nrequire = ["not-there"]\n'
    decision = router(tmp_path, rules).decide("x")
    assert decision.model == "small"
    assert "no model that the rule 'gone' allows can serve this" in decision.reason


def test_the_last_resort_does_not_go_round_a_rule(tmp_path: Path) -> None:
    file = catalogue(tmp_path, '[[rule]]\nname = "r"\npattern = "x"\nforbid = ["large"]\n')
    known = load_catalogue(file)
    decision = Router.heuristic(known).decide("x")
    assert [model for model, _ in arm_chain(decision, "large", ModelNames(known))] == ["small", "coder"]


def test_nothing_is_explored_against_a_preference(tmp_path: Path) -> None:
    rules = '[[rule]]\nname = "sql"\npattern = "select"\nprefer = ["coder"]\n'
    curious = Policy("curious", exploration=0.5)
    decide = router(tmp_path, rules).decide
    seen = [decide("select 1", policy=curious) for _ in range(50)]
    assert {(d.model, d.propensity) for d in seen} == {("coder", 1.0)}


@pytest.mark.parametrize(
    ("rule", "line", "field"),
    [
        ('name = "a"\nprefer = ["x"]', 18, "matches nothing"),
        ('name = "a"\npattern = "x"', 18, "does nothing"),
        ('name = "a"\npattern = "("\nprefer = "x"', 18, "'pattern' is no regular expression"),
        ('name = "a"\nlabel = "easy"\nprefer = "x"', 18, "'label' must be of simple"),
        ('name = "a"\nfamily = "sport"\nprefer = "x"', 18, "'family' must be of knowledge"),
        ('name = "a"\nlanguage = "German"\nprefer = "x"', 18, "'language' must be a code"),
        ('name = "a"\nuterances = ["x"]\nprefer = "x"', 18, "did you mean 'utterances'"),
        ('name = "a"\npattern = "x"\nprefer = [1]', 18, "'prefer' must be a text or a list of texts"),
        ('name = "a"\nutterances = ["x"]\nsimilarity = 7\nprefer = "x"', 18, "'similarity' must be a number"),
        ('pattern = "x"\nprefer = "x"', 18, "'name' must be a text"),
        ('name = "a"\npattern = "x"\nprefer = "x"\n[[rule]]\nname = "a"\npattern = "y"\nprefer = "x"', 22, "two rules"),
    ],
)
def test_a_bad_rule_is_an_error_with_file_line_and_field(tmp_path: Path, rule: str, line: int, field: str) -> None:
    file = catalogue(tmp_path, f"[[rule]]\n{rule}\n")
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(file)
    assert f"catalogue.toml, line {line}" in str(caught.value)
    assert field in str(caught.value)
    policy = tmp_path / "p.toml"
    policy.write_text(f"[[rule]]\n{rule}\n")
    with pytest.raises(PolicyError, match=r"p\.toml, line \d"):
        resolve_policy(str(policy))


class Directions:
    """An encoder whose vectors are known: texts about code point one way, others another."""

    name, dim = "directions", 3

    def embed(self, texts: Any) -> Any:
        rng = np.random.default_rng(0)
        base = np.array([[1.0, 0, 0] if "code" in text else [0, 1.0, 0] for text in texts], np.float32)
        noisy = base + 0.1 * rng.normal(size=base.shape).astype(np.float32)
        return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def test_a_query_like_the_examples_matches_and_another_does_not() -> None:
    (rule,) = rules_from([{"name": "c", "utterances": ["code this", "code that"], "prefer": "coder"}], "", "test")
    book, encoder = RuleBook(Directions()), Directions()
    for text, expected in (("some code", rule), ("the weather", None)):
        assert book.first([rule], Reading(text, Context(), 0, None, encoder.embed([text])[0])) is expected
    strict = Rule("s", utterances=rule.utterances, similarity=1.0, prefer=("coder",))
    assert book.first([strict], Reading("the weather", Context(), 0, None, encoder.embed(["x"])[0])) is None
    assert book.first([rule], Reading("some code", Context(), 0)) is None  # no encoder: it cannot be told


@pytest.mark.parametrize(
    ("reading", "matches"),
    [
        (Reading("q", Context(), 2), False),
        (Reading("q", Context(), 2, 2), True),
        (Reading("q", Context(), 0, 2), False),
        (Reading("q", Context(tools=(Tool("calendar.create"),), n_tools=1), 2, 2), True),
    ],
)
def test_conditions_of_different_kinds_must_all_hold(reading: Reading, matches: bool) -> None:
    rule = Rule("r", label=("complex", "moderate"), family=("code",), prefer=("x",))
    assert (RuleBook(None).first([rule], reading) is rule) is matches


def test_attachments_match_by_kind_name_or_presence() -> None:
    def matches(wanted: str, name: str, kind: str) -> bool:
        return Rule("r", attachment=(wanted,), prefer=("x",)).has_attachment(name, kind)

    assert matches("image", "cat.png", "image")
    assert not matches("image", "a.pdf", "document")
    assert matches("*.PDF", "a.pdf", "document")
    assert matches("any", "a.pdf", "")
    assert not matches("any", "", "")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("关掉厨房的灯", "zh"),
        ("明日の天気は", "ja"),
        ("불 꺼 줘", "ko"),
        ("Verschiebe den Termin mit Anna auf Freitag", "de"),
        ("éteins la lumière de la cuisine s'il te plaît", "fr"),
        ("12345 !", None),
    ],
)
def test_the_language_of_a_text(text: str, code: str | None) -> None:
    assert language_of(text) == code


def test_six_lines_send_code_to_the_coder(tmp_path: Path) -> None:
    """With the shipped bundle."""
    rules = (
        '[[rule]]\nname = "code"\n'
        'utterances = ["write a python function that parses dates", "fix this stack trace", "refactor this class", '
        '"why does this SQL query return duplicates", "explain this regular expression"]\nprefer = ["coder"]\n'
    )
    shipped = Router.load(ROOT / "models" / "default", catalogue=load_catalogue(catalogue(tmp_path, rules)))
    code = ["write a java method that reverses a string", "why does this loop never end", "unit tests for this parser"]
    other = ["turn off the kitchen lights", "book a table for two tomorrow at eight", "what is the capital of Peru"]
    assert [shipped.decide(text).rule for text in code] == ["code"] * 3
    assert [shipped.decide(text).rule for text in other] == [None] * 3
