"""router-ml experiment: start, watch, stop, report on and clear an A/B test."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from router_ml.cli.events import duration_s, event_store
from router_ml.cli.metrics import print_table
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import resolve_policy
from router_ml.errors import ExperimentError, StoreError
from router_ml.events.event import ChangeKind, ExperimentEvent
from router_ml.events.store import EventFilter
from router_ml.experiments.experiment import Experiment, Limits, RampStep, Variant, experiment_from, experiment_row
from router_ml.experiments.guardrails import units_to_see
from router_ml.experiments.report import analyses_of, report_html
from router_ml.experiments.rollout import FOLDER, Rollout
from router_ml.experiments.shadow import Choices, shadow_of
from router_ml.experiments.state import ExperimentState
from router_ml.experiments.verdict import RECORD_FORMAT, Verdict, recompute
from router_ml.settings import Settings, load_settings
from router_ml.suggestions import suggestion
from router_ml.types import Think


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("experiment", help="A/B tests of policies, bundles and models that end by themselves")
    verbs = verb.add_subparsers(dest="what", required=True)
    _register_start(verbs.add_parser("start", help="begin an experiment"))
    status = verbs.add_parser("status", help="the running experiment and its results so far")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(func=_status)
    stop = verbs.add_parser("stop", help="end the running experiment; requests are served as before it")
    stop.add_argument("--reason", default="", help="why, for the record")
    stop.set_defaults(func=_stop)
    report = verbs.add_parser("report", help="write the report as one HTML page, and check the verdict's record")
    report.add_argument("id", nargs="?", help="an experiment (default: the one that runs or is halted)")
    report.add_argument("--out", type=Path, help="the page to write (default ID.html)")
    report.set_defaults(func=_report)
    clear = verbs.add_parser("clear", help="acknowledge a halted experiment, once you have read its report")
    clear.add_argument("--reason", default="", help="what you found, for the record")
    clear.set_defaults(func=_clear)


def _register_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", help="its name: letters, digits, '.', '_' and '-'")
    parser.add_argument("--file", type=Path, help="read the definition from a JSON file instead")
    for arm in ("challenger", "control"):
        parser.add_argument(f"--{arm}", metavar="NAME", default=arm, help=f"name of the {arm} (default {arm})")
        parser.add_argument(f"--{arm}-policy", metavar="POLICY", help="a preset or a policy file")
        parser.add_argument(f"--{arm}-bundle", metavar="FOLDER", help="a bundle's folder")
        parser.add_argument(f"--{arm}-model", metavar="MODEL", help="this model for every request")
        parser.add_argument(
            f"--{arm}-think", choices=tuple(_WAYS), help="how models that can think are asked, unless the caller says"
        )
    parser.add_argument("--coverage", type=float, default=1.0, help="share of units that takes part (default 1)")
    parser.add_argument("--ramp", metavar="AGE:SHARE,...", help="growing coverage, such as 0:0.05,1h:0.25,1d:1")
    parser.add_argument("--holdout", type=float, default=0.0, help="share of units that never takes part")
    parser.add_argument("--shadow", action="store_true", help="the challenger decides without serving any request")
    parser.add_argument(
        "--unit",
        choices=("session", "request"),
        default="session",
        help="unit of assignment and counting (default session; small harm takes several times the requests then)",
    )
    parser.add_argument("--hypothesis", default="", help="the expected result, in a sentence")
    parser.add_argument("--owner", default="")
    names = ", ".join(field.name for field in fields(Limits))
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help=f"one of {names}")
    parser.set_defaults(func=_start)


def _start(options: argparse.Namespace) -> int:
    settings = load_settings()
    experiment = _from_file(options.file) if options.file else _from_options(options)
    for variant in (experiment.control, experiment.challenger):
        _check_variant(variant, settings)
    ExperimentState(settings.state_dir / FOLDER).start(experiment)
    _record(settings, experiment.id, "started", {"experiment": experiment_row(experiment)})
    print(
        f"{experiment.id} runs: {experiment.challenger.name} ({experiment.challenger.describe()}) against "
        f"{experiment.control.name} ({experiment.control.describe()}), "
        f"{experiment.coverage(time.time()):.0%} of {experiment.unit}s take part."
    )
    print("It rolls back by itself if it does harm. See 'router-ml experiment status'.")
    if experiment.mode == "live":
        print(_power(experiment))
    return 0


def _power(experiment: Experiment) -> str:
    """Return how much traffic it takes to see harm, for answers of which a tenth are wrong."""
    margin, size = experiment.limits.failure_margin, experiment.unit_requests
    rise = f"Wrong answers that rise from 10% to {0.10 + margin:.0%} are seen after about"
    requests = units_to_see(margin, experiment.limits)
    if experiment.unit == "request":
        return f"{rise} {requests:,} judged requests."
    sessions = units_to_see(margin, experiment.limits, size)
    return (
        f"{rise} {sessions:,} judged sessions of {size} requests ({sessions * size:,} requests; "
        f"{requests:,} with --unit request, as requests of one session are alike)."
    )


def _from_file(path: Path) -> Experiment:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"cannot read {path}: {error}") from error
    if not isinstance(row, dict):
        raise ExperimentError(f"{path} must hold a JSON object")
    return experiment_from({"started_s": time.time()} | row)


def _from_options(options: argparse.Namespace) -> Experiment:
    if not options.id:
        raise ExperimentError("give the experiment a name, or a definition with --file")
    named = vars(options)
    kinds = ("policy", "bundle", "model", "think")
    if not any(named[f"{arm}_{kind}"] for arm in ("challenger", "control") for kind in kinds):
        raise ExperimentError(f"name what to try: {', '.join(f'--challenger-{kind}' for kind in kinds)}")

    def variant(arm: str) -> Variant:
        policy, bundle, model, think = (named[f"{arm}_{kind}"] for kind in kinds)
        return Variant(named[arm], policy, bundle, model, None if think is None else _WAYS[think])

    return Experiment(
        id=options.id,
        control=variant("control"),
        challenger=variant("challenger"),
        started_s=time.time(),
        ramp=_ramp(options.ramp) if options.ramp else (RampStep(0.0, options.coverage),),
        holdout=options.holdout,
        mode="shadow" if options.shadow else "live",
        unit=options.unit,
        limits=_limits(options.limit),
        hypothesis=options.hypothesis,
        owner=options.owner,
    )


def _ramp(text: str) -> tuple[RampStep, ...]:
    try:
        pairs = [step.split(":") for step in text.split(",")]
        return tuple(RampStep(duration_s(age), float(share)) for age, share in pairs)
    except ValueError as error:
        raise ExperimentError(f"--ramp {text!r} must have the form 0:0.05,1h:0.25,1d:1") from error


_WAYS: Mapping[str, Think] = {"on": True, "off": False, "low": "low", "medium": "medium", "high": "high"}
_INTEGERS = ("min_units", "min_judged", "planned_units")


def _limits(pairs: list[str]) -> Limits:
    known = {field.name for field in fields(Limits)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known:
            raise ExperimentError(f"--limit {name!r} is unknown; use one of {', '.join(sorted(known))}")
        try:
            values[name] = None if value == "none" else int(value) if name in _INTEGERS else float(value)
        except ValueError as error:
            raise ExperimentError(f"--limit {pair!r} must be a name, '=' and a number") from error
    return Limits(**values)


def _check_variant(variant: Variant, settings: Settings) -> None:
    """Check a variant now, so that it does not fail at the first request."""
    if variant.policy is not None:
        resolve_policy(variant.policy)
    if variant.bundle is not None and not Path(variant.bundle).is_dir():
        raise ExperimentError(f"variant {variant.name!r}: there is no bundle at {variant.bundle}")
    if variant.model is not None:
        catalogue = Router.load_or_heuristic(settings=settings).catalogue
        if variant.model not in catalogue:
            known = ", ".join(catalogue.names)
            meant = suggestion(variant.model, catalogue.names)
            raise ExperimentError(
                f"variant {variant.name!r}: unknown model {variant.model!r}{meant}; the catalogue has {known}"
            )


def _record(settings: Settings, experiment: str, change: ChangeKind, detail: Mapping[str, Any]) -> None:
    """Write the change into the event store; the state files are authoritative, so a failing store is not an error."""
    try:
        store = event_store(settings, read_only=False)
        try:
            store.append([ExperimentEvent(experiment, change, detail)])
        finally:
            store.close()
    except StoreError as error:
        print(f"warning: not in the event store: {error}", file=sys.stderr)


def _watch(settings: Settings) -> Rollout:
    """Return a rollout that only reads."""
    return Rollout(ExperimentState(settings.state_dir / FOLDER), read_store=functools.partial(event_store, settings))


def _status(options: argparse.Namespace) -> int:
    settings = load_settings()
    rollout = _watch(settings)
    verdict = rollout.analyse(act=False)
    state = rollout.state()
    rollout.close()
    if options.json:
        halt = asdict(state.halt) if state.halt else None
        row = {
            "experiment": experiment_row(state.experiment) if state.experiment else None,
            "halt": halt,
            "latch": halt,  # its name in earlier versions
            "coverage": state.coverage,
            "verdict": verdict.as_dict() if verdict else None,
            "trouble": state.trouble,
        }
        print(json.dumps(row))
        return 0
    if state.experiment is None and state.halt is None:
        print("No experiment runs.")
        return 0
    if state.halt is not None:
        print(f"HALTED: {state.halt.reason}")
        print("Requests are served as before it. See 'router-ml experiment report', then 'router-ml experiment clear'.")
    if state.experiment is not None:
        if state.experiment.mode == "shadow":
            _print_shadow(settings, state.experiment)
        else:
            _print_state(state.experiment, state.coverage, verdict, halted=state.halt is not None)
    if state.trouble:
        print(f"warning: {state.trouble}", file=sys.stderr)
    return 0


def _print_state(experiment: Experiment, coverage: float, verdict: Verdict | None, *, halted: bool) -> None:
    age_h = (time.time() - experiment.started_s) / 3600
    print(f"{experiment.id}: {experiment.mode}, for {age_h:.1f} hours, {coverage:.0%} of {experiment.unit}s take part")
    if verdict is None:
        return
    rows: list[tuple[str, ...]] = [("", "control", "challenger")]
    counts = (
        ("units begun", verdict.begun),
        ("units complete", verdict.units),
        ("units with a judged answer", verdict.judged),
        ("requests of complete units", verdict.requests),
    )
    rows += [(name, f"{count['control']:,}", f"{count['challenger']:,}") for name, count in counts]
    print_table(rows)
    if not halted:
        print(verdict.summary)
    for finding in verdict.findings:
        print(f"  {finding.words}")
    if verdict.kind == "HOLD":
        print("Before it can be shipped:")
        for reason in verdict.reasons:
            print(f"  {reason}")


def _print_shadow(settings: Settings, experiment: Experiment) -> None:
    store = event_store(settings)
    try:
        selection = EventFilter(("decision",), since_s=experiment.started_s, experiment=experiment.id)
        shadow = shadow_of((stored.event for stored in store.read(selection)), experiment.id)
    finally:
        store.close()
    print(
        f"{experiment.id}: {experiment.challenger.name} decides in shadow; "
        f"everybody is served {experiment.control.name}"
    )
    rows: list[tuple[str, ...]] = [("", "served", "shadow"), *_shadow_rows(shadow.served, shadow.shadowed)]
    print_table(rows)
    if shadow.shadowed.decisions:
        print(f"At least {shadow.moved_share:.0%} of requests would go to another model. All figures are predictions.")


def _shadow_rows(served: Choices, shadowed: Choices) -> list[tuple[str, ...]]:
    def formatted(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    both = (served, shadowed)
    rows: list[tuple[str, ...]] = [("decisions", *(f"{side.decisions:,}" for side in both))]
    rows += [
        (model, *(f"{side.models.get(model, 0.0):.1%}" for side in both))
        for model in sorted({*served.models, *shadowed.models})
    ]
    rows.append(("success", *(formatted(side.p_success, ".1%") for side in both)))
    rows.append(("latency p50, s", *(formatted(side.latency_p50_s, ".2f") for side in both)))
    rows.append(("cost, USD", *(formatted(side.cost_usd, ".6f") for side in both)))
    return rows


def _stop(options: argparse.Namespace) -> int:
    settings = load_settings()
    experiment = ExperimentState(settings.state_dir / FOLDER).stop()
    _record(settings, experiment.id, "stopped", {"reason": options.reason})
    print(f"{experiment.id} is stopped; all requests are served as before it.")
    return 0


def _clear(options: argparse.Namespace) -> int:
    settings = load_settings()
    halt = ExperimentState(settings.state_dir / FOLDER).clear()
    _record(settings, halt.experiment, "cleared", {"reason": options.reason})
    print(f"{halt.experiment} ({halt.kind}) is acknowledged; a new experiment may start.")
    return 0


def _report(options: argparse.Namespace) -> int:
    settings = load_settings()
    files = ExperimentState(settings.state_dir / FOLDER)
    halt, running = files.halt(), files.active()
    name = options.id or (halt.experiment if halt else running.id if running else None)
    if name is None:
        raise ExperimentError("no experiment runs; name the one you mean")
    experiment = running if running is not None and running.id == name else files.finished(name)
    events = _events(settings, experiment)
    analyses = analyses_of(events)
    out = options.out or Path(f"{name}.html")
    out.write_text(report_html(experiment_row(experiment), analyses), encoding="utf-8")
    summary = analyses[-1].verdict.get("summary") if analyses else "No interim analysis has been made yet."
    print(f"{summary}\nThe report is in {out}.")
    stored = next((e.detail["record"] for e in reversed(events) if e.detail.get("record")), None)
    return 0 if stored is None else _check_record(stored, files.record(stored))


def _check_record(name: str, record: str) -> int:
    """Compute a record again and report whether its verdict is the same; return the exit status."""
    again = recompute(record)
    if again == record:
        print(f"The record {name} gives the same verdict, byte for byte, when computed again.")
        return 0
    row = json.loads(record)
    earlier = row.get("format", 1) in range(1, RECORD_FORMAT) and isinstance(row.get("verdict"), dict)
    if earlier and row["verdict"].get("kind") == json.loads(again)["verdict"]["kind"]:
        print(f"The record {name} was written by an earlier version; computed by this one, its verdict is the same.")
        return 0
    print(f"The record {name} gives ANOTHER verdict when computed again: the record or the program was changed.")
    return 1


def _events(settings: Settings, experiment: Experiment) -> list[ExperimentEvent]:
    store = event_store(settings)
    try:
        selection = EventFilter(("experiment",), since_s=experiment.started_s - 1, experiment=experiment.id)
        return [s.event for s in store.read(selection) if isinstance(s.event, ExperimentEvent)]
    finally:
        store.close()
