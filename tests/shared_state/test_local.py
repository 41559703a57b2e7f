"""Rate limits of one process."""

from __future__ import annotations

import pytest

from router_ml.shared_state.local import Buckets


def test_a_bucket_refills_evenly() -> None:
    now = [100.0]
    buckets = Buckets(lambda: now[0])
    assert [buckets.take("ann", 60) for _ in range(60)] == [0.0] * 60
    assert buckets.take("ann", 60) == pytest.approx(1.0)
    now[0] += 1.0
    assert buckets.take("ann", 60) == 0.0
