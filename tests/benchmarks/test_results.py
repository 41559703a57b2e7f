"""docs/results.md is rewritten block by block, and names only commands that exist."""

from __future__ import annotations

import importlib.util
import shlex

from benchmarks.results import PAGE, commands, rewritten

FIRST = "before\n<!-- command: python -m a -->\nold\n<!-- end -->\n"
TEXT = FIRST + "between\n<!-- command: python -m b -->\n1\n<!-- end -->\n"


def test_a_block_holds_what_its_command_prints_and_the_rest_stays() -> None:
    page = rewritten(TEXT, lambda command: "new" if command.endswith(" a") else None)
    assert page == TEXT.replace("old\n", "```text\nnew\n```\n")


def test_every_command_of_the_page_is_a_module_of_this_project() -> None:
    found = [shlex.split(command) for command in commands(PAGE.read_text(encoding="utf-8"))]
    assert len(found) >= 8
    for program, flag, module, *_ in found:
        assert (program, flag) == ("python", "-m")
        assert importlib.util.find_spec(module) is not None, module
