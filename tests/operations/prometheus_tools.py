"""Debian's prometheus and promtool, which scripts/fetch_prometheus.sh puts into the environment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.redis_server import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
BOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
OURS = re.compile(r"\bspeakerd_[a-z0-9_]+")


def require(name: str) -> str:
    """prometheus or promtool; skips where there is none, naming why."""
    fetched = Path(sys.prefix) / "opt" / "prometheus" / "bin" / name
    found = str(fetched) if fetched.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: scripts/fetch_prometheus.sh found no apt to fetch it with, and it is not on PATH")
    return found


def panels() -> list[tuple[str, str]]:
    """Every query of every board, with where it stands."""
    return [
        (f"{path.stem}: {panel['title']}", target["expr"])
        for path in BOARDS
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def names_in(expression: str) -> set[str]:
    """Metrics of ours that an expression asks for, without what histograms add."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in OURS.findall(expression)}


@dataclass(frozen=True)
class Prometheus:
    """A server that runs."""

    url: str

    def get(self, path: str, **arguments: str) -> Any:
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        return said["data"]

    def values(self, expression: str, at_s: float | None = None) -> list[float]:
        """What an instant query gives."""
        when = {} if at_s is None else {"time": str(at_s)}
        return [float(one["value"][1]) for one in self.get("query", query=expression, **when)["result"]]


@contextlib.contextmanager
def prometheus(folder: Path, targets: dict[str, list[str]]) -> Iterator[Prometheus]:
    """Scrapes targets by job, each second, with our alerts loaded."""
    binary = require("prometheus")
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
        ],
    }
    file = folder / "prometheus.json"
    file.write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={address}",
                f"--web.console.templates={folder}",
                f"--web.console.libraries={folder}",
            ],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "GOMAXPROCS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(f"http://{address}")
    finally:
        process.kill()
        process.wait()
