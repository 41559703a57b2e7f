"""What README, docs/ and CONTRIBUTING tell people to type exists, and docs/reference.md names what the code has."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from router_ml import catalogue, context, errors, settings
from router_ml.cli import parser as router_ml_parser
from router_ml.decide.selection.policy import PRESETS, Policy, policy_from
from router_ml.events import export
from router_ml.events.event import KINDS, DecisionEvent
from router_ml.events.writer import WriterState
from router_ml.experiments.experiment import Experiment, Limits
from router_ml.hosts.options import BreakerOptions, GatewayOptions
from router_ml.http.options import ServerOptions
from router_ml.monitor.metrics import LiveMetrics
from router_ml.monitor.prometheus import prometheus
from router_ml.monitor.rules import default_rules
from router_ml.rule import Rule
from router_ml.serve.answer import Answer, Attempt, Timings
from router_ml.settings import CHECKOUT, Settings
from router_ml.types import Candidate, Decision, Prior

PAGES = {
    str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8")
    for path in (
        *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "models/README.md")),
        *sorted((CHECKOUT / "docs").glob("*.md")),
    )
}
PROGRAMS = {"python3.11", "pip", "mlflow", "router-ml", "python", "cd", "git", "bash", "curl", "kubectl", "helm"}
MADE_BY_THE_READER = {"queries.jsonl", "outcomes.jsonl", "queries.txt"}
OF_OTHERS = {"OLLAMA_BASE_URL", "OLLAMA_NUM_PARALLEL", "OLLAMA_HOST"}  # settings that other programs read
ROOMS = ("router_ml", "training", "benchmarks")


class Found(NamedTuple):
    """Something a page shows."""

    page: str
    what: str

    def __str__(self) -> str:
        return f"{self.page}: {self.what.strip().splitlines()[0][:60]}"


def _blocks(kind: str) -> list[Found]:
    pattern = rf"^```{kind}\n(.*?)^```"
    return [Found(page, code) for page, text in PAGES.items() for code in re.findall(pattern, text, re.M | re.S)]


def _split(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line of shell, without the settings in front of them."""
    command: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word == "&&":
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)


def _commands() -> Iterator[Found]:
    for page, block in _blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (Found(page, shlex.join(command)) for command in _split(line))
    for page, text in PAGES.items():
        for code in re.findall(r"<!-- command: (.+?) -->|`((?:router-ml|python -m) [^`]+)`", text):
            line = code[0] or code[1]
            if "..." not in line and "TEXT" not in line:
                yield from (Found(page, shlex.join(command)) for command in _split(line))


COMMANDS = list(dict.fromkeys(_commands()))
MODULES = [found for found in COMMANDS if " -m " in found.what and not re.search("-m (venv|pytest)", found.what)]
VERBS = [found for found in COMMANDS if re.match(r"\S*router-ml ", found.what)]


@pytest.mark.parametrize("found", COMMANDS, ids=str)
def test_every_program_is_known(found: Found) -> None:
    assert Path(shlex.split(found.what)[0]).name in PROGRAMS


@pytest.mark.parametrize("found", MODULES, ids=str)
def test_every_module_and_its_options_exist(found: Found) -> None:
    words = shlex.split(found.what)
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8") + _sources("training")
    for option in (argument for argument in arguments if argument[:2] == "--" and argument != "--help"):
        assert f'"{option}"' in source, option
    for argument in arguments:
        if argument.endswith((".jsonl", ".toml")) and argument not in MADE_BY_THE_READER:
            assert (CHECKOUT / argument).is_file(), argument


@pytest.mark.parametrize("found", VERBS, ids=str)
def test_every_verb_and_its_options_parse(found: Found) -> None:
    arguments = shlex.split(found.what)[1:]
    if len(arguments) == 1 or arguments[-1] == "--help":
        with pytest.raises(SystemExit) as caught:
            router_ml_parser().parse_args([*arguments, "--help"])
        assert caught.value.code == 0
    else:
        assert callable(router_ml_parser().parse_args(arguments).func)


