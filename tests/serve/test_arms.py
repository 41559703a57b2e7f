"""A model that can think, asked the way the decision says, from the request to the exported row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router_ml.catalogue import Arm, Catalogue
from router_ml.decide.router import Router
from router_ml.errors import ContextError
from router_ml.events.connect import open_store
from router_ml.events.event import AttemptEvent, OutcomeEvent, as_dict, from_dict
from router_ml.events.export import bandit_rows, outcomes
from router_ml.experiments.assignment import Assignment
from router_ml.experiments.experiment import Variant
from router_ml.serve import Gateway
from router_ml.serve.fallback import Route
from router_ml.serve.request_state import RequestState
from router_ml.types import Decision, Think
from tests.ollama_double import DoubleModel, Fault, OllamaDouble
from tests.ollama_double.models import Reply
from tests.serve.deciders import FixedDecider, Recording, catalogue_of

FAST, THINKER = "llama3.2:3b-instruct", "qwen3:8b"


class ArmDecider(FixedDecider):
    """Ranks the given arms in the given order."""

    def __init__(self, *arms: tuple[str, Think | None]) -> None:
        super().__init__(*(model for model, _ in arms))
        self.arms = arms

    def decide(self, *given: Any, **more: Any) -> Decision:
        made = super().decide(*given, **more)
        ranked = [
            c._replace(think=think, output_tokens=10.0) for c, (_, think) in zip(made.ranked, self.arms, strict=True)
        ]
        return dataclasses.replace(made, ranked=tuple(ranked))


def thinkers() -> Catalogue:
    """The double's models, of which one has both arms."""
    fast, slow = catalogue_of(FAST, THINKER).models
    return Catalogue((fast, dataclasses.replace(slow, arms=(Arm(True, slow.prior), Arm(False, slow.prior)))))


@pytest.fixture
def ask(gateway_of: Callable[..., Gateway]) -> Callable[..., Any]:
    """Ask a gateway whose decider ranks the given arms."""

    def make(*arms: tuple[str, Think | None], gateway: dict[str, Any] | None = None, **more: Any) -> Any:
        served = gateway_of(decider=ArmDecider(*arms), catalogue=thinkers(), **(gateway or {}))
        return served.chat("Hello", **more)

    return make


def bodies(double: OllamaDouble) -> list[tuple[str, Any]]:
    return [(g.body["model"], g.body.get("think")) for g in double.generations]


@pytest.mark.parametrize("think", [True, False, "low"])
def test_the_chosen_arm_is_sent_recorded_and_exported(
    ask: Any, double: OllamaDouble, recording: Recording, think: Think, tmp_path: Path
) -> None:
    answer = ask((THINKER, think))
    assert bodies(double) == [(THINKER, think)]
    assert bool(answer.message.thinking) == (think is not False)
    assert (answer.think, answer.decision.think, answer.attempts[0].think, answer.fallback) == (
        think,
        think,
        think,
        False,
    )
    store = open_store(tmp_path)
    store.append([from_dict(as_dict(event)) for event in recording.events])
    assert [(o.model, o.think) for o in outcomes(store)] == [(THINKER, think)]
    assert [(row["chosen"], row["think"], row["answered_think"]) for row in bandit_rows(store)] == [
        (THINKER, think, think)
    ]
    store.close()


def test_a_stream_says_how_its_model_was_asked(gateway_of: Callable[..., Gateway], double: OllamaDouble) -> None:
    served = gateway_of(decider=ArmDecider((THINKER, False)), catalogue=thinkers())
    with served.chat("Hello", stream=True) as parts:
        assert parts.think is False
        assert "".join(part.message.content or "" for part in parts) == "Qwen three says hello!"
    assert bodies(double) == [(THINKER, False)]


def test_a_model_that_cannot_think_is_never_asked_to(ask: Any, double: OllamaDouble) -> None:
    answer = ask((FAST, True))  # a catalogue that is wrong about it
    assert bodies(double) == [(FAST, None)]
    assert (answer.content, answer.think, answer.adapted) == ("The llama says hello.", None, ())


@pytest.mark.parametrize("how", [{"think": True}, {"context": {"think": True}}])
def test_the_callers_own_think_wins(ask: Any, double: OllamaDouble, how: dict[str, Any]) -> None:
    answer = ask((THINKER, False), **how)
    assert bodies(double) == [(THINKER, True)]
    assert answer.think is True


