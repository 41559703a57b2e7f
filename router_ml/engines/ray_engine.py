"""The engine on a Ray cluster: one actor a worker, each with its own encoder.

`RAY_ADDRESS` names the cluster; without it Ray starts on this machine alone. Every node needs router-ml and sees the
bundle under the same path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from router_ml.engines.engine import AHEAD, ordered
from router_ml.errors import InputError, RouterError

A = TypeVar("A")
B = TypeVar("B")

RESTARTS = 3  # of an actor whose node is lost; its items are done again


class _Actor:
    """Holds one function; Ray makes an actor of it."""

    def __init__(self) -> None:
        self._function: Callable[[Any], Any] | None = None

    def apply(self, build: Sequence[Any], item: Any) -> Any:
        """Return the function's result. `build` holds a reference to what makes the function: it is read once, by a
        restarted actor too, and each node gets it once."""
        if self._function is None:
            import ray

            self._function = ray.get(build[0])()
        return self._function(item)


class RayEngine:
    """Actors of a Ray cluster: by default one for each CPU of it, and no more than that; where they are `waiting` for
    others, one for each node, or any number."""

    def __init__(self, workers: int | None = None, *, waiting: bool = False) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to the outside
        try:
            import ray
        except ImportError as error:
            raise InputError("--engine ray needs ray; pip install 'router-ml[ray]'") from error
        self._ray = ray
        if not ray.is_initialized():
            here = {"num_cpus": None if waiting else workers, "include_dashboard": False}
            ray.init(log_to_driver=False, logging_level="error", **({} if os.environ.get("RAY_ADDRESS") else here))
        self._cpus = 0 if waiting else 1  # of an actor
        if waiting:
            self.workers = workers or sum(node["Alive"] for node in ray.nodes())
        else:  # an actor beyond the CPUs would never start, and its items never be done
            cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
            self.workers = min(workers or cpus, cpus)

    def map(self, build: Callable[[], Callable[[A], B]], items: Iterable[A]) -> Iterator[B]:
        """Yield the result of each item, in order. Raises as an engine does."""
        ray = self._ray
        options = {"num_cpus": self._cpus, "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
        kind = ray.remote(scheduling_strategy="SPREAD", **options)(_Actor)
        shared = [ray.put(build)]
        actors = [kind.remote() for _ in range(self.workers)]
        turn = 0

        def submit(item: A) -> Any:
            nonlocal turn
            turn += 1
            return actors[turn % len(actors)].apply.remote(shared, item)

        try:
            yield from ordered(submit, ray.get, items, self.workers * (1 + AHEAD))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RouterError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            raise RouterError(f"the Ray cluster failed ({str(error)[:200]}); run the same command again") from error
        finally:
            for actor in actors:
                ray.kill(actor)
