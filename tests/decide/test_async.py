"""`select_models` and `aselect_model`: many queries at once, in threads, on loops, with mistakes among them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml import aselect_model, select_model, select_models
from router_ml.decide.api import DEFAULT
from router_ml.decide.batching import MicroBatcher
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import PRESETS
from router_ml.errors import ContextError, PolicyError, QueryError


@pytest.fixture(autouse=True)
def small_default(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    DEFAULT.reset()
    yield
    DEFAULT.reset()


class Recorder:
    """Decides nothing; notes the batches it is given, and can be made to wait or to refuse."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def decide_many(self, queries: Sequence[str], contexts: Any = None, policy: Any = None) -> list[Any]:
        self.batches.append(list(queries))
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(60)
        if "bad" in queries:
            raise QueryError("bad")
        return [f"{policy}:{query}" for query in queries]


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_caller_is_decided_alone_and_at_once() -> None:
    recorder = Recorder()
    assert await MicroBatcher().decide(recorder, "q", None, "p") == "p:q"
    assert recorder.batches == [["q"]]


async def test_those_who_come_during_a_batch_form_the_next_ones() -> None:
    recorder, batcher = Recorder(), MicroBatcher(max_batch=4)
    recorder.gate.clear()
    first = asyncio.create_task(batcher.decide(recorder, "0", None, "p"))
    while not recorder.batches:
        await asyncio.sleep(0.001)
    others = [asyncio.create_task(batcher.decide(recorder, str(i), None, "p")) for i in range(1, 10)]
    await _settle()
    recorder.gate.set()
    assert await asyncio.gather(first, *others) == [f"p:{i}" for i in range(10)]
    assert recorder.batches == [["0"], ["1", "2", "3", "4"], ["5", "6", "7", "8"], ["9"]]
    assert len(recorder.threads) == 1


async def test_one_mistake_is_the_trouble_of_its_maker_alone() -> None:
    recorder, batcher = Recorder(), MicroBatcher()
    results = await asyncio.gather(
        *(batcher.decide(recorder, query, None, "p") for query in ("a", "bad", "b")), return_exceptions=True
    )
    assert results[0] == "p:a"
    assert isinstance(results[1], QueryError)
    assert results[2] == "p:b"


async def test_policies_are_not_mixed() -> None:
    recorder, batcher = Recorder(), MicroBatcher()
    answers = await asyncio.gather(*(batcher.decide(recorder, "q", None, policy) for policy in ("p", ["r"], "p")))
    assert answers == ["p:q", "['r']:q", "p:q"]


async def test_the_loop_runs_on_while_a_decision_is_made() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    task = asyncio.create_task(MicroBatcher().decide(recorder, "q", None, "p"))
    while not recorder.batches:
        await asyncio.sleep(0.001)
    await _settle()
    assert not task.done()
    recorder.gate.set()
    assert await task == "p:q"


async def test_who_gives_up_holds_up_nobody() -> None:
    recorder, batcher = Recorder(), MicroBatcher()
    recorder.gate.clear()
    first = asyncio.create_task(batcher.decide(recorder, "first", None, "p"))
    while not recorder.batches:
        await asyncio.sleep(0.001)
    gone = asyncio.create_task(batcher.decide(recorder, "gone", None, "p"))
    stays = asyncio.create_task(batcher.decide(recorder, "stays", None, "p"))
    await _settle()
    gone.cancel()
    first.cancel()
    await _settle()
    recorder.gate.set()
    assert await stays == "p:stays"
    assert recorder.batches == [["first"], ["stays"]]


def test_a_closed_loop_leaves_the_batcher_working() -> None:
    recorder, batcher = Recorder(), MicroBatcher()
    recorder.gate.clear()

    async def abandon() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.decide(recorder, "left", None, "p"), 0.05)

    asyncio.run(abandon())
    recorder.gate.set()
    assert asyncio.run(batcher.decide(recorder, "next", None, "p")) == "p:next"


QUERIES = ["check email", "book a flight", "plan a trip to Rome with five friends", "hi", "a", "", "check email"]


def _parts(decision: Any) -> tuple[Any, ...]:
    return decision.model, decision.complexity, decision.policy, decision.bundle, decision.action


async def test_all_three_ways_decide_alike() -> None:
    single = [_parts(select_model(query)) for query in QUERIES]
    DEFAULT.reset()
    assert [_parts(decision) for decision in select_models(QUERIES)] == single
    DEFAULT.reset()
    assert [_parts(d) for d in await asyncio.gather(*map(aselect_model, QUERIES))] == single