def test_a_think_of_another_kind_is_a_context_error(ask: Any) -> None:
    with pytest.raises(ContextError, match="think"):
        ask((THINKER, False), context={"think": "loudly"})


@pytest.fixture
def lost_in_thought(gateway_of: Callable[..., Gateway]) -> Iterator[tuple[OllamaDouble, Catalogue]]:
    def reply(body: Any) -> Reply:
        return Reply("", "Let me think.") if body.get("think", True) else Reply("At once.")

    models = (DoubleModel(FAST), DoubleModel(THINKER, reply=reply, capabilities=frozenset({"completion", "thinking"})))
    with OllamaDouble(models) as double:
        yield double, thinkers()


def test_after_thinking_without_an_answer_the_same_model_is_asked_not_to(
    lost_in_thought: tuple[OllamaDouble, Catalogue],
) -> None:
    double, catalogue = lost_in_thought
    decider = ArmDecider((THINKER, True), (FAST, None), (THINKER, False))
    with Gateway(decider, catalogue, default_host=double.url) as served:
        answer = served.chat("Hello")
    assert bodies(double) == [(THINKER, True), (THINKER, False)]
    assert (answer.content, answer.think, answer.fallback) == ("At once.", False, True)


def test_a_host_failure_leads_to_another_model_not_to_another_arm(ask: Any, double: OllamaDouble) -> None:
    double.faults.set(THINKER, Fault.ERROR_500, times=1)
    answer = ask((THINKER, True), (THINKER, False), (FAST, None))
    assert [(a.model, a.think) for a in answer.attempts] == [(THINKER, True), (FAST, None)]
    assert answer.model == FAST


def test_a_model_that_is_not_installed_is_passed_over_once(
    gateway_of: Callable[..., Gateway], double: OllamaDouble
) -> None:
    models = (*thinkers().models, dataclasses.replace(thinkers()[THINKER], name="gone"))
    arms: tuple[tuple[str, Think | None], ...] = (("gone", True), ("gone", False), (FAST, None))
    answer = gateway_of(decider=ArmDecider(*arms), catalogue=Catalogue(models)).chat("Hello")
    assert [a.model for a in answer.attempts] == ["gone", FAST]


def test_seconds_of_a_thinking_answer_are_not_charged_to_the_arm_that_does_not_think(
    gateway_of: Callable[..., Gateway],
) -> None:
    """10 tokens at the live rate, though the mean call of the model takes a second."""
    served = gateway_of(decider=ArmDecider((THINKER, False), (FAST, None)), catalogue=thinkers())
    backend = served._fleet.backends(THINKER)[0]
    for _ in range(5):
        backend.rates.succeeded(1.0, output_tokens=1000, eval_s=1.0)
    answer = served.chat("Hello")
    assert answer.attempts[0].timeout_s is not None
    state = RequestState(None, None, "balanced", 0.0, 1.0, decision=answer.decision)  # type: ignore[arg-type]
    seconds = served._cascade._fallback._service_s(state, Route(backend, False))
    rate = backend.rates.decode_tokens_per_s
    assert rate is not None
    assert seconds == pytest.approx(10 / rate)
    assert backend.rates.service_s is not None
    assert backend.rates.service_s > 0.3


def test_variants_of_an_experiment_may_differ_in_thinking_alone(
    gateway_of: Callable[..., Gateway], double: OllamaDouble, recording: Recording
) -> None:
    variants = [Variant("thinks", model=THINKER, think=True), Variant("answers", model=THINKER, think=False)]
    turns = iter(variants)
    served = gateway_of(
        decider=Router.heuristic(thinkers()),
        catalogue=thinkers(),
        assigner=lambda unit, context: Assignment("e", "control", next(turns), unit),
    )
    for _ in variants:
        served.chat("check email", context={"session_id": "s"})
    assert bodies(double) == [(THINKER, True), (THINKER, False)]
    done = [event for event in recording.events if isinstance(event, OutcomeEvent)]
    assert [(event.variant, event.think) for event in done] == [("thinks", True), ("answers", False)]
    called = [event for event in recording.events if isinstance(event, AttemptEvent)]
    assert [event.think for event in called] == [True, False]
