"""Fit the abilities of `router_ml/library/fit.json` to the published figures in `models.toml`, and judge the rule.

    python -m benchmarks.library_fit            fit, leave out one model at a time, print the errors
    python -m benchmarks.library_fit --write    the same, and write fit.json

The figure of arm e (a model with the way it is asked) on benchmark b of task family f, as a log-odds with the
benchmark's chance level taken out, is

    z_eb = a_b theta_ef + c_b + noise of sd s_b,    theta_e = W x_e + v_family(e) + r_e,    r_e ~ N(0, S)

x_e are the features of `router_ml.library.rule`, v a family's effect shrunk towards 0, S the 5 x 5 covariance of what
neither explains: a model measured in one task family says something about the others. EM fits it (a factor model with a
regression for its mean). Then theta is put on the scale of doublings of parameters: a dense general model of
`REFERENCE_YEAR` that does not think has theta = log2 of its billions of parameters, on average.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.catalogue import load_catalogue
from router_ml.library.ability import abilities_of
from router_ml.library.entry import Library
from router_ml.library.prior import success_at
from router_ml.library.rule import FEATURES, KNOT, Mode, Profile, features_of, mode_of, modes_of, on_scale
from router_ml.terminal import print_table, track
from router_ml.types import LABELS, TASK_FAMILIES, Label

Array = NDArray[np.float64]

LIBRARY = Path(__file__).resolve().parent.parent / "router_ml" / "library"
LOWEST, HIGHEST = 0.01, 0.99  # of a share of right answers; beyond them a log-odds says little
N = len(TASK_FAMILIES)
ONE, SIZE, SMALL = (FEATURES.index(name) for name in ("one", "size", "small"))
RIDGE = 0.3  # of the regression's weights, but for "one" and "size"
FAMILY_SD = 0.6  # of a family's effect, in doublings
SLOPE, SLOPE_SD = 0.45, 0.2  # of a benchmark before it was seen: log-odds per doubling
NOISE, NOISE_FIGURES = 0.35, 8.0  # sd of a figure in log-odds before it was seen, and how many figures that counts for
SPREAD, SPREAD_ARMS = 0.6, 10.0  # sd of r_e in one task family before it was seen, and how many arms that counts for
ROUNDS, ROUNDS_LEFT_OUT = 120, 15


class Figure(NamedTuple):
    """One published figure."""

    arm: int
    benchmark: int
    z: float  # log-odds, chance taken out
    share: float  # 0..1, as published


@dataclass(frozen=True)
class Data:
    """The figures, and what is known of the arms and benchmarks."""

    models: tuple[Mapping[str, Any], ...]
    arms: tuple[tuple[str, Mode], ...]  # model, mode
    x: Array  # (arms, features)
    families: tuple[str, ...]
    family: NDArray[np.intp]  # (arms,)
    benchmarks: tuple[Mapping[str, Any], ...]
    task: NDArray[np.intp]  # (benchmarks,): index into TASK_FAMILIES
    figures: tuple[Figure, ...]

    def without(self, model: str) -> Data:
        """Return the data without a model's figures."""
        return replace(self, figures=tuple(f for f in self.figures if self.arms[f.arm][0] != model))


@dataclass(frozen=True)
class Fit:
    """The parameters of the model, and the posterior of each arm's abilities."""

    slope: Array  # (benchmarks,) a
    offset: Array  # (benchmarks,) c
    noise: Array  # (benchmarks,) s
    weights: Array  # (features, tasks) W
    effects: Array  # (families, tasks) v
    spread: Array  # (tasks, tasks) S
    mean: Array  # (arms, tasks)
    covariance: Array  # (arms, tasks, tasks)

    def expected(self, data: Data) -> Array:
        """Return what the rule says of each arm, (arms, tasks)."""
        rule: Array = data.x @ self.weights + self.effects[data.family]
        return rule


def read(path: Path = LIBRARY / "models.toml") -> Data:
    """Return the figures of the data file."""
    file = tomllib.loads(path.read_text(encoding="utf-8"))
    models, benchmarks = file["model"], file["benchmark"]
    keys = {benchmark["key"]: i for i, benchmark in enumerate(benchmarks)}
    families = sorted({model["family"] for model in models})
    arms = [(model["name"], mode) for model in models for mode in modes_of(model["thinking"])]
    places, by_name = {arm: i for i, arm in enumerate(arms)}, {model["name"]: model for model in models}
    figures = []
    for model in models:
        for row in model.get("figures", ()):
            arm = places[model["name"], mode_of(model["thinking"], row.get("think"))]
            for key, value in row.items():
                if key in keys:
                    figures.append(_figure(arm, keys[key], value, benchmarks[keys[key]]["chance"]))
    return Data(
        models=tuple(models),
        arms=tuple(arms),
        x=np.array([features_of(profile_of(by_name[name], mode)) for name, mode in arms]),
        families=tuple(families),
        family=np.array([families.index(by_name[name]["family"]) for name, _ in arms]),
        benchmarks=tuple(benchmarks),
        task=np.array([TASK_FAMILIES.index(benchmark["task_family"]) for benchmark in benchmarks]),
        figures=tuple(figures),
    )


