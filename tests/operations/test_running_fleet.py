"""A fleet at work under a real Prometheus: what it scrapes, what boards show of it, and what logs tell."""

from __future__ import annotations

import base64
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.generate_metrics_reference import descriptions
from tests.controlplane.conftest import new_database
from tests.operations.demo_fleet import SECRETS, Shown, demo_fleet
from tests.operations.prometheus_tools import ROOT, panels, require

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the fleet, on however busy a machine

WINDOW = "3m"
"""In place of $__rate_interval: all that the fleet did, however slowly."""
QUIET = {
    "speakerd_http_requests_active": "tests/edge/test_app.py",
    "speakerd_node_files_active": "tests/node/test_files.py",
    "speakerd_node_connections_cut_total": "tests/runtime/test_connection_caps.py",
    "speakerd_cp_connections_cut_total": "tests/runtime/test_connection_caps.py",
    "speakerd_node_late_results_total": "tests/node/test_batcher.py",
    "speakerd_node_device_faults_total": "tests/node/test_batcher.py",
    "speakerd_node_device_batches_halved_total": "tests/faults/test_device.py",
    "speakerd_node_rejected_total": "tests/node/test_standalone_node.py",
    "speakerd_node_windows_due": "tests/node/test_node_metrics.py",
    "speakerd_node_cursor_lag_revisions": "tests/node/test_node_metrics.py",
    "speakerd_node_certificate_expiry_timestamp_seconds": "tests/runtime/test_loop_watch.py",
    "speakerd_cp_certificate_expiry_timestamp_seconds": "tests/runtime/test_loop_watch.py",
    "speakerd_cp_cursor_lag_revisions": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_nodes_fenced_total": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_erasures_pending": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_erasure_oldest_pending_seconds": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_erasures_residual": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_erasure_oldest_residual_seconds": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_erasure_journal_failures_total": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_reconcile_drift_total": "tests/controlplane/test_reconciler.py",
    "speakerd_cp_reconcile_repairs_total": "tests/controlplane/test_reconciler.py",
    "speakerd_cp_route_failovers_total": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_redis_errors_total": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_database_errors_total": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_audit_checkpoint_failures_total": "tests/controlplane/test_audit.py",
    "speakerd_cp_relay_streams": "tests/controlplane/test_live_relay.py",
    "speakerd_cp_relay_withheld_total": "tests/controlplane/test_relay_guard.py",
    "speakerd_cp_jobs": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_job_oldest_waiting_seconds": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_jobs_running": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_jobs_put_back_total": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_webhooks_pending": "tests/controlplane/test_plane_metrics.py",
    "speakerd_cp_webhook_oldest_pending_seconds": "tests/controlplane/test_plane_metrics.py",
}
"""What a fleet that is well need not have shown by the end, and which test makes it move."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, postgresql_server: tuple[Path, str]) -> Iterator[Shown]:
    require("prometheus")
    with new_database(postgresql_server) as url, demo_fleet(tmp_path_factory.mktemp("fleet"), url) as found:
        yield found


def test_prometheus_scrapes_every_daemon(shown: Shown) -> None:
    targets = shown.server.get("targets")["activeTargets"]
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 4


def test_promtool_has_nothing_to_say_of_what_any_daemon_shows(shown: Shown, promtool: str) -> None:
    assert set(shown.expositions) == {"controlplane", "edge", "n1", "n2"}
    for name, text in shown.expositions.items():
        said = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (said.returncode, said.stdout, said.stderr) == (0, "", ""), name
        assert len([line for line in text.splitlines() if not line.startswith("#")]) < 1_000, name


@pytest.mark.parametrize(("panel", "expression"), panels())
def test_a_panel_shows_something_of_the_fleet(shown: Shown, panel: str, expression: str) -> None:
    found = shown.server.values(expression.replace("$__rate_interval", WINDOW), shown.seen_s)
    assert found and any(math.isfinite(value) for value in found), panel


def test_the_rules_are_loaded_and_a_fleet_that_is_well_wakes_nobody(shown: Shown) -> None:
    groups = shown.server.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 20 and all(rule["health"] == "ok" for rule in rules), rules
    fired = {rule["name"] for rule in rules if rule["alerts"] and rule["state"] == "firing"}
    # Half of what it did were mistakes made on purpose, and the machine of a test is seldom quiet.
    busy = {"EventLoopLag", "LiveWindowsLate", "WindowsSkipped", "NodeLeaseLow", "NodeFenced", "NodesFenced"}
    busy |= {"NamesWithheld", "NodeBehindFleetLog", "ErasureOverdue"}  # what follows when a lease is lost by that
    assert fired <= {"JobsFailing", "HttpErrors", *busy}, fired


@pytest.mark.parametrize("one", descriptions(), ids=lambda one: one.name)
def test_a_metric_moves_when_what_it_counts_is_done(shown: Shown, one: object) -> None:
    name, kind = one.name, one.kind  # type: ignore[attr-defined]
    series = f"{name}_count" if kind == "histogram" else name
    assert shown.server.get("query", query=f"count({series})", time=str(shown.seen_s))["result"], "no such series"
    (most,) = shown.server.values(f"max(max_over_time({series}[5m]))", shown.seen_s)
    if name in QUIET:
        assert (ROOT / QUIET[name]).exists()
    else:
        assert most > 0, f"{name} stayed at 0 in a fleet at work"


def test_labels_take_the_values_that_are_declared(shown: Shown) -> None:
    declared = {one.name: one.labels for one in descriptions()}
    for text in shown.expositions.values():
        for name, labels in re.findall(r"^(speakerd_\w+)\{([^}]*)\}", text, re.MULTILINE):
            known = declared[name if name in declared else re.sub(r"_(bucket|sum|count)$", "", name)]
            for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
                assert label == "le" or not known[label] or value in known[label], (name, label, value)


def test_a_streams_id_is_in_the_logs_of_all_who_had_to_do_with_it(shown: Shown) -> None:
    through = {"stream.opened", "stream.ended"}
    assert shown.events("controlplane", stream_id=shown.stream_id) == {"stream.placed"}
    nodes = {line["node_id"] for line in shown.lines("controlplane", stream_id=shown.stream_id)}
    assert any(shown.events(node, stream_id=shown.stream_id) == through for node in nodes)
    # Of a WebSocket, the edge is who places; a node that was behind may have refused it first.
    placed = [line for line in shown.logs["edge"] if line["event"] == "stream.placed"]
    assert any(shown.events(line["node_id"], stream_id=line["stream_id"]) == through for line in placed)


def test_a_jobs_id_is_in_the_logs_of_all_who_had_to_do_with_it(shown: Shown) -> None:
    assert {"job.created", "webhook.told"} <= shown.events("edge", job_id=shown.job_id)
    assert {"job.begun", "job.ended"} <= shown.events("controlplane", job_id=shown.job_id)
    heard = [shown.events(node, job_id=shown.job_id) for node in ("n1", "n2")]
    assert {"file.opened", "file.ended"} in heard
    (ended,) = [
        line for line in shown.lines("controlplane", job_id=shown.failed_job_id) if line["event"] == "job.ended"
    ]
    assert (ended["state"], ended["cause"]) == ("failed", "unsupported_media")


def test_an_erasures_id_is_in_the_logs_of_all_who_had_to_do_with_it(shown: Shown) -> None:
    assert "erasure.asked" in shown.events("controlplane", audit_id=shown.audit_id)
    # Whoever of those who share the database is first proves it.
    both = shown.events("controlplane", audit_id=shown.audit_id) | shown.events("edge", audit_id=shown.audit_id)
    assert "erasure.completed" in both
    for node in ("n1", "n2"):
        # One that lost its lease meanwhile, on a machine that stood still, forgot everybody and asked for a new one.
        assert shown.events(node, audit_id=shown.audit_id) == {"voice.forgotten"} or "lease.lapsed" in shown.events(
            node
        )
    assert "voice.withheld" in shown.events("edge", audit_id=shown.audit_id)


def test_logs_and_metrics_hold_no_name_no_key_and_no_sound(shown: Shown) -> None:
    told = "\n".join([*shown.raw_logs.values(), *shown.expositions.values()])
    assert not [word for word in (*SECRETS, *shown.keys) if word in told]
    # Nor anything long enough to be a voiceprint or sound, in base64 or as numbers.
    runs = re.findall(r"[A-Za-z0-9+/=]{80,}", told)
    assert not [run for run in runs if len(base64.b64decode(run + "=" * (-len(run) % 4), validate=False)) >= 64]
    assert not re.search(r"(-?\d\.\d{3,}, ?){8}", told)
    for lines in shown.logs.values():
        assert lines and all({"event", "level", "timestamp", "service"} <= line.keys() for line in lines)
