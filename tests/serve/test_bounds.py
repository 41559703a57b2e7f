"""What callers give the gateway stays within bounds: model names, deadlines, policies, feedback, options."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest

from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy
from router_ml.errors import AttemptsFailed, InputError, NoModelAvailable, PolicyError, QueryError, SettingsError
from router_ml.events.event import AttemptEvent, DecisionEvent
from router_ml.hosts.fleet import HOST_TYPES
from router_ml.hosts.host import HostRequest, Installed, Running
from router_ml.hosts.names import ModelNames
from router_ml.hosts.options import BreakerOptions, GatewayOptions
from router_ml.hosts.reply import Reply
from tests.ollama_double import Fault
from tests.serve.deciders import FixedDecider, catalogue_of

HELLO = [{"role": "user", "content": "Hello"}]
LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
ONLY = Policy("only", models=("llama3.2:3b-instruct",))


def test_names_that_a_client_makes_up_become_no_models(gateway, double, recording) -> None:
    gateway.refresh()
    for number in range(100):
        answer = gateway.chat(HELLO, model=f"made-up-{number}")
    assert answer.model == LLAMA
    assert "'made-up-99'" in answer.decision.reason
    assert {event.model for event in (*recording.of(DecisionEvent), *recording.of(AttemptEvent))} == {LLAMA}
    assert {model for model, _ in gateway._fleet._backends} == {LLAMA, QWEN2, QWEN3}
    assert len(gateway._fleet._uncatalogued) == 0


def test_a_model_outside_the_catalogue_may_be_named_where_it_is_installed(gateway_of) -> None:
    gateway = gateway_of(decider=FixedDecider(LLAMA), catalogue=catalogue_of(LLAMA), o_last_resort=None)
    gateway.refresh()
    assert gateway.chat(HELLO, model="qwen3:8b").model == QWEN3


def test_a_policys_list_of_models_holds_whatever_fails(gateway, double) -> None:
    double.faults.set(LLAMA, Fault.ERROR_500)
    with pytest.raises(AttemptsFailed):
        gateway.chat(HELLO, policy=ONLY)
    assert {seen.model for seen in double.generations} == {LLAMA}
    with pytest.raises(PolicyError, match="allows only"):
        gateway.chat(HELLO, policy=ONLY, model=QWEN3)


def test_models_that_only_the_policy_knows_are_served_where_a_host_has_them(gateway_of, double) -> None:
    gateway = gateway_of(catalogue=catalogue_of(LLAMA), decider=Router.heuristic(catalogue_of(LLAMA)))
    assert gateway.chat(HELLO, policy=Policy("own", models=("QWEN3:8b",))).model == QWEN3
    with pytest.raises(NoModelAvailable, match=r"lama3\.2"):  # a typo: nothing leads past the list
        gateway.chat(HELLO, policy=Policy("typo", models=("lama3.2",)))
    assert {seen.model for seen in double.generations} == {QWEN3}


def test_a_decider_that_ignores_a_policys_list_is_corrected(gateway_of) -> None:
    answer = gateway_of(decider=FixedDecider(QWEN2, LLAMA)).chat(HELLO, policy=ONLY)
    assert (answer.model, answer.fallback) == (LLAMA, False)
    assert [candidate.model for candidate in answer.decision.ranked] == [LLAMA]


@pytest.mark.parametrize("deadline_s", [math.inf, 1e12, np.float32(20.0), np.int64(20)])
def test_deadlines_without_end_and_numbers_of_numpy_are_deadlines(gateway, deadline_s) -> None:
    assert gateway.chat(HELLO, deadline_s=deadline_s).model == LLAMA
    assert "".join(part.message.content or "" for part in gateway.chat(HELLO, stream=True, deadline_s=deadline_s))


@pytest.mark.parametrize("deadline_s", ["5", math.nan, -1, 0, True, object()])
def test_what_is_no_deadline_is_the_callers_error(gateway, deadline_s) -> None:
    with pytest.raises(QueryError, match="deadline_s"):
        gateway.chat(HELLO, deadline_s=deadline_s)


def test_a_gateway_whose_deadline_has_no_end_answers(gateway_of) -> None:
    assert gateway_of(o_deadline_s=math.inf).chat(HELLO).model == LLAMA


@pytest.mark.parametrize("decision_id", [None, "", 5, "x" * 1000])
def test_feedback_needs_the_id_of_a_decision(gateway, decision_id) -> None:
    with pytest.raises(InputError, match="decision_id"):
        gateway.feedback(decision_id, 1.0)


@pytest.mark.parametrize("values", [{"idle_s": "5"}, {"max_waiting": -1}, {"connect_s": math.nan}, {"parallel": None}])
def test_odd_options_are_settings_errors(values) -> None:
    with pytest.raises(SettingsError, match=next(iter(values))):
        GatewayOptions(**values)
    with pytest.raises(SettingsError):
        BreakerOptions(open_s="long")  # type: ignore[arg-type]


def test_the_clients_response_is_the_callers_own(gateway) -> None:
    first, second = gateway.chat(HELLO), gateway.chat(HELLO)
    first.response.message.content = "changed"
    assert (first.reply.content, second.content) == ("The llama says hello.", "The llama says hello.")
    assert first.response is first.response


class EchoHost:
    """A host that is no Ollama server: it answers with what it was asked, from memory."""

    def __init__(self, url: str, names: ModelNames, connect_s: float) -> None:
        self.url = url

    async def chat(self, request: HostRequest) -> Reply:
        text = str(request.arguments["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        return Reply.from_wire({"model": request.model, "message": message, "done": True, "done_reason": "stop"})

    async def stream(self, request: HostRequest) -> AsyncIterator[Reply]:
        yield await self.chat(request)

    async def load(self, model: str, options: Mapping[str, Any], keep_alive: float | str | None) -> None:
        pass

    async def installed(self) -> Mapping[str, Installed]:
        return {LLAMA: Installed(LLAMA, None, None)}

    async def running(self) -> Mapping[str, Running]:
        return {LLAMA: Running()}

    async def close(self) -> None:
        pass


def test_another_kind_of_host_is_one_class_and_one_row(gateway_of) -> None:
    catalogue = catalogue_of(LLAMA, hosts={LLAMA: ["echo+http://anywhere"]})
    gateway = gateway_of(
        decider=FixedDecider(LLAMA),
        catalogue=catalogue,
        o_last_resort=None,
        host_types={**HOST_TYPES, "echo": EchoHost},
    )
    answer = gateway.chat("Hello")
    assert (answer.content, answer.message.content, answer.host) == ("Hello", "Hello", "http://anywhere")
    assert [part.message.content for part in gateway.chat("Hello", stream=True)] == ["Hello"]
