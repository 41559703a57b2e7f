"""What held-out residuals say: conformal quantiles of latency, and the correction from a mean of logs to a mean."""

from __future__ import annotations

import numpy as np

from router_ml.decide.predictors.outcomes import QUANTITIES
from training.arrays import Matrix
from training.outcomes.targets import Targets

LEVELS = (0.5, 0.9, 0.95)
_LARGEST_RESIDUAL = 5.0  # of a logarithm, so that one row cannot dominate a mean


def residual_quantiles(targets: Targets, predicted: Matrix) -> list[list[float]]:
    """Return the quantiles `LEVELS` of the residual of log latency, for each model whose latency is known.

    Split-conformal quantiles (Vovk et al. 2005): the ceil((n + 1) q)-th smallest residual of the held-out predictions
    (n, K)."""
    found = (_residual(targets, predicted, "latency_s", j) for j in range(targets.n_models))
    return [[_conformal(residual, level) for level in LEVELS] for residual in found if residual is not None]


def latency_error(targets: Targets, predicted: Matrix) -> float:
    """Return the median relative error of held-out latencies (n, K) over all models; NaN if no latency is known.

    exp(median |log measured - log predicted|) - 1: half of the requests took at most this share longer or shorter."""
    found = [_residual(targets, predicted, "latency_s", j) for j in range(targets.n_models)]
    known = [np.abs(residual) for residual in found if residual is not None]
    return float(np.expm1(np.median(np.concatenate(known)))) if known else float("nan")


def smearing(targets: Targets, predicted: Matrix) -> Matrix:
    """Return what to add to log tokens and costs (K,) so that their exponent is a mean; 0 for other targets.

    The logarithm of Duan's smearing factor (1983, JASA 78:605-610)."""
    offset = np.zeros(predicted.shape[1])
    for name in QUANTITIES:
        for j in range(targets.n_models):
            residual = None if name == "latency_s" else _residual(targets, predicted, name, j)
            if residual is not None:
                offset[targets.column(name, j)] = np.log(np.mean(np.exp(np.minimum(residual, _LARGEST_RESIDUAL))))
    return offset


def _residual(targets: Targets, predicted: Matrix, quantity: str, model: int) -> Matrix | None:
    column = targets.column(quantity, model)
    if column < 0:
        return None
    residual = targets.values[:, column] - predicted[:, column]
    return np.sort(residual[~np.isnan(residual)])


def _conformal(ordered: Matrix, level: float) -> float:
    rank = int(np.ceil((len(ordered) + 1) * level)) if level > 0.5 else round((len(ordered) + 1) * level)
    return float(ordered[min(max(rank, 1), len(ordered)) - 1])