def profile_of(model: Mapping[str, Any], mode: Mode) -> Profile:
    """Return what the rule reads of an entry of the data file."""
    year, month = model["released"].split("-")
    return Profile(
        model["family"], model["parameters_b"], model.get("active_b"), int(year) + (int(month) - 1) / 12,
        model.get("specialisation", ""), "tools" in model["capabilities"], mode,
    )  # fmt: skip


def _figure(arm: int, benchmark: int, percent: float, chance: float) -> Figure:
    above = min(max((percent - chance) / (100 - chance), LOWEST), HIGHEST)
    return Figure(arm, benchmark, math.log(above / (1 - above)), percent / 100)


def fit(data: Data, start: Fit | None = None, rounds: int = ROUNDS) -> Fit:
    """Return the fit by EM, from a start where there is one."""
    now = start or _start(data)
    for _ in range(rounds):
        now = _maximised(data, _expected(data, now))
    return _expected(data, now)


def _start(data: Data) -> Fit:
    weights = np.zeros((len(FEATURES), N))
    weights[SIZE] = 1.0
    arms, benchmarks = len(data.arms), len(data.benchmarks)
    return Fit(
        slope=np.full(benchmarks, SLOPE), offset=_offsets(data, weights), noise=np.full(benchmarks, NOISE),
        weights=weights, effects=np.zeros((len(data.families), N)), spread=np.eye(N) * SPREAD**2,
        mean=np.zeros((arms, N)), covariance=np.zeros((arms, N, N)),
    )  # fmt: skip


def _offsets(data: Data, weights: Array) -> Array:
    offsets = np.zeros(len(data.benchmarks))
    rule = data.x @ weights
    for b in range(len(offsets)):
        rows = [f.z - SLOPE * rule[f.arm, data.task[b]] for f in data.figures if f.benchmark == b]
        offsets[b] = float(np.mean(rows)) if rows else 0.0
    return offsets


def _expected(data: Data, now: Fit) -> Fit:
    """Return the fit with the posterior of every arm's abilities, given the parameters."""
    prior = now.expected(data)
    inverse = np.linalg.inv(now.spread)
    precision = np.broadcast_to(inverse, (len(data.arms), N, N)).copy()
    weighted = prior @ inverse
    for f in data.figures:
        task, a, s = data.task[f.benchmark], now.slope[f.benchmark], now.noise[f.benchmark]
        precision[f.arm, task, task] += a * a / s**2
        weighted[f.arm, task] += a * (f.z - now.offset[f.benchmark]) / s**2
    covariance = np.linalg.inv(precision)
    return replace(now, mean=np.einsum("eij,ej->ei", covariance, weighted), covariance=covariance)


def _maximised(data: Data, now: Fit) -> Fit:
    """Return the fit with the parameters that suit the posterior best, each shrunk towards what it was before."""
    seen = np.array(sorted({f.arm for f in data.figures}))
    x, family, mean = data.x[seen], data.family[seen], now.mean[seen]
    penalty = np.diag([0.01 if name in ("one", "size") else RIDGE for name in FEATURES])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ (mean - now.effects[family]))
    residual = mean - x @ weights
    variance = np.diag(now.spread)
    effects = np.zeros_like(now.effects)
    for i in range(len(data.families)):
        own = residual[family == i]
        effects[i] = own.sum(axis=0) / (len(own) + variance / FAMILY_SD**2)
    rest = residual - effects[family]
    spread = rest.T @ rest + now.covariance[seen].sum(axis=0) + SPREAD_ARMS * np.eye(N) * SPREAD**2
    slope, offset, noise = now.slope.copy(), now.offset.copy(), now.noise.copy()
    for b in range(len(data.benchmarks)):
        slope[b], offset[b], noise[b] = _line(data, now, b)
    return replace(
        now, slope=slope, offset=offset, noise=noise, weights=weights, effects=effects,
        spread=spread / (len(seen) + SPREAD_ARMS),
    )  # fmt: skip


