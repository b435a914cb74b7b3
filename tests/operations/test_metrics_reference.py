"""The reference of metrics is what the code declares, and what it declares keeps Prometheus' conventions."""

from __future__ import annotations

from scripts.generate_metrics_reference import PAGE, descriptions, page

UNITS = ("seconds", "bytes", "ratio", "total", "info")
COUNTS = {
    "streams_active", "streams_limit", "files_active", "files_limit", "windows_due", "batch_windows",
    "voices_warm", "state", "applied_revision", "cursor_lag_revisions", "incarnation", "erasures_pending",
    "erasures_residual", "nodes", "head_revision", "redis_up", "audit_head", "audit_signed", "audit_verify_ok",
    "relay_streams", "relay_streams_limit", "jobs", "jobs_running", "webhooks_pending", "requests_active",
    "websockets_active",
}  # fmt: skip
"""What is counted in no unit."""
OF_PEOPLE = {"tenant", "voice", "speaker", "stream", "job", "node", "key", "user", "label", "name"}


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run python -m scripts.generate_metrics_reference"


def test_names_say_whose_they_are_and_in_which_unit() -> None:
    for one in descriptions():
        _, part, rest = one.name.split("_", 2)
        assert one.name.startswith("speakerd_") and part in ("node", "cp", "http")
        assert rest in COUNTS or rest.endswith(UNITS), one.name
        assert (one.kind == "counter") == rest.endswith("_total"), one.name
        assert one.text.endswith("."), one.name


def test_no_label_is_of_a_person_or_without_a_bound() -> None:
    found = descriptions()
    assert not {label for one in found for label in one.labels} & OF_PEOPLE
    open_labels = {(one.name, label) for one in found for label, values in one.labels.items() if not values}
    assert open_labels == {
        ("speakerd_node_build_info", "version"),
        ("speakerd_cp_build_info", "version"),
        ("speakerd_http_request_duration_seconds", "route"),
        ("speakerd_http_request_duration_seconds", "method"),
        ("speakerd_http_request_duration_seconds", "code"),
        ("speakerd_http_websockets_total", "route"),
    }
