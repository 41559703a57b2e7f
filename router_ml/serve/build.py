"""The composition root: settings in, a working gateway or node out."""

from __future__ import annotations

import atexit
import copy
import functools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from router_ml.bundles.format import MANIFEST
from router_ml.bundles.registry import active_stamp
from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.decide.reload import LiveRouter
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.errors import PolicyError, RouterError, SettingsError
from router_ml.events.connect import settings_store
from router_ml.events.event import Recorder
from router_ml.hosts.inventory import catalogue_of_hosts
from router_ml.hosts.options import GatewayOptions
from router_ml.monitor.watch import Watch, open_watch
from router_ml.serve import Decider, Gateway
from router_ml.serve.answer import Answer
from router_ml.serve.answer_cache.exact import ExactCache
from router_ml.serve.answer_cache.semantic import SemanticCache
from router_ml.serve.choose import Assigner
from router_ml.serve.judge import settings_judge
from router_ml.serve.learner import FILE, OnlineLearner
from router_ml.serve.node import CoordinatorNode, IntentClassifier
from router_ml.settings import Settings, load_settings
from router_ml.shared_state.connect import open_shared_state
from router_ml.types import MachineState


def build_gateway(
    settings: Settings | None = None,
    *,
    decider: Decider | None = None,
    catalogue: Catalogue | None = None,
    recorder: Recorder | None = None,
    watch: Watch | None = None,
    options: GatewayOptions | None = None,
    default_host: str | None = None,
    policy: Policy | str | None = None,
    assigner: Assigner | None = None,
    cache: ExactCache[Answer] | None = None,
    semantic_cache: SemanticCache[Answer] | None = None,
    **more: Any,
) -> Gateway:
    """Return a gateway as the settings describe it (by default the environment's): the active bundle's router (or the
    rules), the catalogue's models at their hosts (without a catalogue, the models that the hosts have), events into
    the event store, live metrics and alerts, experiments in their stored state.

    What is given replaces what would be built; `more` are further arguments of `Gateway`. Give `watch=open_watch(...)`
    to read live metrics and alerts. With a `recorder` of your own there are neither, nor experiments unless you give
    an `assigner`, too.

    Raises `SettingsError`, `PolicyError` and `CatalogueError`; a missing bundle or store is not an error."""
    settings = settings or load_settings()
    options = options or gateway_options(settings)
    policy = _known_policy(settings.policy) if policy is None else policy
    cache = answer_cache(settings) if cache is None else cache
    listed = None
    if decider is None:
        listed = catalogue or found_on_hosts(settings, (default_host or settings.ollama_host,))
        decider = live_router(settings, listed)
    if catalogue is None:
        known = getattr(decider, "catalogue", None)
        catalogue = known if isinstance(known, Catalogue) else load_catalogue(settings.catalogue)
    closers: list[Callable[[], object]] = list(more.pop("closers", ()))
    learner = None
    if recorder is None:
        watch = watch or open_watch(settings)
        watch.start()
        recorder, assigner = watch.recorder, assigner or watch.rollout.assign
        learner = online_learner(settings, decider)
        closers += [watch.close] if learner is None else [watch.close, learner.close]
    more.setdefault("shared", open_shared_state(settings))
    gateway = Gateway(
        decider,
        catalogue,
        default_host=default_host or settings.ollama_host,
        policy=policy,
        options=options,
        recorder=recorder,
        assigner=assigner,
        cache=cache,
        semantic_cache=semantic_cache,
        closers=closers,
        **{"decider_of": bundle_routers(settings, listed), "judge": settings_judge(settings, recorder), **more},
    )
    if isinstance(decider, LiveRouter):
        decider.on_change = functools.partial(_use_router, weakref.ref(gateway), learner)
    atexit.register(_close, weakref.ref(gateway))  # what waits to be written is written, close or no close
    gateway.warm_up()
    return gateway


def live_router(settings: Settings, catalogue: Catalogue | None = None) -> LiveRouter:
    """Return the router of the active bundle, or of the rules, which takes each bundle that is promoted later.

    `catalogue` replaces the catalogue of the settings or of the bundle."""
    remember = settings.decision_cache_size
    return LiveRouter(
        Router.load_or_heuristic(settings=settings, catalogue=catalogue, remember=remember),
        lambda: Router.load(settings=settings, catalogue=catalogue, remember=remember),
        lambda: active_stamp(settings),
        settings.reload_s,
    )