def _line(data: Data, now: Fit, b: int) -> tuple[float, float, float]:
    """Return slope, offset and noise of a benchmark: a line through log-odds against abilities, which are uncertain."""
    own = [f for f in data.figures if f.benchmark == b]
    if not own:
        return SLOPE, float(now.offset[b]), NOISE
    task = data.task[b]
    theta = np.array([now.mean[f.arm, task] for f in own])
    doubt = np.array([now.covariance[f.arm, task, task] for f in own])
    z = np.array([f.z for f in own])
    centre, level = theta.mean(), z.mean()
    pull = now.noise[b] ** 2 / SLOPE_SD**2
    slope = float(((theta - centre) @ (z - level) + pull * SLOPE) / (((theta - centre) ** 2 + doubt).sum() + pull))
    offset = float(level - slope * centre)
    squares = float((((z - offset - slope * theta) ** 2) + slope**2 * doubt).sum())
    return slope, offset, math.sqrt((squares + NOISE_FIGURES * NOISE**2) / (len(own) + NOISE_FIGURES))


def in_doublings(data: Data, found: Fit) -> Fit:
    """Return the fit with latent abilities that grow by 1 a doubling above `KNOT`, and are log2 of the billions of
    parameters for the reference models."""
    unit, base = found.weights[SIZE], found.weights[ONE]
    weights = found.weights / unit
    weights[ONE] = 0.0
    units = np.outer(unit, unit)
    return replace(
        found,
        slope=found.slope * unit[data.task], offset=found.offset + found.slope * base[data.task], weights=weights,
        effects=found.effects / unit, spread=found.spread / units, mean=(found.mean - base) / unit,
        covariance=found.covariance / units,
    )  # fmt: skip


def slopes(data: Data, found: Fit) -> Array:
    """Return the log-odds that a doubling adds between 1 and 32 billion parameters, by task family: the mean over its
    benchmarks, weighted by their figures."""
    counts = np.bincount([f.benchmark for f in data.figures], minlength=len(data.benchmarks))
    own = [
        np.average(found.slope[data.task == t], weights=counts[data.task == t]) for t in range(N)
    ]  # above the knot; below it a doubling adds 1 + small
    mean: Array = np.array(own) * (1.0 + found.weights[SMALL] * KNOT / math.log2(32))
    return mean


class Errors(NamedTuple):
    """Mean absolute errors of a figure in points, by task family."""

    rule: Array
    mean: Array  # always the mean of the benchmark's other figures
    size: Array  # a line through log-odds against log2 parameters, for each benchmark
    counts: NDArray[np.intp]

    def whole(self, column: Array) -> float:
        """Return the mean over all figures."""
        return float(np.average(column, weights=self.counts))


def leave_one_out(data: Data, found: Fit) -> Errors:
    """Predict the figures of each model from all others, by the rule and by what needs no rule."""
    rows: list[tuple[float, ...]] = []
    for model in track(sorted({data.arms[f.arm][0] for f in data.figures}), "leaving out"):
        rest = data.without(model)
        refit = fit(rest, found, ROUNDS_LEFT_OUT)
        rule = refit.expected(rest)
        for f in (f for f in data.figures if data.arms[f.arm][0] == model):
            others = [g for g in rest.figures if g.benchmark == f.benchmark]
            if others:
                z = refit.slope[f.benchmark] * rule[f.arm, data.task[f.benchmark]] + refit.offset[f.benchmark]
                guesses = (_share(data, f, z), float(np.mean([g.share for g in others])), _by_size(data, f, others))
                rows.append((int(data.task[f.benchmark]), *(abs(guess - f.share) for guess in guesses)))
    table = np.array(rows)
    rule, mean, size = np.array([table[table[:, 0] == t, 1:].mean(axis=0) * 100 for t in range(N)]).T
    return Errors(rule, mean, size, np.bincount(table[:, 0].astype(int), minlength=N))


def _share(data: Data, f: Figure, z: float) -> float:
    chance = float(data.benchmarks[f.benchmark]["chance"]) / 100
    return chance + (1 - chance) / (1 + math.exp(-z))


def _by_size(data: Data, f: Figure, others: Sequence[Figure]) -> float:
    x = np.array([(1.0, data.x[g.arm, SIZE]) for g in others])
    line = np.linalg.solve(x.T @ x + np.diag([0.01, 0.5]), x.T @ np.array([g.z for g in others]))
    return _share(data, f, float(line @ (1.0, data.x[f.arm, SIZE])))


