"""The catalogue: what a file may say, and the field that an error names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.catalogue import Catalogue, catalogue_from, load_catalogue, model_entry, model_from
from router_ml.errors import CatalogueError
from router_ml.types import LABELS

PRIOR = {"latency_s": 1.0, "success": 0.9}
MODEL = '[[model]]\nname = "m"\nprior = { latency_s = 1, success = 0.5 }\n'


def test_the_packaged_catalogue_has_the_three_roles() -> None:
    catalogue = load_catalogue()
    assert [(m.name, m.role) for m in catalogue] == [
        ("llama3.2:3b-instruct", "fast"),
        ("qwen2.5:3b-instruct", "balanced"),
        ("qwen3:8b", "accurate"),
    ]
    for model in catalogue:
        assert model.price_input_usd_per_mtok == model.price_output_usd_per_mtok == 0.0
        assert model.can("tools")
        assert set(model.prior.success) == set(LABELS)
    assert catalogue.by_role("accurate") is catalogue["qwen3"]
    assert catalogue["llama3.2:latest"].name == "llama3.2:3b-instruct"
    assert catalogue.find("gpt-17") is None


def test_an_unknown_model_names_those_there_are() -> None:
    with pytest.raises(CatalogueError, match=r"'gpt-17'.*qwen3:8b"):
        load_catalogue()["gpt-17"]


def test_one_number_stands_for_all_labels() -> None:
    model = model_from({"name": "m", "prior": PRIOR}, "here")
    assert model.prior.latency_s == dict.fromkeys(LABELS, 1.0)
    assert model.capabilities is None
    assert model.can("vision")  # unknown counts as able


@pytest.mark.parametrize("name", load_catalogue().names)
def test_entries_survive_a_round_trip(name: str) -> None:
    model = load_catalogue()[name]
    assert model_from(model_entry(model), "again") == model


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"role": "quick"}, "role"),
        ({"role": ["fast"]}, "role"),
        ({"capabilities": "tools"}, "capabilities"),
        ({"capabilities": 5}, "capabilities"),
        ({"capabilities": [["tools"]]}, "capabilities"),
        ({"capabilities": ["flight"]}, "capabilities"),
        ({"aliases": "mm"}, "aliases"),
        ({"hosts": "http://h:1"}, "hosts"),
        ({"hosts": [1]}, "hosts"),
        ({"hosts": [""]}, "hosts"),
        ({"hosts": ["localhost:99999999"]}, "hosts"),
        ({"hosts": ["file:///etc/passwd"]}, "hosts"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\ud800"}, "name"),
        ({"aliases": [""]}, "aliases"),
        ({"role": {"a": [[[[[]]]]]}}, "role"),
        ({"prior": {**PRIOR, "latency_log_sd": 700.0}}, "latency_log_sd"),
        ({"parameters_b": np.float32("nan")}, "parameters_b"),
        ({"parameters_b": -1}, "parameters_b"),
        ({"context_window_tokens": "32k"}, "context_window_tokens"),
        ({"context_window_tokens": float("nan")}, "context_window_tokens"),
        ({"price_input_usd_per_mtok": 10**400}, "price_input_usd_per_mtok"),
        ({"price_output_usd_per_mtok": True}, "price_output_usd_per_mtok"),
        ({"prior": 5}, "prior"),
        ({"prior": {"latency_source": "guess"}}, "prior.latency_source"),
        ({"measured": 5}, "measured"),
        ({"measured": {"decode_tokens_per_s": 0, "prompt_tokens_per_s": 5}}, "measured.decode_tokens_per_s"),
        ({"prior": {**PRIOR, "success": 1.2}}, "prior.success"),
        ({"prior": {**PRIOR, "success": {"simple": 1}}}, "prior.success"),
        ({"prior": {**PRIOR, "latency_s": "slow"}}, "prior.latency_s"),
        ({"prior": {**PRIOR, "latency_log_sd": float("inf")}}, "latency_log_sd"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(CatalogueError) as caught:
        model_from({"name": "m", "prior": PRIOR, **change}, "mine.toml: model 1")
    assert f"'{field}'" in str(caught.value)
    assert str(caught.value).startswith("mine.toml: model 1")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"model = 5",
        b"model = []",
        b"model = [1]",
        b"[[model]]",
        b"x = ",
        b"\xff\xfe",
        b"format = 2\n",
        b'format = "1"',
        b"format = true\n",
        b"format = -5\n",
        b"format = nan\n",
        b"format = " + b"9" * 5000,
        b"a = " + b"[" * 5000 + b"]" * 5000,
    ],
)
def test_a_file_that_is_no_catalogue_names_itself(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text + (MODEL.encode() if text.startswith(b"format") else b""))
    with pytest.raises(CatalogueError, match="mine"):
        load_catalogue(path)
    with pytest.raises(CatalogueError, match="absent"):
        load_catalogue(tmp_path / "absent.toml")


def test_a_byte_order_mark_is_read_over_and_a_pipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\ufeff" + MODEL, encoding="utf-8")
    assert load_catalogue(path).names == ("m",)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CatalogueError, match="not a regular file"):
        load_catalogue(tmp_path / "pipe")


def test_numbers_of_numpy_are_numbers() -> None:
    model = model_from(
        {"name": "m", "parameters_b": np.float32(3), "context_window_tokens": np.int64(8), "prior": PRIOR}, "t"
    )
    assert (model.parameters_b, model.context_window_tokens) == (3.0, 8)


def test_the_table_form_of_a_model_leaves_its_hosts_at_home() -> None:
    model = model_from({"name": "m", "hosts": ["http://carol:pw@10.0.0.5"], "prior": PRIOR}, "t")
    assert "hosts" not in model_entry(model)


def test_a_wrong_host_is_named_without_its_password() -> None:
    with pytest.raises(CatalogueError, match="'hosts'") as caught:
        model_from({"name": "m", "hosts": ["http://carol:secret@h:99999"], "prior": PRIOR}, "t")
    assert "secret" not in str(caught.value)


def test_two_models_may_not_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MODEL + MODEL)
    with pytest.raises(CatalogueError, match="'m' is used by two models"):
        load_catalogue(path)


def test_extending_leaves_known_models_alone() -> None:
    new = model_from({"name": "new", "prior": PRIOR}, "t")
    known = model_from({"name": "qwen3", "prior": PRIOR}, "t")  # an alias already
    extended = load_catalogue().extended([new, known])
    assert extended.names[-1] == "new"
    assert len(extended) == 4
    assert "qwen3" in extended
    assert Catalogue(()).names == ()


def test_slips_of_the_pen_are_told_and_other_keys_are_free(caplog: pytest.LogCaptureFixture) -> None:
    prior = {"latency_s": 1.0, "success": 0.9, "sucess": 0.4, "note": "measured at home"}
    model_from({"name": "slip", "aliasses": ["s"], "colour": "red", "prior": prior}, "mine.toml: model 1")
    assert [record.message for record in caplog.records] == [
        "mine.toml: model 1 (slip): the unknown key 'aliasses' is ignored; did you mean 'aliases'?",
        "mine.toml: model 1 (slip): prior: the unknown key 'sucess' is ignored; did you mean 'success'?",
    ]
    assert model_from({"name": "m", "prioir": prior}, "mine.toml: model 2").prior.success["simple"] != 0.9
    assert "did you mean 'prior'?" in caplog.records[-1].message


def test_a_model_with_a_name_alone_has_the_priors_of_the_library() -> None:
    small, large = (model_from({"name": name}, "here").prior for name in ("llama3.2:1b", "llama3.3:70b"))
    for label in LABELS:
        assert small.success[label] < large.success[label]
        assert small.latency_s[label] < large.latency_s[label]
    assert small.success["complex"] < small.success["simple"]
    assert small.latency_source == "prior"


def test_what_a_prior_states_wins_over_the_library() -> None:
    prior = model_from({"name": "llama3.2:1b", "prior": {"success": 0.5}}, "here").prior
    assert prior.success == dict.fromkeys(LABELS, 0.5)
    assert prior.strength == 20.0
    assert prior.latency_s["simple"] < prior.latency_s["complex"]


def test_measured_rates_give_the_expected_seconds() -> None:
    measured = {"decode_tokens_per_s": 10.0, "prompt_tokens_per_s": 500.0, "load_s": 4.0, "at": "2026-11-28"}
    model = model_from({"name": "llama3.2:3b", "measured": measured}, "here")
    # 1,000 tokens of prompt at 500 a second, 40 tokens at 10, and the tenth of a second of a call
    assert model.prior.latency_s["simple"] == pytest.approx(0.1 + 2.0 + 4.0)
    assert model.prior.latency_source == "measured"
    assert model_from(model_entry(model), "again") == model


def test_an_arm_without_a_prior_has_that_of_its_way_to_be_asked() -> None:
    arms = model_from({"name": "qwen3:8b", "arm": [{"think": False}, {"think": True}]}, "here").arms
    off, on = (arm.prior for arm in arms)
    for label in LABELS:
        assert off.success[label] < on.success[label]
        assert off.latency_s[label] < on.latency_s[label]


def test_an_absent_model_is_not_offered() -> None:
    entries = [{"name": "here"}, {"name": "gone", "absent": True}]
    assert catalogue_from(entries, "mine.toml").names == ("here",)
    with pytest.raises(CatalogueError, match="absent"):
        catalogue_from(entries[1:], "mine.toml")