@pytest.mark.parametrize("found", _blocks("python"), ids=str)
def test_every_imported_name_exists(found: Found) -> None:
    for node in ast.walk(ast.parse(found.what)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ROOMS:
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("found", _blocks("toml"), ids=str)
def test_every_policy_shown_is_one(found: Found) -> None:
    assert isinstance(policy_from(tomllib.loads(found.what), "page"), Policy)


@pytest.mark.parametrize("page", PAGES)
def test_every_extra_exists(page: str) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    for extra in re.findall(r"(?:\.|router-ml)\[(\w+)\]", PAGES[page]):
        assert extra in project["project"]["optional-dependencies"]


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_is_read_somewhere(page: str) -> None:
    for name in set(re.findall(r"\b(?:ROUTER_ML|OLLAMA)_[A-Z_]+\b", PAGES[page])) - OF_OTHERS:
        assert f'"{name}"' in _sources("router_ml") + _sources("training"), name


@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_in_a_sentence_exists(page: str) -> None:
    sources = "".join(map(_sources, ROOMS))
    for option in set(re.findall(r"`(--[a-z][a-z-]+)", PAGES[page])):
        assert f'"{option}"' in sources, option


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_heading_it_points_at_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (CHECKOUT / page).parent / path if path else CHECKOUT / page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target
    for path in set(re.findall(r"`((?:router_ml|training|data|tests|models|examples)/[\w./-]+)`", PAGES[page])):
        assert (CHECKOUT / path).exists() or "NAME" in path, path


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_the_readme_leads_to_every_page(page: str) -> None:
    assert f"({page})" in PAGES["README.md"]


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def _sources(room: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted((CHECKOUT / room).rglob("*.py")))


# -- the reference ----------------------------------------------------------------------------------------------------

Table = Mapping[str, list[str]]  # the further cells of a row by each name in its first cell


def _tables(heading: str) -> list[Table]:
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGES["docs/reference.md"], re.M | re.S)
    assert section is not None, heading
    tables = []
    for block in re.findall(r"(?:^\|.*\n)+", section[1], re.M):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()[2:]]
        names = [name for first, *_ in rows for name in re.findall("`([^`]+)`", first)]
        assert len(names) == len(set(names)), heading
        tables.append({name: cells for first, *cells in rows for name in re.findall("`([^`]+)`", first)})
    return tables


def _names(cls: Any) -> set[str]:
    return set(cls._fields) if hasattr(cls, "_fields") else {field.name for field in dataclasses.fields(cls)}


def _properties(cls: type) -> set[str]:
    kinds = property, functools.cached_property
    return {name for name, value in vars(cls).items() if isinstance(value, kinds)}


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else f"{value:g}"
    return str(value) if value or isinstance(value, Path) else "empty"


def _defaults(cls: Any) -> dict[str, str]:
    found = {}
    for field in dataclasses.fields(cls):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = "required" if made is dataclasses.MISSING else _shown(made)
    return found


@pytest.mark.parametrize(
    ("heading", "index", "expected"),
    [
        ("Decision", 0, _names(Decision) | {"think"}),
        ("Candidate", 0, _names(Candidate)),
        ("Context", 0, context._READ),
        ("Policy", 0, _names(Policy)),
        ("Catalogue", 0, catalogue._MODEL_KEYS),
        ("Catalogue", 1, catalogue._PRIOR_KEYS),
        ("Catalogue", 2, catalogue._ARM_KEYS),
        ("Catalogue", 3, _names(catalogue.Measured)),
        ("Answer", 0, _names(Answer) | _properties(Answer)),
        ("Answer", 1, _names(Timings)),
        ("Answer", 2, _names(Attempt)),
        ("GatewayOptions", 0, _names(GatewayOptions)),
        ("BreakerOptions", 0, _names(BreakerOptions)),
        ("ServerOptions", 0, _names(ServerOptions)),
        ("Experiment", 0, _names(Experiment)),
        ("Limits of an experiment", 0, _names(Limits)),
        ("Rules", 0, _names(Rule)),
        ("Events", 0, set(KINDS)),
        ("Alerts", 0, {rule.name for rule in default_rules()}),
    ],
)
def test_the_reference_names_every_field_and_no_other(heading: str, index: int, expected: Collection[str]) -> None:
    assert set(_tables(heading)[index]) == set(expected)


