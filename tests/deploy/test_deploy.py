"""The files of deploy/ pass the linters of their formats, and name metrics and settings that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "router-ml"
PLAIN_YAML = ("compose.yaml", "prometheus/prometheus.yaml", "prometheus/rules.yaml", "helm/router-ml/values.yaml")
YAMLLINT = "{extends: relaxed, rules: {line-length: {max: 120}, document-start: disable}}"


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _passes(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_passes_hadolint() -> None:
    _passes(_tool("hadolint"), str(DEPLOY / "Dockerfile"))


def test_the_image_runs_without_root_and_without_torch() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    last = text.split("\nFROM ")[-1]
    assert re.search(r"^USER 10001$", last, re.M)
    assert "/healthz" in last
    assert "'.[server,postgres,redis]'" in text


@pytest.mark.parametrize("name", PLAIN_YAML)
def test_yaml_passes_yamllint(name: str) -> None:
    _passes(_tool("yamllint"), "--strict", "-d", YAMLLINT, str(DEPLOY / name))


def test_compose_follows_its_specification() -> None:
    _passes(_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml"))


VALUES: list[dict[str, Any]] = [
    {},
    {"replicas": 1, "hosts": ["http://a:11434", "http://b:11434"], "nodeSelector": {"zone": "a"}},
    {
        "existingSecret": "router",
        "modelsClaim": "bundles",
        "autoscaling": {"enabled": True},
        "allowHosts": ["router.example"],
        "settings": {"ROUTER_ML_PARALLEL": 2},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
    },
]


def _objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    chart = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed").Chart.load(str(CHART))
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    rendered = chart.render(values, name="team", namespace="ai").items()
    texts = [text for name, text in rendered if name.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


@pytest.mark.parametrize("values", VALUES)
def test_the_chart_gives_valid_kubernetes_objects(values: dict[str, Any]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    objects = _objects(values)
    for found in objects:
        kubernetes.validate(found, "1.31", strict=True)
    assert {"Deployment", "Service"} <= {found["kind"] for found in objects}


def test_the_chart_scales_on_the_queue_and_takes_addresses_from_a_secret() -> None:
    objects = {found["kind"]: found for found in _objects(VALUES[2])}
    metric = objects["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    variables = {variable["name"]: variable for variable in container["env"]}
    assert variables["ROUTER_ML_EVENTS"]["valueFrom"]["secretKeyRef"]["name"] == "router"
    assert variables["ROUTER_ML_REDIS"]["valueFrom"]["secretKeyRef"]["optional"]
    assert "replicas" not in objects["Deployment"]["spec"]


def test_the_server_takes_the_arguments_of_the_chart(capsys: pytest.CaptureFixture[str]) -> None:
    from router_ml.cli import main

    objects = {found["kind"]: found for found in _objects(VALUES[2])}
    args = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    with pytest.raises(SystemExit) as caught:
        main([*args, "--help"])
    assert caught.value.code == 0
    assert "--ollama" in capsys.readouterr().out


def test_the_chart_refuses_values_that_cannot_work() -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    chart = helm.Chart.load(str(CHART))
    for values in ({"hosts": []}, {"settings": {"parallel": 2}}, {"replicas": 0}):
        with pytest.raises(helm.HelmError, match=r"at .*(minItems|propertyNames|minimum|pattern|does not match)"):
            chart.validate_schema(values)


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    known = set(
        re.findall(r"`((?:gen_ai|router_ml)_\w+)`", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    )
    dashboard = (DEPLOY / "prometheus" / "grafana_dashboard.json").read_text(encoding="utf-8")
    assert len(json.loads(dashboard)["panels"]) >= 6
    for text in (dashboard, (DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8")):
        named = set(re.findall(r"\b((?:gen_ai|router_ml)_[a-z_0-9]+)", text))
        assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} <= known
