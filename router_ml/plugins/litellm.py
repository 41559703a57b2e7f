"""Let LiteLLM choose with this router: as the classifier of its complexity router, or as a routing strategy.

from litellm import Router
from router_ml.plugins.litellm import ComplexityClassifier, RoutingStrategy

# 1. tiers: litellm's "auto_router/complexity_router" with
#    complexity_router_config={"classifier_type": "custom", "classifier_plugin": ComplexityClassifier(), "tiers": {...}}
# 2. models: every deployment of the group that is asked for is a candidate
router = Router(model_list=[...])
router.set_custom_routing_strategy(RoutingStrategy(router))
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from litellm.types.router import CustomRoutingStrategyBase

from router_ml import Decision, select_model
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.types import Label

TIERS: Mapping[Label, str] = {"simple": "SIMPLE", "moderate": "MEDIUM", "complex": "COMPLEX", "ambiguous": "MEDIUM"}

Choose = Callable[..., Decision]  # (query, *, context, policy), as `select_model`


class ComplexityClassifier:
    """A `ClassifierPlugin` of LiteLLM's complexity router: the label of the last user turn, as a tier.

    `tiers` maps our four labels to the names of your tiers; `choose` is called as `select_model` is."""

    def __init__(self, tiers: Mapping[Label, str] = TIERS, choose: Choose = select_model) -> None:
        self._tiers = dict(tiers)
        self._choose = choose

    async def classify(self, context: Any) -> str | None:
        """Return the tier of a `RoutingContext`, or None if it holds no user turn."""
        messages = list(context.structured_messages or context.raw_messages)
        query, before = last_user_turn(messages)
        if not query:
            return None
        decision = await asyncio.to_thread(self._choose, query, context={"history": before})
        return self._tiers[decision.complexity]


class _Deployments(Protocol):
    """What is used of LiteLLM's `Router`."""

    model_list: list[dict[str, Any]]


class RoutingStrategy(CustomRoutingStrategyBase):  # type: ignore[misc]
    """A routing strategy of LiteLLM: the deployment whose model this router chooses.

    A deployment's model is matched with the catalogue by the name behind the provider ("ollama/qwen3:8b" is qwen3:8b).
    Where the catalogue knows none of a group's models, the group's first deployment is used."""

    def __init__(self, router: _Deployments, policy: Policy | str = "balanced", choose: Choose = select_model) -> None:
        self._router = router
        self._policy = resolve_policy(policy)
        self._choose = choose

    async def async_get_available_deployment(self, model: str, messages: Any = None, *args: Any, **more: Any) -> Any:
        """Return the chosen element of `Router.model_list`."""
        return await asyncio.to_thread(self.get_available_deployment, model, messages)

    def get_available_deployment(self, model: str, messages: Any = None, *args: Any, **more: Any) -> Any:
        """Return the chosen element of `Router.model_list`."""
        group = [deployment for deployment in self._router.model_list if deployment["model_name"] == model]
        query, before = last_user_turn(list(messages or ()))
        names = {own_name(deployment): deployment for deployment in reversed(group)}
        if len(names) < 2 or not query:
            return group[0] if group else None
        policy = dataclasses.replace(self._policy, models=tuple(names))
        decision = self._choose(query, context={"history": before}, policy=policy)
        ranked = [candidate.model for candidate in decision.ranked]
        return next((names[name] for name in (decision.model, *ranked) if name in names), group[0])


def own_name(deployment: Mapping[str, Any]) -> str:
    """Return the model's name as hosts give it, without LiteLLM's provider in front."""
    return str(deployment["litellm_params"]["model"]).partition("/")[2] or str(deployment["litellm_params"]["model"])


def last_user_turn(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the text of the last user turn and the turns before it; ("", []) if there is none."""
    last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].get("role") == "user"), None)
    if last is None:
        return "", []
    content = messages[last].get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or ""), list(messages[:last])
