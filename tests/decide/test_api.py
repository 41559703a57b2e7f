"""The public face: one call, any thread, nothing heavy, and an answer even where nothing learned can be used."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import router_ml
from router_ml import aselect_model, select_model, select_models
from router_ml.bundles.format import ARRAYS, write_manifest
from router_ml.decide.api import DEFAULT, DefaultRouter
from router_ml.decide.features.extractor import Extractor
from router_ml.decide.router import Router
from router_ml.errors import BundleCorrupt, CatalogueError, ContextError, PolicyError, QueryError, SettingsError
from router_ml.settings import CHECKOUT

SHIPPED = CHECKOUT / "models" / "default"
HEAVY = (
    "torch",
    "sklearn",
    "pandas",
    "mlflow",
    "sentence_transformers",
    "scipy",
    "transformers",
    "joblib",
    "matplotlib",
)
QUERIES = ["check email", "book a flight", "send it", "", "when the parcel arrives, text Omar", "汉字 📧", "a" * 3000]
CONTEXTS: list[Any] = [
    None,
    {"tools": ["search", {"name": "book", "description": "book a seat"}]},
    {"history": ["the report for Dana", "assistant: by mail?"]},
    {"attachment": "scan.png"},
    {"latency_budget_s": 2.0, "prompt_tokens": 900},
    {"n_tools": 12},
    {},
]


def _environment(**changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROUTER_ML_")}
    return {**kept, "PYTHONPATH": str(CHECKOUT), **changes}


def _python(code: str, **changes: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=_environment(**changes),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def fresh_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("ROUTER_ML_")]:
        monkeypatch.delenv(name)
    DEFAULT.reset()
    yield
    DEFAULT.reset()


def test_a_decision_imports_nothing_heavy() -> None:
    loaded = _python(
        "import json, sys\nfrom router_ml import select_model\nd = select_model('check email')\n"
        "print(json.dumps({'loaded': sorted(sys.modules), 'bundle': d.bundle, 'degraded': d.degraded}))"
    )
    assert not set(HEAVY) & set(loaded["loaded"])
    assert {"numpy", "onnxruntime", "tokenizers"} <= set(loaded["loaded"])
    assert loaded["bundle"].startswith("default@")
    assert not loaded["degraded"]


def test_importing_alone_loads_next_to_nothing() -> None:
    loaded = _python("import json, sys, router_ml\nprint(json.dumps(sorted(sys.modules)))")
    assert not {*HEAVY, "numpy", "onnxruntime", "tokenizers", "ollama", "httpx"} & set(loaded)


def test_every_public_name_is_there() -> None:
    assert all(getattr(router_ml, name) is not None for name in router_ml.__all__)
    assert set(router_ml.__all__) <= set(dir(router_ml))
    with pytest.raises(AttributeError, match="no attribute 'select_modell'"):
        router_ml.select_modell  # noqa: B018


def test_the_shipped_bundle_is_small_licensed_and_says_what_it_was_made_from() -> None:
    files = [path for path in SHIPPED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert "MIT License" in (SHIPPED / "NOTICE").read_text(encoding="utf-8")
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["data_sha256"]) == 64
    assert manifest["metrics"]["encoder/int8_cosine_mean"] >= 0.99
    assert manifest["metrics"]["encoder/float_cosine_min"] >= 0.999
    assert manifest["metrics"]["encoder/accuracy_lost_to_int8"] <= 0.005


def test_the_shipped_bundle_was_made_from_the_shipped_data() -> None:
    from router_ml.jsonl import read_queries
    from training.corpus import corpus_path, data_sha256

    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    graded = read_queries(corpus_path().with_name("difficulty.jsonl"))
    assert manifest["data_sha256"] == data_sha256([*read_queries(corpus_path()), *graded])


def test_the_shipped_bundle_reads_rows_it_never_saw_as_well_as_the_readme_says() -> None:
    """Measured through the serving code, not taken from the manifest: the test groups, and the held-out rows."""
    from benchmarks.complexity_report import report
    from router_ml.jsonl import read_queries
    from training.corpus import corpus_path, data_dir
    from training.splits import group_of, is_test

    router = Router.load(SHIPPED)
    test = report(router, [query for query in read_queries(corpus_path()) if is_test(group_of(query))])
    assert test["rows"] >= 3900
    assert test["macro_f1"] >= 0.85
    assert test["ece"] <= 0.04
    assert report(router, read_queries(data_dir() / "heldout.jsonl"))["macro_f1"] >= 0.90
    others = report(router, read_queries(data_dir() / "heldout_writer.jsonl"))
    assert others["macro_f1"] >= 0.87
    assert others["ece"] <= 0.05


@pytest.mark.parametrize(
    ("query", "label"),
    [
        ("Включи свет на кухне", "simple"),
        ("Buche einen Flug", "ambiguous"),
        ("check email", "simple"),
        ("set a timer for ten minutes", "simple"),
        ("schedule a call with Dana on Thursday at 3pm for 45 minutes and invite Luis", "moderate"),
        ("find a free hour with Dana next week, book it and mail her the agenda", "complex"),
        ("if it rains tomorrow move my run to the gym and tell Sam, otherwise book the court", "complex"),
        ("send it", "ambiguous"),
        ("can you fix that thing", "ambiguous"),
    ],
)
def test_the_shipped_bundle_reads_plain_queries(query: str, label: str) -> None:
    assert select_model(query).complexity == label


def test_many_answers_are_those_of_one_by_one(tiny_bundle: Path) -> None:
    for router in (Router.load(tiny_bundle), Router.load(SHIPPED), Router.heuristic()):
        together = router.decide_many(QUERIES * 4, CONTEXTS * 4, "balanced")
        for query, context, decision in zip(QUERIES * 4, CONTEXTS * 4, together, strict=True):
            alone = router.decide(query, context)
            assert (alone.model, alone.complexity, alone.action) == (
                decision.model,
                decision.complexity,
                decision.action,
            )
            assert alone.complexity_probabilities == pytest.approx(decision.complexity_probabilities, abs=0.02)
            assert [c.model for c in alone.ranked] == [c.model for c in decision.ranked]


def test_ids_are_never_repeated(tiny_bundle: Path) -> None:
    decisions = Router.load(tiny_bundle).decide_many(["x"] * 500)
    assert len({decision.decision_id for decision in decisions}) == 500


def test_equal_queries_get_equal_answers(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)
    first, second = (router.decide("book a flight", CONTEXTS[1]).as_dict() for _ in range(2))
    assert {**first, "decision_id": ""} == {**second, "decision_id": ""}


def test_many_threads_share_one_router(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    built: list[Any] = []
    load = Router.load_or_heuristic.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Router, "load_or_heuristic", classmethod(lambda cls, **kw: built.append(1) or load(cls, **kw)))
    gate = threading.Barrier(16)

    def ask(i: int) -> tuple[int, str, dict[str, float]]:
        if i < 16:
            gate.wait(60)
        decision = select_model(QUERIES[i % 7], CONTEXTS[i % 7])
        return i % 7, decision.model, dict(decision.complexity_probabilities)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(400)))
    assert built == [1]
    router = Router.load(tiny_bundle)
    for which, model, probabilities in answers:
        expected = router.decide(QUERIES[which], CONTEXTS[which])
        assert (model, probabilities) == (
            expected.model,
            pytest.approx(dict(expected.complexity_probabilities), abs=1e-5),
        )


def test_forgetting_the_router_while_others_ask_is_safe(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    monkeypatch.setattr(Router, "load_or_heuristic", classmethod(lambda cls, **_: object()))
    holder, stop, wrong = DefaultRouter(), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            router, settings = holder.get()
            if router is None or settings is None:
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(2000):
            holder.reset()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert not wrong


def _spoil_nothing(bundle: Path) -> None:
    shutil.rmtree(bundle)


def _spoil_truncated(bundle: Path) -> None:
    os.truncate(bundle / "encoder.onnx", 100)


def _spoil_newer(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


def _spoil_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("no json")


def _spoil_encoder(bundle: Path) -> None:
    from router_ml.bundles.format import write_manifest

    (bundle / "encoder.onnx").write_bytes(b"nonsense")
    write_manifest(bundle, {"name": "x"})


def _spoil_catalogue(bundle: Path) -> None:
    from router_ml.bundles.format import write_manifest

    (bundle / "catalogue.json").write_text('{"models": [{"name": 5}]}')
    write_manifest(bundle, {"name": "x"})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_spoil_nothing, "no bundle in"),
        (_spoil_truncated, "100 bytes instead of"),
        (_spoil_newer, "format 99"),
        (_spoil_manifest, "cannot be read"),
        (_spoil_encoder, "cannot load the encoder"),
        (_spoil_catalogue, "'name' must be"),
    ],
)
def test_a_spoilt_bundle_gives_a_decision_by_rules_that_says_so(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, said: str
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    spoil(bundle)
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(bundle))
    decision = select_model("check email")
    assert decision.degraded
    assert decision.bundle == "heuristic"
    assert "heuristic: " in decision.reason
    assert said in decision.reason
    assert "\n" not in decision.reason
    assert decision.complexity == "simple"


def test_a_broken_pointer_gives_a_decision_by_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "active.json").write_text("{")
    monkeypatch.setenv("ROUTER_ML_MODELS_DIR", str(tmp_path))
    assert "active.json" in select_model("check email").reason


def test_an_encoder_that_fails_in_service_leaves_the_rules(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)

    class Broken:
        def extract(self, *_: Any) -> Any:
            raise RuntimeError("out of memory\nand more")

    router._features = Broken()
    decision = router.decide("find a free hour with Dana and mail her the agenda")
    assert decision.degraded
    assert decision.complexity == "complex"
    assert "the encoder failed (out of memory)" in decision.reason
    assert "\n" not in decision.reason


class PanicException(BaseException):
    """What pyo3 raises for a panic of Rust code."""


@pytest.mark.parametrize("trouble", ["panic", "nan"])
@pytest.mark.parametrize("queries", [["check email"], ["check email", "book a flight"]])
def test_neither_a_panic_nor_nan_gets_past_the_rules(tiny_bundle: Path, trouble: str, queries: list[str]) -> None:
    router = Router.load(tiny_bundle)
    extractor = router._features
    assert isinstance(extractor, Extractor)

    class Broken:
        name, dim = "broken", extractor.embedder.dim

        def embed(self, texts: Any) -> Any:
            if trouble == "panic":
                raise PanicException("index out of bounds")
            return np.full((len(texts), self.dim), np.nan, np.float32)

    extractor.embedder = Broken()
    for decision in router.decide_many(queries):
        assert decision.degraded
        assert "the encoder failed (" in decision.reason
        json.dumps(decision.as_dict(), allow_nan=False)


def test_an_interrupt_is_no_failure_of_the_encoder(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)

    class Interrupted:
        def extract(self, *_: Any) -> Any:
            raise KeyboardInterrupt

    router._features = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        router.decide("check email")


@pytest.mark.parametrize("factor", [0.0, 0.5, np.nan])
def test_an_encoder_that_fails_its_self_check_is_not_used(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(tiny_bundle, forged)
    with np.load(forged / ARRAYS) as archive:
        arrays = dict(archive)
    np.savez(forged / ARRAYS, **{**arrays, "self_check/vectors": arrays["self_check/vectors"] * factor})
    write_manifest(forged, {"name": "forged", "metrics": {}})
    with pytest.raises(BundleCorrupt, match=r"other vectors|holds NaN"):
        Router.load(forged)
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(forged))
    decision = select_model("check email")
    assert (decision.bundle, decision.degraded) == ("heuristic", True)
    assert "mean cosine" in decision.reason or "holds NaN" in decision.reason


def test_messages_are_taken_wherever_a_query_is(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    said = select_model("and mail her", {"history": ["user: find Dana", "assistant: found"], "attachment": "a.pdf"})
    file = {"type": "file", "filename": "a.pdf", "base64": "AA"}
    messages = [("user", "find Dana"), {"role": "assistant", "content": "found"},
                {"role": "user", "content": [{"type": "text", "text": "and mail her"}, file]}]  # fmt: skip
    same = [select_model(messages), select_models([messages])[0], asyncio.run(aselect_model(messages)),
            Router.load(tiny_bundle).decide(messages), select_model(messages)]  # fmt: skip
    for decision in same:
        assert decision.complexity_probabilities == said.complexity_probabilities
        assert decision.ranked == said.ranked
    assert Router.load(tiny_bundle).explain(messages).label == said.complexity


def test_a_loop_of_tool_results_fills_the_window() -> None:
    turns: list[Any] = [("user", "check my email and tell me who wrote")]
    for number in range(40):
        call = {"function": {"name": "get_mail", "arguments": {"q": str(number)}}}
        turns += [{"role": "assistant", "content": "", "tool_calls": [call]}, ("tool", "mail " * 2400)]
    decision = select_model(turns)
    assert "tokens exceeds its window of 32768" in decision.excluded["qwen2.5:3b-instruct"]
    assert decision.complexity == select_model("check my email and tell me who wrote").complexity


def test_functions_are_tools_and_their_decision_is_cached(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))

    def find_slot(person: str, minutes: int = 30) -> str:
        """Find a free slot in a calendar."""
        return person * minutes

    decision = select_model("find a slot", {"tools": [find_slot]})
    assert decision.ranked == Router.load(tiny_bundle).decide("find a slot", {"tools": [find_slot]}).ranked
    cache = DEFAULT.state().cache
    assert cache is not None
    before = len(cache)
    select_model("find a slot", {"tools": [find_slot]})
    assert len(cache) == before


def test_a_decision_is_a_value(tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)
    one, other = router.decide("check email"), router.decide("check email")
    assert len({one, other, copy.deepcopy(one)}) == 2


def test_a_decision_leaves_nothing_in_a_new_home(tmp_path: Path) -> None:
    """The libraries it loads phone nowhere and write nothing."""
    code = "from router_ml import select_model; print('{\"model\": \"%s\"}' % select_model('check email'))"
    kept = {k: v for k, v in _environment().items() if k not in ("ORT_DISABLE_TELEMETRY",) and not k.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, "HOME": str(tmp_path)}, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_signal_handler_may_decide(tiny_bundle: Path) -> None:
    code = f"""
