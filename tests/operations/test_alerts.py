"""Alert rules: each is tried firing and quiet, has a page that helps, and asks for metrics that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.generate_metrics_reference import descriptions
from tests.operations.prometheus_tools import ALERTS, ROOT, names_in

RUNBOOKS = ROOT / "docs" / "runbooks"
SECTIONS = ["## What it means", "## What to look at", "## What to do"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def tool(promtool: str, *arguments: str, folder: Path = ALERTS.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_the_configuration_and_the_rules_are_what_prometheus_takes(promtool: str) -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml")):
        said = tool(promtool, *arguments)
        assert said.returncode == 0, said.stderr


def test_each_alert_fires_when_it_should_and_only_then(promtool: str) -> None:
    said = tool(promtool, "test", "rules", "alerts_test.yml")
    assert said.returncode == 0, said.stdout + said.stderr
    tried: dict[str, set[bool]] = {}
    for test in yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            tried.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert tried == {rule["alert"]: {True, False} for rule in rules()}


@pytest.mark.parametrize(
    ("alert", "rule", "changed"),
    [
        ("ErasureOverdue", "> 15", "> 1500"),
        ("ErasureOverdue", "> 15", "> 4"),
        ("AuditChainBroken", "== 0", "== 1"),
        ("NodeBehindFleetLog", "for: 15s", "for: 15m"),
    ],
)
def test_a_rule_that_is_changed_fails_its_test(
    promtool: str, tmp_path: Path, alert: str, rule: str, changed: str
) -> None:
    text = yaml.safe_dump({"groups": [{"name": "one", "rules": [one for one in rules() if one["alert"] == alert]}]})
    tests = yaml.safe_load((ALERTS.parent / "alerts_test.yml").read_text())
    tests["tests"] = [one for one in tests["tests"] if one["name"] == alert]
    assert rule in text and len(tests["tests"]) == 1
    (tmp_path / "alerts_test.yml").write_text(yaml.safe_dump(tests))
    for content, holds in ((text, True), (text.replace(rule, changed), False)):
        (tmp_path / "alerts.yml").write_text(content)
        said = tool(promtool, "test", "rules", "alerts_test.yml", folder=tmp_path)
        assert (said.returncode == 0) is holds, said.stdout + said.stderr


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    alerts = {rule["alert"] for rule in rules()}
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*alerts, "index"}
    listed = (RUNBOOKS / "index.md").read_text()
    for rule in rules():
        name = rule["alert"]
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{name}.md"
        assert rule["labels"]["severity"] in ("page", "ticket")
        page = (RUNBOOKS / f"{name}.md").read_text()
        assert re.findall(r"^## .*$", page, re.MULTILINE) == SECTIONS, name
        assert f"({name}.md)" in listed, f"{name} is not in the list"


def test_alerts_and_pages_speak_of_metrics_that_there_are() -> None:
    known = {one.name for one in descriptions()}
    asked = {name for rule in rules() for name in names_in(rule["expr"])}
    told = {name for path in RUNBOOKS.glob("*.md") for name in names_in(path.read_text())}
    assert asked and asked | told <= known, (asked | told) - known


def test_pages_name_lines_of_the_log_that_daemons_write() -> None:
    code = "".join(
        path.read_text() for part in ("node", "controlplane", "runtime", "edge") for path in (ROOT / part).rglob("*.py")
    )
    told = {event for path in RUNBOOKS.glob("*.md") for event in re.findall(r"`([a-z]+\.[a-z_]+)`", path.read_text())}
    assert told and {event for event in told if f'"{event}"' not in code} == set()
