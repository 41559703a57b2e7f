"""Keys of arms, and the arms of a catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router_ml.arm import arm_key, arm_phrase, split_key
from router_ml.catalogue import Catalogue, catalogue_from, load_catalogue, model_entry, model_from
from router_ml.errors import CatalogueError, RowError
from router_ml.jsonl import outcome_row, read_outcomes
from router_ml.types import LABELS, Think

PRIOR = {"latency_s": 10.0, "success": 0.9, "output_tokens": 300}
QUICK = {"latency_s": 2.0, "output_tokens": 40}


def entry(*arms: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "m:8b", "aliases": ["m"], "prior": PRIOR, "arm": list(arms), **more}


@pytest.mark.parametrize(
    ("think", "key"),
    [
        (None, "m"),
        (True, "m+think"),
        (False, "m+nothink"),
        ("low", "m+low"),
        ("medium", "m+medium"),
        ("high", "m+high"),
    ],
)
def test_a_key_names_model_and_way(think: Think | None, key: str) -> None:
    assert arm_key("m", think) == key
    assert split_key(key) == ("m", think)


def test_a_plus_in_a_models_name_is_no_way() -> None:
    assert split_key("command-r+") == ("command-r+", None)
    assert split_key("a+b") == ("a+b", None)
    assert split_key("+think") == ("+think", None)


def test_people_read_phrases() -> None:
    assert arm_phrase("qwen3:8b", False) == "qwen3:8b without thinking"
    assert arm_phrase("gpt-oss", "low") == "gpt-oss with low thinking"


def test_each_arm_has_its_own_prior_and_the_rest_of_the_models() -> None:
    slow, quick = catalogue_from([entry({"think": True}, {"think": False, "prior": QUICK})], "t").arms
    assert (slow.name, slow.key, slow.prior.latency_s["simple"]) == ("m:8b", "m:8b+think", 10.0)
    assert (quick.think, quick.prior.latency_s["simple"], quick.prior.success["simple"]) == (False, 2.0, 0.9)


def test_a_model_without_arm_tables_is_one_arm_under_its_name() -> None:
    catalogue = catalogue_from([entry()], "t")
    assert catalogue.arms == catalogue.models
    assert [arm.key for arm in catalogue.arms] == ["m:8b"]


@pytest.mark.parametrize(
    ("ways", "default"), [((False, True), True), (("low", "medium", "high"), "medium"), ((False,), False)]
)
def test_a_bare_name_is_the_way_a_host_asks_by_itself(ways: tuple[Think, ...], default: Think) -> None:
    catalogue = catalogue_from([entry(*({"think": way} for way in ways))], "t")
    arm = catalogue.arm("m")
    assert arm is not None
    assert arm.think == default


def test_arms_are_found_by_alias_and_tag() -> None:
    catalogue = load_catalogue()
    assert [catalogue.arm(key) is not None for key in ("qwen3+nothink", "qwen3:latest+think")] == [True, True]
    assert catalogue.arm("llama3.2+think") is None


def test_arms_survive_the_form_that_bundles_hold() -> None:
    models = load_catalogue().models
    rows = json.loads(json.dumps([model_entry(model) for model in models]))
    assert catalogue_from(rows, "bundle").models == models


def test_an_arms_prior_can_stand_for_the_models() -> None:
    model = model_from({"name": "m", "arm": [{"think": False, "prior": {**PRIOR, "latency_s": 2}}]}, "t")
    assert model.prior.latency_s["simple"] == 2.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (entry({"think": "much"}), "arm 1: field 'think' must be true, false or one of"),
        (entry({"think": 1}), "arm 1: field 'think' must be"),
        (entry({"think": True}, {"think": True}), "two arms have the same 'think' \\(true\\)"),
        (entry({"think": True}, capabilities=["tools"]), "capabilities' lacks 'thinking'"),
        (entry(arm={"think": True}) | {"arm": {"think": True}}, "must be a list of tables"),
        (entry({"think": False, "prior": {"success": 7}}), "arm 1: field 'success' must be a number|arm 1: .*success"),
    ],
)
def test_a_wrong_arm_is_named_with_file_model_and_field(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=message) as caught:
        catalogue_from([wrong], "file.toml")
    assert "file.toml: model 1 (m" in str(caught.value)


def test_further_arms_of_a_known_model_are_added() -> None:
    own = catalogue_from([entry({"think": True})], "t")
    more = catalogue_from([entry({"think": False, "prior": QUICK}, {"think": True, "prior": QUICK})], "t").models
    assert [(a.think, a.prior.latency_s["simple"]) for a in own.extended(more).arms] == [(True, 10.0), (False, 2.0)]
    assert isinstance(own.extended(()), Catalogue)


def test_outcomes_say_how_a_model_was_asked(tmp_path: Path) -> None:
    rows = [{"query_id": "q", "model": "m", "success": 1, "latency_s": 1.0, "think": think} for think in (True, False)]
    path = tmp_path / "outcomes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_outcomes(path)
    assert [outcome.think for outcome in found] == [True, False]
    assert [outcome_row(outcome)["think"] for outcome in found] == [True, False]
    path.write_text(json.dumps({**rows[0], "think": "loud"}) + "\n")
    with pytest.raises(RowError, match="think"):
        read_outcomes(path)


def test_the_packaged_arm_without_thinking_is_quicker_and_a_little_less_sure() -> None:
    slow, quick = (load_catalogue().arm(f"qwen3:8b+{way}") for way in ("think", "nothink"))
    assert slow is not None
    assert quick is not None
    for label in LABELS:
        assert 2.5 < quick.prior.latency_s[label] < 5.0 < slow.prior.latency_s[label]
        assert 0.0 < slow.prior.success[label] - quick.prior.success[label] <= 0.05