def exported(data: Data, found: Fit, errors: Errors) -> dict[str, Any]:
    """Return what the library reads: abilities of the models, the rule, slopes, and the labels' difficulties."""
    small = found.weights[SMALL]
    fit_: dict[str, Any] = {
        "format": 1,
        "made_by": "python -m benchmarks.library_fit --write",
        "features": list(FEATURES),
        "task_families": list(TASK_FAMILIES),
        "slopes": _rounded(slopes(data, found)),
        "weights": [_rounded(row) for row in found.weights],
        "spread": _rounded(np.sqrt(np.diag(found.spread))),
        "families": {name: _rounded(row) for name, row in zip(data.families, found.effects, strict=True)},
        "family_sd": _rounded(found.effects.std(axis=0)),
        "error_points": dict(
            zip((*TASK_FAMILIES, "all"), _rounded((*errors.rule, errors.whole(errors.rule)), 1), strict=True)
        ),
        "models": [_exported_model(data, found, model, small) for model in data.models],
    }
    return fit_ | {"labels": labels_of(fit_)}


def _exported_model(data: Data, found: Fit, model: Mapping[str, Any], small: Array) -> dict[str, Any]:
    with_figures = {f.arm for f in data.figures}
    places = [i for i, (name, _) in enumerate(data.arms) if name == model["name"]]
    fitted = {}
    if any(i in with_figures for i in places):  # of a mode without figures the others say something, too
        for i in places:
            latent_sd = np.sqrt(np.diag(found.covariance[i]))
            mean = [on_scale(float(m), float(k)) for m, k in zip(found.mean[i], small, strict=True)]
            sd = [s / (1.0 if m >= KNOT else 1.0 + k) for s, m, k in zip(latent_sd, mean, small, strict=True)]
            fitted[data.arms[i][1]] = [_rounded(mean), _rounded(sd)]
    profile = profile_of(model, "plain")
    return {
        "name": model["name"],
        "aliases": model.get("aliases", []),
        "family": model["family"],
        "parameters_b": model["parameters_b"],
        "active_b": model.get("active_b", model["parameters_b"]),
        "year": round(profile.year, 2),
        "context_tokens": model["context_tokens"],
        "capabilities": model["capabilities"],
        "thinking": model["thinking"],
        "specialisation": model.get("specialisation", ""),
        "quantisation": model["quantisation"],
        "fitted": fitted,
    }


def labels_of(fit_: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difficulty of a typical query of each label, and how steeply success rises with ability there.

    With these the packaged models come out nearest to what the packaged catalogue states for them (least squares)."""
    found = Library(fit_)
    packaged = [
        (abilities_of(found, model.name, think=True if model.can("thinking") else None), model.prior.success)
        for model in load_catalogue()
    ]

    def best(steepness: float, label: Label) -> tuple[float, float]:
        errors = [
            (sum((success_at(able, d, found, steepness) - stated[label]) ** 2 for able, stated in packaged), d)
            for d in np.arange(-25.0, 12.0, 0.05).tolist()
        ]
        return min(errors)

    steepness = min(np.arange(0.3, 1.55, 0.05).tolist(), key=lambda s: sum(best(s, label)[0] for label in LABELS))
    difficulty = {label: round(best(steepness, label)[1], 2) for label in LABELS}
    return {"steepness": round(steepness, 2), "difficulty": difficulty}


def _rounded(values: Any, digits: int = 3) -> list[float]:
    return [round(float(value), digits) for value in values]


def report(data: Data, errors: Errors) -> None:
    """Print the errors against the baselines."""
    rows: list[tuple[str, ...]] = [("task family", "figures", "rule", "size only", "family mean")]
    for t, task in enumerate(TASK_FAMILIES):
        values = (f"{column[t]:.1f}" for column in (errors.rule, errors.size, errors.mean))
        rows.append((task, str(errors.counts[t]), *values))
    whole = (f"{errors.whole(column):.1f}" for column in (errors.rule, errors.size, errors.mean))
    rows.append(("all", str(errors.counts.sum()), *whole))
    print(f"{len(data.models)} models, {len(data.figures)} figures. Mean absolute error in points of success,")
    print("of a figure of a model that was left out with all its figures:\n")
    print_table(rows)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.library_fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="write router_ml/library/fit.json")
    arguments = parser.parse_args()
    data = read()
    raw = fit(data)
    errors = leave_one_out(data, raw)
    report(data, errors)
    if arguments.write:
        text = json.dumps(exported(data, in_doublings(data, raw), errors), separators=(",", ":"))
        path = LIBRARY / "fit.json"
        path.write_text(text.replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")
        print(f"\nwrote {path.name}")


if __name__ == "__main__":
    main()
