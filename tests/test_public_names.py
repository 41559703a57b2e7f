"""Everything the documentation uses is importable from `router_ml`, and importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import router_ml
from router_ml import errors
from router_ml.settings import CHECKOUT


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    source = ast.parse((CHECKOUT / "router_ml" / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.asname for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == set(router_ml.__all__) - {"__version__"}
    assert all(getattr(router_ml, name) is not None for name in router_ml.__all__)
    assert dir(router_ml) == router_ml.__all__


def test_every_error_can_be_caught_by_its_public_name() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds <= set(router_ml.__all__)


def test_the_version_has_one_home() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert router_ml.__version__.count(".") == 2


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, router_ml; print(sorted({'numpy', 'httpx', 'ollama', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout == "[]\n"
