"""What is usual is learned from what happens, and slowly."""

from __future__ import annotations

import math
import random

import pytest

from router_ml.monitor.expectation import CalibratedFailures, ErrorShare


def logistic(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def test_before_anything_was_seen_the_prediction_is_believed_with_the_benefit_of_the_doubt() -> None:
    # At one in ten only the shift is in doubt, by a standard error of 1: half of it on top of log odds of -ln 9.
    assert CalibratedFailures().usual(0.1) == pytest.approx(logistic(-math.log(9) + 0.5))


@pytest.mark.parametrize(("shift", "tilt"), [(0.0, 1.0), (0.8, 1.0), (-0.5, 0.6)])
def test_predictions_that_are_off_by_a_shift_and_a_tilt_are_put_right(shift: float, tilt: float) -> None:
    draw, calibration = random.Random(1), CalibratedFailures()
    for _ in range(6000):
        odds = draw.uniform(-3.0, -0.5)
        calibration.learn(logistic(odds), draw.random() < logistic(shift + tilt * odds))
    for odds in (-2.5, -1.5, -0.7):
        # 3000 events of memory leave the log odds a standard error of some 0.07.
        assert calibration.usual(logistic(odds)) == pytest.approx(logistic(shift + tilt * odds), rel=0.25)


def test_a_fault_of_a_hundred_and_fifty_requests_hardly_moves_what_is_usual() -> None:
    draw, calibration = random.Random(2), CalibratedFailures()
    for _ in range(3000):
        calibration.learn(0.1, draw.random() < 0.1)
    before = calibration.usual(0.1)
    for _ in range(150):
        calibration.learn(0.1, draw.random() < 0.3)
    assert calibration.usual(0.1) - before < 0.03


def test_the_share_of_errors_is_a_mean_with_a_prior() -> None:
    share = ErrorShare()
    assert share.usual() == pytest.approx(0.01)
    for number in range(100):
        share.learn(number % 10 == 0)
    # 200 calls with 2 errors before, 100 calls with 10 now; the running mean weighs the n-th by 1 / (200 + n).
    assert share.usual() == pytest.approx(12 / 300, rel=0.01)
