"""Write docs/metrics.md from what the daemons declare. With --check: say whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry

from controlplane import metrics as of_plane
from node import metrics as of_node
from runtime.loop_watch import declare as of_daemon
from runtime.metric_set import Description

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
HEAD = """# Metrics

Every daemon shows its metrics as Prometheus text: a node at `http://HOST:PORT/metrics` of its setting `metrics`, a
control plane, whatever its roles, likewise; where a control plane has none set, on its HTTP port. A thread of its own
renders them, so that a scrape keeps no stream waiting. The same port answers `/health/live`, `/health/started` and
`/health/ready`.

No label names a tenant, a voice, a speaker, a stream or a job. Labels take the values that are written here and no
other, and every series is there from the start, at 0; routes and versions are open, and bounded by what there is.
What several control planes read from one database (erasures, jobs, webhooks, nodes) each of them shows: take the
largest, not the sum. Counters begin at 0 when a daemon starts.

`deploy/prometheus/prometheus.yml` scrapes, `deploy/prometheus/alerts.yml` alerts (what to do:
[runbooks](runbooks/index.md)), `deploy/grafana/` draws. What the GPU says of itself (use, temperature, power) comes
from NVIDIA's own exporter.

This page is generated: `python -m scripts.generate_metrics_reference`.
"""


def descriptions() -> list[Description]:
    """Every metric of ours, of all daemons."""
    return [one for _, part in _parts() for one in part]


def page() -> str:
    """The page as it should be."""
    return "\n".join([HEAD, *(line for title, part in _parts() for line in _section(title, part))])


def _parts() -> Iterable[tuple[str, list[Description]]]:
    plane, http = of_plane.Metrics(CollectorRegistry()).all_described
    return (
        ("Node", of_node.NodeMetrics(CollectorRegistry()).described + _of_daemon(of_node.PART)),
        ("Control plane", plane + _of_daemon(of_plane.PART)),
        ("HTTP", http),
    )


def _of_daemon(part: str) -> list[Description]:
    return of_daemon(CollectorRegistry(), part).described


def _section(title: str, described: list[Description]) -> list[str]:
    lines = [f"## {title}", "", "| metric | type | labels | what it says |", "| --- | --- | --- | --- |"]
    for one in described:
        labels = "; ".join(
            f"`{label}`: {', '.join(f'`{value}`' for value in values) if values else 'open'}"
            for label, values in one.labels.items()
        )
        buckets = f" Buckets: {', '.join(f'{bound:g}' for bound in one.buckets)}." if one.buckets else ""
        lines.append(f"| `{one.name}` | {one.kind} | {labels} | {one.text}{buckets} |")
    return [*lines, ""]


def main() -> int:
    """Write, or check."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() == wanted:
            return 0
        print(f"{PAGE.name} is out of date: run python -m scripts.generate_metrics_reference")
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
