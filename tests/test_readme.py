"""What the README tells people to type exists: verbs, options, modules, files, settings, names, policies."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from router_ml import settings
from router_ml.cli import parser as router_ml_parser
from router_ml.decide.selection.policy import policy_from
from router_ml.settings import CHECKOUT

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
MADE_BY_THE_READER = {"queries.jsonl", "outcomes.jsonl", "queries.txt", "BUNDLE", "DECISION_ID", "up", "faster"}
PROGRAMS = {"python3.11", "pip", "mlflow", "router-ml", "python", "cd", "git"}


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, flags=re.M | re.S)


def _commands() -> Iterator[list[str]]:
    for block in _blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                    command = command[1:]
                if command:
                    yield command


COMMANDS = list(_commands())
MODULES = [command for command in COMMANDS if command[1:2] == ["-m"]]
VERBS = [command for command in COMMANDS if Path(command[0]).name == "router-ml"]
INLINE = [shlex.split(code) for code in re.findall(r"`(router-ml [^`]+)`", README) if "..." not in code]


def _name(command: list[str]) -> str:
    return " ".join(command)[:70]


def test_there_are_three_lines_to_try_it() -> None:
    lines = [block for block in _blocks("sh") if "python3.11 -m venv" in block]
    assert len(lines) == 3
    assert all(len(block.strip().splitlines()) == 1 for block in lines)
    assert [next(w for w in ("demo", "training.fit", "pytest") if w in block) for block in lines] == [
        "demo",
        "training.fit",
        "pytest",
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=_name)
def test_every_program_is_known(command: list[str]) -> None:
    assert Path(command[0]).name in PROGRAMS


@pytest.mark.parametrize("command", MODULES, ids=_name)
def test_every_module_and_its_options_exist(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    module, arguments = command[2], command[3:]
    assert importlib.util.find_spec(module) is not None
    if not module.startswith("training."):
        return
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(module).main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert re.search(rf"{option}\b", shown), option
    for argument in arguments:
        if argument.endswith((".jsonl", ".toml")) and argument not in MADE_BY_THE_READER:
            assert (CHECKOUT / argument).is_file(), argument


@pytest.mark.parametrize("command", VERBS + INLINE, ids=_name)
def test_every_verb_and_its_options_parse(command: list[str]) -> None:
    arguments = command[1:]
    if len(arguments) == 1 or arguments[-1] in ("experiment",):
        with pytest.raises(SystemExit) as caught:
            router_ml_parser().parse_args([*arguments, "--help"])
        assert caught.value.code == 0
    elif arguments != ["experiment", "clear"]:  # named in prose, without the experiment it clears
        assert callable(router_ml_parser().parse_args(arguments).func)


@pytest.mark.parametrize("extra", sorted(set(re.findall(r"'\.\[(\w+)\]'", README))))
def test_every_extra_exists(extra: str) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert extra in project["project"]["optional-dependencies"]


@pytest.mark.parametrize("block", _blocks("python"), ids=lambda block: block.splitlines()[0])
def test_every_imported_name_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("router_ml"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("block", _blocks("toml"), ids=lambda block: block.splitlines()[0])
def test_every_policy_shown_is_one(block: str) -> None:
    assert policy_from(tomllib.loads(block), "readme").on_ambiguous == "clarify"


def test_every_setting_is_read_somewhere() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for room in ("router_ml", "training")
        for path in (CHECKOUT / room).rglob("*.py")
    )
    for name in set(re.findall(r"\b(?:ROUTER_ML|OLLAMA)_[A-Z_]+\b", README)):
        assert f'"{name}"' in sources, name
    assert "ROUTER_ML_POLICY" in Path(settings.__file__).read_text(encoding="utf-8")


def test_every_file_it_points_at_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (CHECKOUT / target).exists(), target
    for path in set(re.findall(r"`((?:router_ml|training|data|tests|models)/[\w./-]+)`", README)):
        assert (CHECKOUT / path).exists(), path


def test_the_result_shown_first_is_what_one_gets() -> None:
    from router_ml.decide.router import Router

    decision = Router.load(CHECKOUT / "models" / "default").decide("find a free hour with Dana and mail her the agenda")
    assert f'decision.model           # "{decision.model}"' in README
    assert f'decision.complexity      # "{decision.complexity}"' in README
    assert f'decision.reason          # "{decision.reason}"' in README
