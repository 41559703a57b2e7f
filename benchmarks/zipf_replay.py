"""Hit rate of the answer cache on a Zipf-like replay, through a gateway and a test double.

    python -m benchmarks.zipf_replay --requests 20000

Requests fall on `--texts` different texts with probability proportional to 1 / rank ** s, as questions to an assistant
do; `--one-off` of them are new texts that are not repeated. The highest possible hit rate is printed, too: that of a
cache which misses only the first request of each text.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator

from router_ml.serve import Answer, Gateway
from router_ml.serve.answer_cache.exact import ExactCache
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.serve.deciders import FixedDecider, catalogue_of


def texts(requests: int, distinct: int, exponent: float, one_off: float, seed: int) -> Iterator[str]:
    """Yield texts whose frequencies follow a Zipf law; a share `one_off` of them occurs only once."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank**exponent for rank in range(1, distinct + 1)))
    for number in range(requests):
        if rng.random() < one_off:
            yield f"a new thing, number {number}"
        else:
            yield f"question {rng.choices(range(distinct), cum_weights=weights)[0]}"


def replay(
    requests: int, distinct: int = 500, exponent: float = 1.1, one_off: float = 0.05, entries: int = 1000, seed: int = 0
) -> tuple[float, float, int]:
    """Return the hit rate, the highest possible one, and the number of generations."""
    asked = list(texts(requests, distinct, exponent, one_off, seed))
    possible = 1 - len(set(asked)) / len(asked)
    cache: ExactCache[Answer] = ExactCache(max_entries=entries)
    model = DoubleModel("m", reply=lambda body: "about " + body["messages"][-1]["content"])
    with (
        OllamaDouble([model]) as double,
        Gateway(FixedDecider("m"), catalogue_of("m"), default_host=double.url, cache=cache) as gateway,
    ):
        for text in asked:
            answer = gateway.chat(text, options={"temperature": 0}, context={"session_id": "one user"})
            assert answer.content == f"about {text}"
        return cache.stats.hit_rate, possible, len(double.generations)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zipf_replay", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--exponent", type=float, default=1.1)
    parser.add_argument("--one-off", type=float, default=0.05)
    parser.add_argument("--entries", type=int, nargs="*", default=[1000, 200, 50])
    arguments = parser.parse_args()
    print(f"{'entries':>8} {'hit rate':>9} {'possible':>9} {'generations':>12}")
    for entries in arguments.entries:
        rate, possible, generations = replay(
            arguments.requests, arguments.texts, arguments.exponent, arguments.one_off, entries
        )
        print(f"{entries:8} {rate:9.1%} {possible:9.1%} {generations:12}")


if __name__ == "__main__":
    main()