import os, signal, time
os.environ["ROUTER_ML_BUNDLE"] = {str(tiny_bundle)!r}
from router_ml import select_model
n = 0
def handle(*_):
    global n
    n += 1
    select_model(f"in the handler {{n % 7}}", {{"tools": ["a"]}})
    signal.setitimer(signal.ITIMER_REAL, 0.003)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
end = time.monotonic() + 3
while time.monotonic() < end or n <= 10:
    select_model(f"outside {{n % 50}}", {{"tools": ["a", f"b{{n % 5}}"]}})
signal.setitimer(signal.ITIMER_REAL, 0)
print('{{"handled": %d}}' % n)
"""
    assert _python(code)["handled"] > 10


def test_wrong_input_is_a_typed_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    with pytest.raises(QueryError):
        select_model(5)  # type: ignore[arg-type]
    with pytest.raises(ContextError):
        select_model("x", "context")  # type: ignore[arg-type]
    with pytest.raises(PolicyError):
        select_model("x", policy="nope")
    DEFAULT.reset()
    monkeypatch.setenv("ROUTER_ML_CATALOGUE", str(tmp_path / "none.toml"))
    with pytest.raises(CatalogueError, match=r"none\.toml"):
        select_model("x")
    monkeypatch.setenv("ROUTER_ML_THREADS", "many")
    with pytest.raises(SettingsError, match="ROUTER_ML_THREADS"):
        select_model("x")


@pytest.mark.parametrize("policy", [{}, "", 0, {"preset": "fast"}])
def test_what_is_no_policy_is_no_default_either(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    with pytest.raises(PolicyError, match="unknown policy"):
        select_model("x", policy=policy)
    with pytest.raises(PolicyError, match="unknown policy"):
        select_models(["x"], policy=policy)


@pytest.mark.parametrize("many", [lambda q, c: select_models(q, c), lambda q, c: Router.heuristic().decide_many(q, c)])
def test_iterators_and_single_values_are_no_lists(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, many: Any
) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    with pytest.raises(QueryError, match="list of queries, found list_iterator; put list"):
        many(iter(["a"]), None)
    with pytest.raises(QueryError, match="list of contexts, found list_iterator; put list"):
        many(["a"], iter([None]))
    with pytest.raises(QueryError, match="list of contexts, found dict"):
        many(["a"], {"tools": []})
    with pytest.raises(QueryError, match="use decide for one"):
        many("a", None)


def test_the_policy_of_the_settings_is_the_default(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    monkeypatch.setenv("ROUTER_ML_POLICY", "accurate")
    assert select_model("x").policy == "accurate"
    assert select_model("x", policy="fast").policy == "fast"
    assert select_model("x", router=Router.heuristic()).bundle == "heuristic"


def test_a_catalogue_of_ones_own_works_with_the_shipped_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[model]]\nname = "phi4"\nprior = { latency_s = 1.0, success = 0.9 }\n')
    monkeypatch.setenv("ROUTER_ML_CATALOGUE", str(path))
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(SHIPPED))
    decision = select_model("check email")
    assert decision.model == "phi4"
    assert not decision.degraded


def test_decisions_are_json_even_with_unknown_latency(router_that_says: Any) -> None:
    import math

    decision = router_that_says("simple").decide("x")
    odd = decision.candidate._replace(latency_s=type(decision.candidate.latency_s)(math.nan, math.nan, math.nan))
    import dataclasses

    text = json.dumps(dataclasses.replace(decision, ranked=(odd,)).as_dict(), allow_nan=False)
    assert json.loads(text)["ranked"][0]["latency_s"] == {"p50": None, "p90": None, "p95": None}


def test_explanations_add_up_to_the_log_odds(tiny_bundle: Path) -> None:
    """The evidence shown is exact: with few columns at work its sum is the log-odds of the two labels."""
    import math

    import router_ml.decide.router as module

    router = Router.load(tiny_bundle)
    shown = module.SHOWN_EVIDENCE
    try:
        module.SHOWN_EVIDENCE = 10_000
        explanation = router.explain("book a flight to Oslo, please", {"n_tools": 2})
    finally:
        module.SHOWN_EVIDENCE = shown
    p = explanation.decision.complexity_probabilities
    log_odds = math.log(p[explanation.label] / p[explanation.runner_up])
    assert sum(weight for _, weight in explanation.contributions) == pytest.approx(log_odds, abs=1e-3)
    assert log_odds >= 0
    json.dumps(explanation.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "offered", [{"n_tools": 40}, {"tools": ["set_light", "send_email", "read_email", "play_music"]}]
)
def test_tools_on_offer_change_no_label(offered: dict[str, Any]) -> None:
    for query in ("hi", "turn on the lamp", "check email", "what's the capital of Mongolia?", "book a flight"):
        bare, equipped = select_model(query), select_model(query, context=offered)
        assert equipped.complexity_probabilities == pytest.approx(bare.complexity_probabilities, abs=1e-6)


@pytest.mark.parametrize("name", ["load", "load_or_heuristic"])
def test_a_router_is_loaded_with_a_catalogue_of_ones_own(name: str) -> None:
    catalogue = router_ml.load_catalogue(CHECKOUT / "examples" / "own_models.toml")
    router = getattr(Router, name)(catalogue=catalogue)
    assert [model.name for model in router.models] == ["llama3.2:3b-instruct", "qwen3:8b"]
    assert {candidate.model for candidate in router.decide("check email").ranked} == set(catalogue.names)


def test_a_list_of_plain_strings_is_refused_with_advice() -> None:
    with pytest.raises(QueryError, match=r"found a list of str: give each message a role, or use select_models"):
        select_model(["check email", "send it"])
    with pytest.raises(QueryError, match="found a list that is empty"):
        select_model([])


def test_a_mistyped_option_is_not_taken_for_a_damaged_bundle() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'catalog'"):
        Router.load(catalog=router_ml.load_catalogue())
