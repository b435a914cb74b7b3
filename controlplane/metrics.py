"""The control plane's metrics, declared once. No tenant, voice or node labels: their number has no bound."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True, slots=True)
class Metrics:
    """All of them."""

    registry: CollectorRegistry
    erasure_seconds: Histogram
    erasures_pending: Gauge
    erasure_oldest_pending_seconds: Gauge
    nodes: Gauge
    head_seq: Gauge
    reconcile_drift: Counter
    reconcile_repairs: Counter
    route: Counter
    route_seconds: Histogram
    redis_errors: Counter
    redis_up: Gauge
    audit_head: Gauge
    audit_signed: Gauge
    audit_checkpoint_failures: Counter
    audit_verify_ok: Gauge
    erasure_journal_failures: Counter
    relay_withheld: Counter
    relay_streams: Gauge
    webhook_deliveries: Counter
    enrolments: Counter
    jobs_running: Gauge
    jobs_ended: Counter
    http_request_duration_seconds: Histogram


def declare(registry: CollectorRegistry) -> Metrics:
    """Declare them in a registry."""
    return Metrics(
        registry=registry,
        erasure_seconds=Histogram(
            "cp_erasure_seconds",
            "From an erasure's request to its proof.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60),
            registry=registry,
        ),
        erasures_pending=Gauge("cp_erasures_pending", "Erasures without proof yet.", registry=registry),
        erasure_oldest_pending_seconds=Gauge(
            "cp_erasure_oldest_pending_seconds", "Age of the oldest erasure without proof.", registry=registry
        ),
        nodes=Gauge("cp_nodes", "Lease holders, by what they said last.", ["state"], registry=registry),
        head_seq=Gauge("cp_head_seq", "Head of the fleet log.", registry=registry),
        reconcile_drift=Counter(
            "cp_reconcile_drift",
            "Voices that nodes were found to hold otherwise than they should; of a node that is ahead, the node.",
            ["kind"],
            registry=registry,
        ),
        reconcile_repairs=Counter(
            "cp_reconcile_repairs", "Voices sent again, and nodes made to read all anew.", ["way"], registry=registry
        ),
        route=Counter("cp_route", "Placements of streams.", ["outcome"], registry=registry),
        route_seconds=Histogram(
            "cp_route_seconds",
            "Time to place a stream.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
            registry=registry,
        ),
        redis_errors=Counter("cp_redis_errors", "Calls to Redis that failed.", registry=registry),
        redis_up=Gauge("cp_redis_up", "Whether the last call to Redis succeeded.", registry=registry),
        audit_head=Gauge("cp_audit_head", "Rows of the audit.", registry=registry),
        audit_signed=Gauge("cp_audit_signed", "Rows of the audit up to the last signed checkpoint.", registry=registry),
        audit_checkpoint_failures=Counter(
            "cp_audit_checkpoint_failures", "Checkpoints that could not be kept.", registry=registry
        ),
        audit_verify_ok=Gauge(
            "cp_audit_verify_ok", "Whether the last check of the audit found nothing wrong.", registry=registry
        ),
        erasure_journal_failures=Counter(
            "cp_erasure_journal_failures", "Records that the erasure journal did not take.", registry=registry
        ),
        relay_withheld=Counter("cp_relay_withheld", "Results relayed without names.", ["reason"], registry=registry),
        webhook_deliveries=Counter(
            "cp_webhook_deliveries",
            "Attempts to tell of a job's end, by what became of them.",
            ["result"],
            registry=registry,
        ),
        relay_streams=Gauge("cp_relay_streams", "Live streams that this process carries.", registry=registry),
        enrolments=Counter("cp_enrolments", "Enrolments.", ["result"], registry=registry),
        jobs_running=Gauge("cp_jobs_running", "Jobs that this worker works on.", registry=registry),
        jobs_ended=Counter("cp_jobs_ended", "Jobs that ended here.", ["kind", "state"], registry=registry),
        http_request_duration_seconds=Histogram(
            "http_request_duration_seconds",
            "HTTP requests.",
            ["route", "method", "code"],
            buckets=(0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=registry,
        ),
    )
