"""The README starts a stranger: three lines that are enough by themselves, and a first result that one gets."""

from __future__ import annotations

import re

from router_ml.decide.router import Router
from router_ml.settings import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_there_are_three_lines_to_try_it() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    lines = [block for block in blocks if "python3.11 -m venv" in block]
    assert len(lines) == 3
    assert all(len(block.strip().splitlines()) == 1 for block in lines)
    assert [next(w for w in ("demo", "training.fit", "pytest") if w in block) for block in lines] == [
        "demo",
        "training.fit",
        "pytest",
    ]


def test_the_result_shown_first_is_what_one_gets() -> None:
    decision = Router.load(CHECKOUT / "models" / "default").decide("find a free hour with Dana and mail her the agenda")
    assert f'decision.model           # "{decision.model}"' in README
    assert f'decision.complexity      # "{decision.complexity}"' in README
    assert f'decision.reason          # "{decision.reason}"' in README