def online_learner(settings: Settings, decider: object) -> OnlineLearner | None:
    """Return what lets a router count judged answers, started; None where that is off, or for another decider."""
    if not settings.learn_s or not isinstance(decider, LiveRouter | Router):
        return None
    read_store = functools.partial(settings_store, settings)
    learner = OnlineLearner(decider, read_store, settings.state_dir / FILE, settings.learn_s)
    learner.start()
    return learner


def _use_router(gateway: weakref.ref[Gateway], learner: OnlineLearner | None, router: Router) -> None:
    if learner is not None:
        learner.adopt()
    living = gateway()
    if living is not None:
        living.use_catalogue(router.catalogue)


def _close(gateway: weakref.ref[Gateway]) -> None:
    living = gateway()
    if living is not None:
        living.close()


def build_node(
    settings: Settings | None = None,
    *,
    decider: Decider | None = None,
    classifier: IntentClassifier | None = None,
    recorder: Recorder | None = None,
    policy: Policy | str | None = None,
    machine: Callable[[], MachineState] | None = None,
    **more: Any,
) -> CoordinatorNode:
    """Return a coordinator's node that decides by the settings and records each decision in the event store.

    The arguments, and `more`, are those of `CoordinatorNode`; give `machine=gateway.machine` where a gateway runs.
    Unlike a bare `CoordinatorNode()` it loads the bundle at once. Raises `SettingsError` and `PolicyError`."""
    settings = settings or load_settings()
    decider = decider or live_router(settings)
    node = CoordinatorNode(
        decider,
        classifier=classifier,
        recorder=recorder,
        policy=_known_policy(settings.policy) if policy is None else policy,
        machine=machine,
        settings=settings,
        **more,
    )
    learner = online_learner(settings, decider) if recorder is None else None
    if learner is not None:
        if isinstance(decider, LiveRouter):
            decider.on_change = lambda _: learner.adopt()
        weakref.finalize(node, learner.close)
    return node


def gateway_options(settings: Settings) -> GatewayOptions:
    """Return the gateway's options as the settings have them. Raises `SettingsError`."""
    margin = settings.stick_margin
    try:
        if margin is not None and not margin >= 0:
            raise SettingsError(f"stick_margin must be 0 or more, found {margin!r}")
        return GatewayOptions(
            deadline_s=settings.deadline_s,
            last_resort=settings.last_resort,
            parallel=settings.parallel,
            stick_margin=margin,
            preload=settings.preload,
        )
    except TypeError as error:  # for example text where a number is wanted
        raise SettingsError(f"a setting of the gateway has the wrong type: {error}") from error


def answer_cache(settings: Settings) -> ExactCache[Answer] | None:
    """Return the cache of answers, or None if it is off, as it is by default."""
    return ExactCache(max_entries=settings.answer_cache_size) if settings.answer_cache_size else None


def found_on_hosts(settings: Settings, hosts: Sequence[str]) -> Catalogue | None:
    """Return a catalogue of the models on the hosts where the user has none; None where no host has any."""
    return None if settings.catalogue is not None else catalogue_of_hosts(hosts)


def bundle_routers(settings: Settings, catalogue: Catalogue | None = None) -> Callable[[str], Router]:
    """Return a function from a bundle's folder to its router: what the variants of an experiment run.

    A bundle is loaded once, and once more when its manifest changes; one that cannot be loaded raises its error at once
    from then on."""

    @functools.lru_cache(maxsize=16)
    def load(folder: str, stamp: float) -> Router | RouterError:
        try:
            return Router.load(folder, settings=settings, catalogue=catalogue, remember=settings.decision_cache_size)
        except RouterError as error:
            return error

    def router_of(bundle: str) -> Router:
        found = load(bundle, _changed_at(Path(bundle)))
        if isinstance(found, RouterError):
            raise copy.copy(found)  # one instance raised by many threads would collect their tracebacks
        return found

    return router_of


def _known_policy(policy: Policy | str) -> Policy | str:
    """Return the policy of the settings, which is read anew with each request where it is a file.

    Raises `SettingsError` if it cannot be read now."""
    try:
        resolve_policy(policy)
    except PolicyError as error:
        raise SettingsError(f"ROUTER_ML_POLICY: {error}") from error
    return policy


def _changed_at(bundle: Path) -> float:
    try:
        return (bundle / MANIFEST).stat().st_mtime
    except (OSError, ValueError):
        return 0.0
