"""What hosts say of their models, and the tables of a catalogue that follow from it."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from router_ml.catalogue import catalogue_from
from router_ml.hosts.inventory import catalogue_of_hosts, tables_of
from router_ml.hosts.listing import HostListing, Listed, list_hosts
from router_ml.hosts.measure import Measurement, measure
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.ollama_double.models import default_models
from tests.timing import Stopwatch

NOWHERE = "http://127.0.0.1:9"


def test_the_recorded_server_is_read_as_it_describes_itself() -> None:
    with OllamaDouble(recorded=True) as double:
        (listing,) = list_hosts([double.url])
    assert listing.problem == ""
    found = {model.name: model for model in listing.models}
    thinker = found["qwen3:8b"]
    # as /api/show, /api/tags and /api/ps of a real 0.33 were recorded
    assert (thinker.family, thinker.own_context_tokens, thinker.given_context_tokens) == ("qwen3", 8192, 4096)
    assert thinker.parameters_b == pytest.approx(1_709_280 / 1e9)
    assert thinker.size_gb == pytest.approx(0.006847478, abs=0.001)
    assert not found["tiny-embed:latest"].chats
    assert found["loop:latest"].chats


def test_a_table_says_what_the_host_gives_not_what_the_model_could_read() -> None:
    listed = Listed("llama3.2:3b", NOWHERE, own_context_tokens=131_072, capabilities=frozenset({"completion", "tools"}))
    (table,) = tables_of([HostListing(NOWHERE, (listed,))])
    assert (table["context_window_tokens"], table["max_context_tokens"]) == (4096, 131_072)
    loaded = dataclasses.replace(listed, given_context_tokens=8192)
    (table,) = tables_of([HostListing(NOWHERE, (loaded,))])
    assert table["context_window_tokens"] == 8192


def test_a_model_that_can_think_is_offered_in_both_ways() -> None:
    thinks = frozenset({"completion", "thinking"})
    models = (
        Listed("qwen3:8b", NOWHERE, capabilities=thinks),
        Listed("gpt-oss:20b", NOWHERE, family="gptoss", capabilities=thinks),
        Listed("deepseek-r1:7b", NOWHERE, capabilities=thinks),
        Listed("gemma3:4b", NOWHERE, capabilities=frozenset({"completion", "vision"})),
    )
    tables = {table["name"]: table for table in tables_of([HostListing(NOWHERE, models)])}
    ways = {name: [arm["think"] for arm in table.get("arm", ())] for name, table in tables.items()}
    assert ways == {
        "qwen3:8b": [False, True], "gpt-oss:20b": ["low", "medium", "high"], "deepseek-r1:7b": [], "gemma3:4b": [],
    }  # fmt: skip
    assert catalogue_from(list(tables.values()), "t").arm("gpt-oss:20b+low") is not None


def test_one_model_under_two_names_and_on_two_hosts_is_one_table() -> None:
    other = "http://127.0.0.1:10"
    one = Listed("qwen3:latest", NOWHERE, digest="d1")
    models = (one, dataclasses.replace(one, name="qwen3:8b"))
    there = HostListing(other, (dataclasses.replace(one, name="qwen3:8b", host=other),))
    (table,) = tables_of([HostListing(NOWHERE, models), there])
    assert table["name"] == "qwen3:8b"
    assert table["aliases"] == ["qwen3:latest"]
    assert table["hosts"] == [NOWHERE, other]


def test_two_builds_of_a_name_on_two_hosts_are_one_model() -> None:
    other = "http://127.0.0.1:10"
    old, new = (Listed("qwen3:8b", host, digest=digest) for host, digest in ((NOWHERE, "d1"), (other, "d2")))
    (table,) = tables_of([HostListing(NOWHERE, (old,)), HostListing(other, (new,))])
    assert table["hosts"] == [NOWHERE, other]


def test_models_of_the_default_host_name_no_host() -> None:
    listing = HostListing(NOWHERE, (Listed("qwen3:8b", NOWHERE),))
    assert "hosts" not in tables_of([listing], NOWHERE)[0]
    assert tables_of([listing], "http://127.0.0.1:10")[0]["hosts"] == [NOWHERE]


def test_hosts_without_a_model_give_no_catalogue() -> None:
    embedder = DoubleModel("nomic-embed-text", capabilities=frozenset({"embedding"}))
    with OllamaDouble([embedder]) as double:
        assert catalogue_of_hosts([double.url]) is None
    assert catalogue_of_hosts([NOWHERE]) is None


def test_an_openai_server_is_asked_for_its_models() -> None:
    with OllamaDouble() as double:
        found = catalogue_of_hosts([f"openai+{double.url}"])
    assert found is not None
    assert set(found.names) == {model.name for model in default_models()}


def test_hosts_can_be_listed_inside_an_event_loop() -> None:
    async def inside() -> tuple[HostListing, ...]:
        return list_hosts([NOWHERE])

    assert "takes no connections" in asyncio.run(inside())[0].problem


def test_a_measurement_finds_the_rates_the_host_has() -> None:
    model = DoubleModel(
        "qwen3:8b", decode_tokens_per_s=400.0, prompt_tokens_per_s=5000.0, load_s=0.3, family="qwen3",
        capabilities=frozenset({"completion", "thinking"}),
    )  # fmt: skip
    with OllamaDouble([model]) as double:
        (listing,) = list_hosts([double.url])
        with Stopwatch() as watch:
            found = measure(listing.models[0], 60.0)
        assert isinstance(found, Measurement)
        assert found.decode_tokens_per_s == pytest.approx(400.0, rel=0.05)
        assert found.prompt_tokens_per_s == pytest.approx(5000.0, rel=0.05)
        assert found.load_s is not None
        assert 0.3 <= found.load_s < 0.45 + watch.lost_s
        assert found.context_tokens == 4096
        assert found.thinking_tokens is not None
        assert found.output_tokens is not None
        assert found.thinking_tokens > found.output_tokens
        assert len(double.generations) == 2  # not a call too many


def test_a_measurement_ends_in_time_and_says_why_there_is_none() -> None:
    slow = DoubleModel("slow", load_s=30.0)
    with OllamaDouble([slow]) as double:
        (listing,) = list_hosts([double.url])
        assert measure(listing.models[0], 0.3) == "it took longer than 0.3 s"
    with OllamaDouble() as double:
        assert "not found" in str(measure(Listed("gone", double.url), 5.0))