@pytest.mark.parametrize(
    ("heading", "index", "cls"),
    [
        ("Policy", 0, Policy),
        ("Catalogue", 0, catalogue.Model),
        ("Catalogue", 1, Prior),
        ("Catalogue", 3, catalogue.Measured),
        ("GatewayOptions", 0, GatewayOptions),
        ("BreakerOptions", 0, BreakerOptions),
        ("ServerOptions", 0, ServerOptions),
        ("Experiment", 0, Experiment),
        ("Limits of an experiment", 0, Limits),
    ],
)
def test_the_reference_shows_the_defaults(heading: str, index: int, cls: Any) -> None:
    in_words = {"started_s": "now", "ramp": "everybody at once"}
    given = {name: cells[0] for name, cells in _tables(heading)[index].items() if not cells[0].startswith("[")}
    assert given == {name: in_words.get(name, value) for name, value in _defaults(cls).items() if name in given}


def test_the_reference_shows_the_presets() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| (\w+) \| (\w+) \|$", PAGES["docs/reference.md"], re.M)
    assert rows == [
        (name, *map(_shown, (p.latency_weight_per_s, p.cost_weight_per_usd, p.latency_budget_s, p.load_wait_s)))
        for name, p in PRESETS.items()
    ]


def _variables() -> dict[str, str]:
    """Return the field of `Settings` behind each environment variable, as `load_settings` reads them."""
    calls = [
        node for node in ast.walk(ast.parse(inspect.getsource(settings.load_settings))) if isinstance(node, ast.Call)
    ]
    built = next(
        call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Settings" and call.keywords
    )
    found = {}
    for keyword in built.keywords:
        names = [node.value for node in ast.walk(keyword.value) if isinstance(node, ast.Constant)]
        found[next(name for name in names if isinstance(name, str))] = str(keyword.arg)
    return found


def test_the_reference_names_every_setting_and_its_default() -> None:
    given, defaults, fields = _tables("Settings")[0], _defaults(Settings), _variables()
    read = set(re.findall(r'"((?:ROUTER_ML|OLLAMA)_[A-Z_]+)"', _sources("router_ml") + _sources("training")))
    assert set(given) == read | {"MLFLOW_TRACKING_URI"}
    assert set(fields.values()) == set(defaults)
    for variable, (default, _) in given.items():
        if variable in fields:
            assert default == defaults[fields[variable]].replace("False", "0"), variable
        else:
            assert default == "none", variable


def test_the_reference_names_every_error_and_its_kind() -> None:
    raised = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, Exception)}
    shown = {name: cells[0] for name, cells in _tables("Errors")[0].items()}
    assert shown == {name: ", ".join(base.__name__ for base in cls.__bases__) for name, cls in raised.items()}


def test_the_reference_names_the_fields_of_a_decision_row() -> None:
    row = export._bandit_row(DecisionEvent("id", "m", "simple", "balanced", "b", 1.0), None, {})
    assert set(_tables("Rows of decisions")[0]) == set(row)


def test_the_reference_names_every_metric() -> None:
    backends = [{"model": "m", "host": "h", "running": 0, "waiting": 0}]
    text = prometheus(LiveMetrics(), writer=WriterState(0, 0, 0, 0, None), backends=backends)
    assert set(_tables("Metrics")[0]) == set(re.findall(r"^# TYPE (\w+)", text, re.M))