async def test_what_was_decided_is_kept_for_all_three_under_new_ids() -> None:
    first = select_model("check email")
    again = [
        select_model("check email"),
        *select_models(["new", "check email"])[1:],
        await aselect_model("check email"),
    ]
    assert all(_parts(decision) == _parts(first) and decision.ranked is first.ranked for decision in again)
    assert len({first.decision_id, *(decision.decision_id for decision in again)}) == 4


def test_nothing_is_kept_with_options_exploration_another_router_or_no_cache(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    first = select_model("check email")
    exploring = replace(PRESETS["balanced"], exploration=0.5)
    assert select_model("check email", variant="b").ranked is not first.ranked
    assert select_model("check email", policy=exploring).ranked is not first.ranked
    assert select_model("check email", router=Router.load(tiny_bundle)).ranked is not first.ranked
    monkeypatch.setenv("ROUTER_ML_DECISION_CACHE", "0")
    DEFAULT.reset()
    assert select_model("check email").ranked is not select_model("check email").ranked


def test_a_passing_fault_of_the_encoder_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    router = DEFAULT.get()[0]
    features = router._features

    class Broken:
        def extract(self, *_: Any) -> Any:
            raise RuntimeError("out of memory")

    router._features = Broken()  # type: ignore[assignment]
    assert select_model("check email").degraded
    router._features = features
    assert not select_model("check email").degraded


def test_changing_an_answer_changes_no_other() -> None:
    first = select_model("check email")
    kept = dict(first.complexity_probabilities)
    first.complexity_probabilities.clear()  # type: ignore[attr-defined]
    second = select_model("check email")
    assert dict(second.complexity_probabilities) == kept
    second.complexity_probabilities.clear()  # type: ignore[attr-defined]
    assert dict(select_model("check email").complexity_probabilities) == kept


async def test_errors_are_those_of_a_single_call() -> None:
    with pytest.raises(QueryError):
        await aselect_model(5)  # type: ignore[arg-type]
    with pytest.raises(ContextError):
        await aselect_model("x", {"tools": 5})
    with pytest.raises(PolicyError):
        await aselect_model("x", policy="nope")
    with pytest.raises(QueryError):
        select_models("one string")
    with pytest.raises(QueryError, match="2 queries but 1 contexts"):
        select_models(["a", "b"], [None])
    assert select_models([]) == []


def test_callers_of_several_loops_in_several_threads_are_all_served() -> None:
    answers: list[list[Any]] = []

    async def many(offset: int) -> list[Any]:
        return await asyncio.gather(*(aselect_model(f"query {offset + i}") for i in range(20)))

    threads = [threading.Thread(target=lambda n=n: answers.append(asyncio.run(many(100 * n)))) for n in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(len, answers)) == [20] * 4
    assert len({decision.decision_id for group in answers for decision in group}) == 80


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_many_texts_get_the_vectors_they_get_alone(tiny_bundle: Path, workers: int) -> None:
    embedder = OnnxEmbedder(tiny_bundle / "encoder.onnx", tiny_bundle / "tokenizer.json", workers=workers)
    texts = [("ab " * (1 + i % 7)) + "c" * (i % 5) for i in range(60)] + ["", "z" * 900]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert embedder.embed([]).shape == (0, embedder.dim)


def test_many_texts_get_the_vectors_each_has_alone_in_their_order(tiny_bundle: Path) -> None:
    embedder = OnnxEmbedder(tiny_bundle / "encoder.onnx", tiny_bundle / "tokenizer.json", workers=2)
    texts = ["a", "a b c", "a", "b a", *["c"] * 30]
    assert np.array_equal(embedder.embed(texts), np.concatenate([embedder.embed([text]) for text in texts]))


def test_an_error_in_one_batch_is_raised_and_the_embedder_goes_on(tiny_bundle: Path) -> None:
    embedder = OnnxEmbedder(tiny_bundle / "encoder.onnx", tiny_bundle / "tokenizer.json", workers=2)
    session = embedder._session

    class Failing:
        def run(self, outputs: Any, feed: Any) -> Any:
            raise RuntimeError("out of memory")

    embedder._session = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        embedder.embed(["a", "a b", "a b c", "a b c d"])
    embedder._session = session
    assert embedder.embed(["a", "a b"]).shape == (2, embedder.dim)
