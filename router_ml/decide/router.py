"""The router: query -> features -> predictions -> decision. Pure: no network, no clock, no files after loading."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from router_ml.bundles.format import Bundle, corrupt_bundle, load_bundle
from router_ml.bundles.native import within_cpu_time
from router_ml.bundles.registry import active_bundle
from router_ml.catalogue import Catalogue, Model, catalogue_from, load_catalogue
from router_ml.decide.embedder import Embedder, is_failure
from router_ml.decide.features.extractor import HAS_TOOLS, TABLE_NAMES, TOOL_COLUMNS, Extractor, Features
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.remembered import FeatureSource, RememberedFeatures
from router_ml.decide.features.surface import surface_features
from router_ml.decide.features.tools import TOOL_NAMES
from router_ml.decide.predictors.ability import Abilities
from router_ml.decide.predictors.complexity import HEURISTIC, ComplexityPredictor, LearnedComplexity
from router_ml.decide.predictors.difficulty import ANY_FAMILY, Difficulty, DifficultyHead
from router_ml.decide.predictors.heads import Floats, LinearHead
from router_ml.decide.predictors.heuristic import HeuristicComplexity
from router_ml.decide.predictors.novelty import NoveltyHead
from router_ml.decide.predictors.outcomes import OutcomePredictor, Predictions
from router_ml.decide.query import ContextLike, read_query, sized
from router_ml.decide.selection.cascade import Cascade
from router_ml.decide.selection.guarantee import Guarantee
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.decide.selection.rules import Reading, RuleBook
from router_ml.decide.selection.selector import Forecast, Selector
from router_ml.errors import BundleCorrupt, BundleError, BundleMissing, CatalogueError, EncoderError, QueryError
from router_ml.events.features import KeptFeatures, encoder_key
from router_ml.numbers import is_number
from router_ml.settings import Settings, load_settings
from router_ml.types import LABELS, Context, Decision, Explanation, Label, MachineState

log = logging.getLogger(__name__)

# Mean cosine of the encoder on this machine with the vectors stored at export: below the first it is not used.
MIN_COSINE, GOOD_COSINE = 0.80, 0.97
MAX_SELF_CHECKS, MAX_SELF_CHECK_CHARS, SELF_CHECK_CPU_S = 64, 16_000, 1.5
TRIAL_QUERIES = ("check email", "find a free hour with Dana and mail her the agenda")  # decided before a bundle serves
FAR = 50.0
SHOWN_EVIDENCE = 12
_OPTIONS = frozenset({"new_id", "draw", "remember", "keep_features"})
_EMPTY_QUERY = np.array([0.01, 0.01, 0.01, 0.97], dtype=np.float32)  # an empty query is ambiguous


class ReadQuery(Protocol):
    """What a decision says of its query; a `Decision` and a `DecisionEvent` do."""

    @property
    def complexity_probabilities(self) -> Mapping[Label, float]:
        """Probability of each label."""
        ...

    @property
    def difficulty(self) -> float | None:
        """Doublings of parameters; None without a difficulty head."""
        ...


class Judged(NamedTuple):
    """A judged answer: its decision, the key of the arm that answered, its success (0..1), and how much that weighs."""

    decision: ReadQuery
    arm: str
    success: float
    weight: float = 1.0


class Counted(NamedTuple):
    """What a bundle has learned from already: outcomes up to an event of the store, or up to a time."""

    seq: int
    until_s: float  # Unix time; 0 where the event says it


class Router:
    """Decides which model serves a query. Thread-safe and free of state.

    Build one with `Router.load`; without a bundle `Router.heuristic` decides by rules and the catalogue's priors."""

    def __init__(
        self,
        *,
        features: FeatureSource | None,
        complexity: ComplexityPredictor,
        outcomes: OutcomePredictor,
        catalogue: Catalogue,
        name: str,
        degraded: str = "",
        new_id: Callable[[], str] | None = None,
        draw: Callable[[], float] = random.random,
        remember: int = 0,
        learned_from: float = 0.0,
        counted: Counted | None = None,
        encoder: str = "",
        keep_features: bool = False,
    ) -> None:
        self._remembered = RememberedFeatures(features, remember) if features is not None and remember else None
        self._features = self._remembered or features
        self._complexity = complexity
        self._heuristic = HeuristicComplexity(TABLE_NAMES)
        self._outcomes, self._priors_only = outcomes, outcomes.priors_only
        self._learning = threading.Lock()
        self._selector = Selector(
            outcomes.arms,
            outcomes.default_model,
            learned_from,
            outcomes.learned_latency,
            _guarantee(outcomes),
            Cascade.from_config(outcomes.cascade, outcomes.learned),
        )
        self.new_id = new_id or _random_id
        self._draw = draw
        self._rules = catalogue.rules
        self._rule_book = RuleBook(getattr(features, "embedder", None))
        self._keeps = encoder if keep_features else ""  # key of the features that decisions carry; "": none
        self.catalogue = catalogue
        self.name = name
        self.counted = counted  # outcomes that the bundle was fitted on; None: none
        self.degraded = degraded  # why it is not all learned; "" if it is

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        settings: Settings | None = None,
        catalogue: Catalogue | None = None,
        encoder_workers: int | None = None,
        **options: Any,
    ) -> Router:
        """Return the router of a bundle, or of the active one. It has decided a few queries when it is returned.

        `catalogue` replaces the catalogue of the settings or of the bundle; `encoder_workers` is how many threads share
        out the texts of `decide_many` (by default as many as the cores allow). Raises `BundleMissing`, `BundleCorrupt`,
        `BundleFormatError` or `EncoderError` where it cannot be used."""
        if unknown := options.keys() - _OPTIONS:  # below it would be taken for a fault of the bundle
            raise TypeError(f"Router.load() got an unexpected keyword argument {min(unknown)!r}")
        settings = settings or load_settings()
        options.setdefault("keep_features", settings.keep == "features")
        folder = active_bundle(settings) if path is None else Path(path)
        bundle = load_bundle(folder)
        with corrupt_bundle(folder):
            threads = settings.encoder_threads
            embedder = OnnxEmbedder(bundle.encoder, bundle.tokenizer, threads=threads, workers=encoder_workers)
            return cls.from_bundle(bundle, embedder, catalogue or _catalogue(bundle, settings), **options)

    @classmethod
    def from_bundle(cls, bundle: Bundle, embedder: Embedder, catalogue: Catalogue, **options: Any) -> Router:
        """Return a router from a bundle in memory and any encoder of the same vectors."""
        with corrupt_bundle(bundle.path):
            complexity = _complexity(bundle, embedder)
            check = _self_check(bundle, embedder)
            outcomes = _outcomes(bundle, catalogue)
            router = cls(
                features=Extractor(embedder),
                complexity=complexity,
                outcomes=outcomes,
                catalogue=outcomes.catalogue,
                name=bundle.name,
                degraded=check,
                learned_from=_learned_from(bundle),
                counted=_counted(bundle),
                encoder=encoder_key(bundle.manifest, TABLE_NAMES),
                **options,
            )
            router._try_out(bundle.path, embedder.dim)
            return router

    def _try_out(self, path: Path, dim: int) -> None:
        """Decide a few queries. Raises `BundleCorrupt` if the heads do not fit together or give no numbers."""
        for decision in self._decide(TRIAL_QUERIES, [None] * len(TRIAL_QUERIES), "balanced", None, None):
            if decision.degraded and not self.degraded:
                raise BundleCorrupt(f"{path} cannot decide: {decision.reason}; fit or copy the bundle again")
            json.dumps(decision.as_dict(), allow_nan=False)
            if not all(0 <= share <= 1 for share in decision.complexity_probabilities.values()) or not all(
                0 <= candidate.p_success <= 1 for candidate in decision.ranked
            ):
                raise BundleCorrupt(f"{path} predicts probabilities beyond 0 to 1; fit or copy the bundle again")
        far = np.full(dim, FAR, np.float32)  # far from all queries, where the transfer head predicts
        strange = self._outcomes.predict_one(far, np.full(len(TABLE_NAMES), FAR, np.float32), _EMPTY_QUERY)
        if not np.isfinite([*strange.p_success, *np.ravel(strange.latency_s)]).all():
            raise BundleCorrupt(f"{path} predicts NaN or infinity far from its data; fit or copy the bundle again")

    @classmethod
    def heuristic(cls, catalogue: Catalogue | None = None, *, why: str = "no bundle", **options: Any) -> Router:
        """Return a router without anything learned: rules and priors."""
        catalogue = catalogue or load_catalogue()
        outcomes = OutcomePredictor.from_arrays({}, {}, catalogue)
        return cls(
            features=None,
            complexity=HeuristicComplexity(TABLE_NAMES),
            outcomes=outcomes,
            catalogue=catalogue,
            name=HEURISTIC,
            degraded=f"heuristic: {why}",
            **options,
        )

    @classmethod
    def load_or_heuristic(
        cls, *, settings: Settings | None = None, catalogue: Catalogue | None = None, **options: Any
    ) -> Router:
        """Return the active bundle's router, or the heuristic one if that bundle cannot be used; never raise for it."""
        settings = settings or load_settings()
        try:
            return cls.load(settings=settings, catalogue=catalogue, **options)
        except (BundleError, EncoderError) as error:
            quiet = isinstance(error, BundleMissing)
            log.log(logging.INFO if quiet else logging.WARNING, "routing by rules: %s", error)
            return cls.heuristic(catalogue or load_catalogue(settings.catalogue), why=_first_line(error), **options)

    @property
    def models(self) -> tuple[Model, ...]:
        """Return the models it chooses among, in the order of the predictions."""
        return tuple(self.catalogue[name] for name in dict.fromkeys(arm.name for arm in self.arms))

    @property
    def arms(self) -> tuple[Model, ...]:
        """Return the arms it chooses among, in the order of the predictions."""
        return self._selector.models

    def decide(
        self,
        query: str | Sequence[Any],
        context: ContextLike = None,
        policy: Policy | str = "balanced",
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        """Choose a model for one query, a text or the messages of a conversation.

        `machine` says what is loaded, waiting and how fast right now; without it the predictions stand alone.
        Raises `QueryError`, `ContextError` or `PolicyError` for input of the wrong kind; an empty query is
        ambiguous."""
        return self._decide([query], [context], policy, machine, variant)[0]

    def remembers(self, query: str, context: ContextLike = None) -> bool:
        """Return whether a query need not be read, which is most of what a decision costs.

        `remember=` gives how many queries are remembered; rules read nothing."""
        if self._remembered is None:
            return self._features is None
        return self._remembered.remembers(*read_query(query, context))

    def explain(
        self, query: str | Sequence[Any], context: ContextLike = None, policy: Policy | str = "balanced"
    ) -> Explanation:
        """Return a decision with the evidence behind its label, in log-odds. Raises as `decide` does."""
        decision = self.decide(query, context, policy)
        order = sorted(LABELS, key=lambda label: -decision.complexity_probabilities[label])
        first, second = LABELS.index(order[0]), LABELS.index(order[1])
        text, parsed = read_query(query, context)
        features, _, degraded = self._judge([text], [parsed])
        if degraded.startswith(HEURISTIC) or not isinstance(self._complexity, LearnedComplexity):
            return Explanation(decision, order[0], order[1], (("hand-written rules", 0.0),))
        evidence = self._complexity.evidence(features.embedding[0], features.table[0], TABLE_NAMES, first, second)
        strongest = sorted(evidence.items(), key=lambda item: -abs(item[1]))[:SHOWN_EVIDENCE]
        return Explanation(decision, order[0], order[1], tuple(strongest))

    @property
    def learned(self) -> frozenset[str]:
        """Return the keys of the arms whose chance of success rests on own outcomes; the others have their priors."""
        return self._outcomes.measured

    def expectations(self) -> dict[str, dict[Label, tuple[float, tuple[float, float]]]]:
        """Return each model's chance of success by label with its 90 % interval: its prior moved by own outcomes."""
        return self._outcomes.now()

    @property
    def abilities(self) -> Abilities:
        """Return what own outcomes say of the models' chances beside the catalogue's priors. Whoever keeps events
        stores it (`as_config`), and may set it: from then on decisions count it."""
        return self._outcomes.abilities

    @abilities.setter
    def abilities(self, abilities: Abilities) -> None:
        with self._learning:
            self._outcomes.abilities = abilities
            self._priors_only.abilities = abilities

    def learn(self, judged: Iterable[Judged | tuple[Decision, str, float]]) -> Abilities:
        """Count judged answers at once: of each its decision, the key of the arm that answered, and its success (0..1).

        Return the abilities after them. A new model is placed sensibly by 8 to 20 outcomes, without a fit; models the
        router does not know are left out."""
        rows = []
        for row in judged:
            decision, model, success, weight = Judged(*row)
            arm = self.catalogue.arm(model)
            if arm is not None and arm.key in self._outcomes.models:
                labels = np.array([decision.complexity_probabilities[label] for label in LABELS], np.float32)
                rows.append(self._outcomes.observation(arm.key, success, labels, _recorded(decision), weight))
        with self._learning:
            found = self._outcomes.abilities.updated(rows, self._outcomes.prior_sd)
            self._outcomes.abilities = self._priors_only.abilities = found
        return found

    def decide_many(
        self,
        queries: Sequence[Any],
        contexts: Sequence[ContextLike] | None = None,
        policy: Policy | str = "balanced",
        machine: MachineState | None = None,
    ) -> list[Decision]:
        """Choose a model for each of many queries in small batches; same answers and errors as `decide`."""
        for name, given in (("queries", queries), ("contexts", () if contexts is None else contexts)):
            if not is_list(given):
                advice = "use decide for one" if isinstance(given, str | Mapping) else "put list(...) around it"
                raise QueryError(f"decide_many takes a list of {name}, found {type(given).__name__}; {advice}")
        if contexts is not None and len(contexts) != len(queries):
            raise QueryError(
                f"{len(queries)} queries but {len(contexts)} contexts; give one for each, None where absent"
            )
        return self._decide(queries, contexts or [None] * len(queries), policy, machine, None)

    def predict_many(
        self, texts: Sequence[str], contexts: Sequence[ContextLike] | None = None
    ) -> tuple[Floats, Predictions]:
        """Return complexity probabilities (n, 4) and predictions per model, without choosing."""
        read = [read_query(*pair) for pair in zip(texts, contexts or [None] * len(texts), strict=True)]
        parsed = [context for _, context in read]
        features, probabilities, _ = self._judge([text for text, _ in read], parsed)
        prompt_tokens = np.array([_prompt_tokens(context) for context in parsed], np.float32)
        predict = self._predictor(features)
        return probabilities, predict(features.embedding, features.table, probabilities, prompt_tokens)

    def predict_features(self, features: Features, prompt_tokens: Floats) -> Predictions:
        """Return predictions per model for features (n) that the bundle's encoder has made, and their prompts' lengths
        (n,), NaN where unknown."""
        probabilities = self._complexity(features.embedding, features.table)
        return self._predictor(features)(features.embedding, features.table, probabilities, prompt_tokens)

    def _decide(
        self,
        queries: Sequence[Any],
        contexts: Sequence[ContextLike],
        policy: Policy | str,
        machine: MachineState | None,
        variant: str | None,
    ) -> list[Decision]:
        chosen_policy = resolve_policy(policy)
        read = [read_query(query, context) for query, context in zip(queries, contexts, strict=True)]
        if not read:
            return []
        texts, parsed = zip(*read, strict=True)
        features, probabilities, degraded = self._judge(texts, parsed)
        predictor = self._predictor(features)
        predict, reads, difficulty = predictor.predict_one, predictor.reads_difficulty, None
        keeps = self._keeps if features.embedding.shape[1] else ""
        ruled = bool(chosen_policy.rules or self._rules)
        decisions = []
        for i, context in enumerate(parsed):  # not `zip`: iterators over arrays cost more than one row's indexing
            label = probabilities[i]
            if reads:
                difficulty = predictor.difficulty(features.embedding[i], features.table[i])
            expected = predict(features.embedding[i], features.table[i], label, _prompt_tokens(context), difficulty)
            forecast, novelty = tuple.__new__(Forecast, expected[:-1]), expected[-1]  # all but the novelty, by place
            request, judged = sized(texts[i], context), (label.tolist(), difficulty, novelty)
            asked = texts[i], features.embedding[i] if ruled else None
            decision = self._decision(asked, judged, forecast, request, chosen_policy, machine, degraded, variant)
            if keeps:
                kept = KeptFeatures(keeps, features.embedding[i], features.table[i])
                object.__setattr__(decision, "features", kept)  # nobody has it yet, and `replace` takes 25 us
            decisions.append(decision)
        return decisions

    def _decision(
        self,
        asked: tuple[str, Floats | None],
        judged: tuple[list[float], Difficulty | None, float],
        forecast: Forecast,
        context: Context,
        policy: Policy,
        machine: MachineState | None,
        degraded: str,
        variant: str | None,
    ) -> Decision:
        (text, vector), (probabilities, difficulty, novelty) = asked, judged
        top = max(probabilities)
        place = probabilities.index(top)
        label, rule = LABELS[place], None
        if rules := policy.rules + self._rules:
            rule = self._rule_book.first(rules, Reading(text, context, place, _family(difficulty), vector))
        draw = self._draw if policy.exploration else None
        choice = self._selector.select(
            forecast, context, policy, machine=machine, novelty=novelty, draw=draw, rule=rule
        )
        clarify = label == "ambiguous" and policy.on_ambiguous == "clarify" and top >= policy.clarify_at
        reason = f"{choice.reason} ({degraded})" if degraded else choice.reason
        return Decision(  # by place: names cost a third more
            choice.ranked[0].model,
            label,
            dict(zip(LABELS, probabilities)),  # noqa: B905 - saying `strict` takes longer than the rest
            choice.ranked,
            "clarify" if clarify else "answer",
            f"clarifying question, the query is ambiguous; {reason}" if clarify else reason,
            self.new_id(),
            policy.name,
            self.name,
            choice.propensity,
            variant,
            novelty,
            choice.excluded,
            bool(degraded),
            None if difficulty is None else difficulty.mean,
            None if rule is None else rule.name,
            None,  # features, see `_decide`
            choice.if_warm,
            self._selector.cascade if policy.cascade else None,
        )

    def _predictor(self, features: Features) -> OutcomePredictor:
        return self._outcomes if features.embedding.shape[1] else self._priors_only

    def _judge(self, texts: Sequence[str], contexts: Sequence[Context]) -> tuple[Features, Floats, str]:
        """Return features and complexity; an empty query is ambiguous."""
        features, probabilities, degraded = self._read(texts, contexts)
        for i, text in enumerate(texts):
            if not text and not contexts[i].attachment:
                probabilities[i] = _EMPTY_QUERY
        return features, probabilities, degraded

    def _read(self, texts: Sequence[str], contexts: Sequence[Context]) -> tuple[Features, Floats, str]:
        """Return features and complexity of the texts; the rules replace the encoder if it fails."""
        if self._features is not None:
            try:
                features = self._features.extract(texts, contexts)
                return features, self._complexity(features.embedding, features.table), self.degraded
            except BaseException as error:  # the encoder is third-party code, and a decision is needed
                if not is_failure(error):
                    raise
                log.warning("the encoder failed, routing by rules: %s", error)
                why = f"heuristic: the encoder failed ({_first_line(error)})"
        else:
            why = self.degraded
        table = np.array(
            [surface_features(t, c) + [0.0] * len(TOOL_NAMES) for t, c in zip(texts, contexts, strict=True)]
        )
        features = Features(np.zeros((len(texts), 0), np.float32), table.astype(np.float32))
        return features, self._heuristic(None, features.table), why


def _recorded(decision: ReadQuery) -> Difficulty | None:
    """Return the difficulty a decision recorded; its task families are not kept."""
    return None if decision.difficulty is None else Difficulty(decision.difficulty, 0.0, ANY_FAMILY)


def _family(difficulty: Difficulty | None) -> int | None:
    """Return the likeliest kind of task, as an index into `TASK_FAMILIES`."""
    return None if difficulty is None else difficulty.families.index(max(difficulty.families))


def _prompt_tokens(context: Context) -> float:
    return math.nan if context.prompt_tokens is None else context.prompt_tokens


def is_list(value: object) -> bool:
    """Return whether a value may stand for many queries or contexts."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _catalogue(bundle: Bundle, settings: Settings) -> Catalogue:
    """Return the user's catalogue where there is one, else the models the bundle was made for."""
    if settings.catalogue is not None or not bundle.models:
        return load_catalogue(settings.catalogue)
    try:
        return catalogue_from(bundle.models, str(bundle.path))
    except CatalogueError as error:
        raise BundleCorrupt(f"{error}; fit or copy the bundle again") from error


def _outcomes(bundle: Bundle, catalogue: Catalogue) -> OutcomePredictor:
    try:
        config, arrays = bundle.config.get("outcomes") or {}, bundle.section("outcomes")
        return OutcomePredictor.from_arrays(config, arrays, catalogue, _difficulty(bundle), _novelty(bundle))
    except BundleError:
        raise
    except Exception as error:  # any field may be missing, or of another kind
        raise BundleCorrupt(
            f"{bundle.path}: the outcome heads do not fit together ({_first_line(error)}); fit or copy the bundle again"
        ) from error


def _guarantee(outcomes: OutcomePredictor) -> Guarantee:
    return Guarantee.from_config(outcomes.guarantee, outcomes.default_model, outcomes.learned)


def _novelty(bundle: Bundle) -> NoveltyHead | None:
    config = bundle.config.get("novelty")
    return NoveltyHead(config, bundle.section("novelty")) if config else None


def _learned_from(bundle: Bundle) -> float:
    """Return how many outcomes a bundle was learned from; 0 where its manifest does not say."""
    given = bundle.manifest.get("given")
    count: Any = given.get("outcomes") if isinstance(given, Mapping) else None
    return float(count) if is_number(count) and 0 <= count < math.inf else 0.0


def _counted(bundle: Bundle) -> Counted | None:
    """Return which outcomes a bundle was fitted on; None if on none. Without a time: those up to now."""
    if not _learned_from(bundle):
        return None
    events = bundle.manifest["given"].get("events")
    if isinstance(events, int) and not isinstance(events, bool) and events >= 0:
        return Counted(events, 0.0)
    try:
        return Counted(0, datetime.fromisoformat(bundle.manifest["created_at"]).timestamp())
    except (KeyError, TypeError, ValueError):
        return Counted(0, time.time())


def _difficulty(bundle: Bundle) -> DifficultyHead | None:
    config = bundle.config.get("difficulty")
    return DifficultyHead(config, bundle.section("difficulty"), HAS_TOOLS) if config else None


def _complexity(bundle: Bundle, embedder: Embedder) -> LearnedComplexity:
    arrays = bundle.section("complexity")
    if bundle.config.get("table") != list(TABLE_NAMES):
        raise BundleCorrupt(f"{bundle.path} was fitted on other features than this version computes; fit it again")
    try:
        head = LinearHead(arrays["weights"].astype(np.float32), arrays["bias"].astype(np.float32))
    except KeyError as error:
        raise BundleCorrupt(f"{bundle.path} lacks the complexity head's {error}; fit or copy it again") from error
    except ValueError as error:
        raise BundleCorrupt(
            f"{bundle.path}: the complexity head does not hold numbers; fit or copy it again"
        ) from error
    if head.weights.shape != (len(LABELS), embedder.dim + len(TABLE_NAMES)) or head.bias.shape != (len(LABELS),):
        raise BundleCorrupt(f"{bundle.path}: the complexity head does not fit the encoder; fit or copy it again")
    weights = head.weights.copy()
    weights[:, [embedder.dim + column for column in TOOL_COLUMNS]] = 0.0  # an assistant offers tools with every query
    return LearnedComplexity(LinearHead(weights, head.bias))


def _self_check(bundle: Bundle, embedder: Embedder) -> str:
    """Return a warning if the encoder's vectors differ from those stored at export, "" if they agree.

    A quantised encoder may differ between processors. Raises `BundleCorrupt` if the vectors are useless."""
    texts, vectors = bundle.config.get("self_check"), bundle.arrays.get("self_check/vectors")
    if texts and (not isinstance(texts, list) or len(texts) > MAX_SELF_CHECKS or not all(map(_is_short, texts))):
        raise BundleCorrupt(f"{bundle.path}: 'self_check' must list a few short texts; fit or copy the bundle again")
    try:
        found = within_cpu_time(lambda: embedder.embed(texts or TRIAL_QUERIES), SELF_CHECK_CPU_S)
        if not texts or vectors is None:
            mean = 1.0 if np.isfinite(found).all() else math.nan
        else:
            mean = float((found * vectors.astype(np.float32)).sum(axis=1).mean())
    except EncoderError:
        raise
    except BaseException as error:  # the encoder is third-party code, and the texts and vectors may not fit it
        if not is_failure(error):
            raise
        raise BundleCorrupt(f"{bundle.path}: the encoder cannot be checked ({_first_line(error)})") from error
    if mean >= GOOD_COSINE:
        return ""
    if not mean >= MIN_COSINE:
        raise BundleCorrupt(
            f"{bundle.path}: the encoder gives other vectors than when it was exported (mean cosine {mean:.3f}); "
            "fit a bundle on this machine or copy this one again"
        )
    log.warning("the encoder of %s differs on this processor (mean cosine %.3f); fit a bundle here", bundle.path, mean)
    return f"the encoder differs on this processor, cosine {mean:.3f}"


def _is_short(text: object) -> bool:
    return isinstance(text, str) and len(text) < MAX_SELF_CHECK_CHARS


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _random_id() -> str:
    return os.urandom(8).hex()
