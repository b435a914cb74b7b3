"""What a control plane measures, with what its HTTP side does. Declared here alone.

No label names a tenant, a voice, a node or a key: their number has no bound. What several control planes read from the
same database (erasures, jobs, webhooks, nodes) each of them shows: take the largest, not the sum.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from controlplane.job_spec import JobKind, JobState
from controlplane.webhook_post import Reason
from runtime.errors import Cause
from runtime.metric_set import MetricSet

PART, HTTP_PART = "cp", "http"
CAUSES = tuple(cause.value for cause in Cause)
LEASE_STATES = ("joining", "serving", "draining")
LIVE_JOB_STATES = (JobState.PENDING.value, JobState.CREATED.value, JobState.RUNNING.value)
ENDED_JOB_STATES = (JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.CANCELED.value)
JOB_KINDS = tuple(kind.value for kind in JobKind)
PREFLIGHT_OUTCOMES = (
    "passed",
    "warned",
    "duration_below_minimum",
    "duration_above_maximum",
    "peak_dbfs_above_threshold",
    "low_voice_activity_ratio",
    "snr_below_threshold",
    *CAUSES,
)
SPEAKER_CHECK_OUTCOMES = (
    "passed",
    "warned",
    "no_speech",
    "several_speakers",
    "net_speech_below_minimum",
    "cohesion_below_threshold",
    "consent_without_speech",
    "consent_of_several_speakers",
    "consent_of_another_voice",
    "collision",
    "no_node",
)
ERASURE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)
QUICK_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
JOB_BUCKETS = (0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 14400)


class Metrics:
    """The metrics of one control plane on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        made = MetricSet(registry, PART)
        self.registry = registry
        http = MetricSet(registry, HTTP_PART)
        self.all_described = (made.described, http.described)

        self.erasure_seconds = made.histogram(
            "erasure_seconds", "From an erasure's request to its proof.", ERASURE_BUCKETS
        )
        self.erasures_pending = made.gauge("erasures_pending", "Erasures without proof yet.")
        self.erasure_oldest_pending_seconds = made.gauge(
            "erasure_oldest_pending_seconds", "Age of the oldest erasure without proof; 0 without any."
        )
        self.erasures_residual = made.gauge(
            "erasures_residual", "Erasures that are proven, and name machines that may hold memory until they wake."
        )
        self.erasure_oldest_residual_seconds = made.gauge(
            "erasure_oldest_residual_seconds", "Age of the oldest of these; 0 without any."
        )
        self.erasure_journal_failures = made.counter(
            "erasure_journal_failures_total", "Records that the erasure journal did not take."
        )

        self.nodes = made.gauge("nodes", "Nodes that hold leases, by what they said last.", state=LEASE_STATES)
        self.nodes_fenced = made.counter("nodes_fenced_total", "Lease holders that were fenced for their silence.")
        self.lease_age_seconds = made.gauge(
            "lease_age_seconds", "How long ago the node renewed that has been silent the longest; 0 without nodes."
        )
        self.head_seq = made.gauge("head_revision", "Head of the fleet log.")
        self.cursor_lag = made.gauge(
            "cursor_lag_revisions", "Revisions of the fleet log that the node furthest behind has not acknowledged yet."
        )
        self.fan_out_seconds = made.histogram(
            "fan_out_seconds",
            "From a change of the fleet log being seen here to a node that it was pushed to acknowledging it.",
            QUICK_BUCKETS,
        )
        self.reconcile_drift = made.counter(
            "reconcile_drift_total",
            "Voices that nodes were found to hold otherwise than they should; of a node that is ahead, the node.",
            kind=("missing", "extra", "stale_generation", "wrong_digest", "ahead"),
        )
        self.reconcile_repairs = made.counter(
            "reconcile_repairs_total", "Voices sent again, and nodes made to read all anew.", way=("resent", "resynced")
        )

        self.route = made.counter("route_total", "Placements of streams.", outcome=("warm", "cold", "reject"))
        self.route_again = made.counter(
            "route_failovers_total", "Placements of streams that had broken off elsewhere: they name nodes to avoid."
        )
        self.route_seconds = made.histogram("route_seconds", "Time to place a stream.", QUICK_BUCKETS)

        self.redis_errors = made.counter("redis_errors_total", "Calls to Redis that failed.")
        self.redis_up = made.gauge("redis_up", "Whether the last call to Redis succeeded.")
        self.database_errors = made.counter(
            "database_errors_total", "Transactions that failed because the database was away, full or too slow."
        )
        self.database_seconds = made.histogram(
            "database_transaction_seconds",
            "Transactions, waiting for a connection included.",
            QUICK_BUCKETS,
            kind=("read", "write"),
        )

        self.audit_head = made.gauge("audit_head", "Rows of the audit.")
        self.audit_signed = made.gauge("audit_signed", "Rows of the audit up to the last signed checkpoint.")
        self.audit_checkpoint_failures = made.counter(
            "audit_checkpoint_failures_total", "Checkpoints that could not be kept."
        )
        self.audit_verify_ok = made.gauge(
            "audit_verify_ok", "Whether the last check of the audit found nothing wrong; 1 before the first."
        )
        self.audit_verify_ok.set(1)

        self.enrolments = made.counter(
            "enrolments_total", "Enrolments.", result=("ready", "pending", "failed", *CAUSES)
        )
        self.preflights = made.counter(
            "preflights_total",
            "Recordings for enrolment as signals: taken, taken with a warning, or why refused.",
            outcome=PREFLIGHT_OUTCOMES,
        )
        self.speaker_checks = made.counter(
            "speaker_checks_total",
            "What nodes heard in recordings for enrolment: taken, warned of, or why refused. no_node: nobody could.",
            outcome=SPEAKER_CHECK_OUTCOMES,
        )

        self.relay_streams = made.gauge("relay_streams", "Live streams that this process carries.")
        self.relay_streams_limit = made.gauge("relay_streams_limit", "How many it carries at once.")
        self.relay_withheld = made.counter(
            "relay_withheld_total", "Results relayed without names.", reason=("no_lease", "erased")
        )

        self.jobs = made.gauge("jobs", "Jobs that have not ended, by where they are.", state=LIVE_JOB_STATES)
        self.job_oldest_waiting_seconds = made.gauge(
            "job_oldest_waiting_seconds", "Age of the oldest job that waits for its turn; 0 without any."
        )
        self.jobs_running = made.gauge("jobs_running", "Jobs that this process works on.")
        self.jobs_ended = made.counter(
            "jobs_ended_total", "Jobs that ended here.", kind=JOB_KINDS, state=ENDED_JOB_STATES
        )
        self.jobs_put_back = made.counter(
            "jobs_put_back_total", "Attempts that failed and are repeated, by cause.", cause=CAUSES
        )
        self.job_seconds = made.histogram(
            "job_seconds", "Work on a job that succeeded, waiting for its turn apart.", JOB_BUCKETS, kind=JOB_KINDS
        )

        self.webhook_deliveries = made.counter(
            "webhook_deliveries_total",
            "Attempts to tell of a job's end, by what became of them.",
            result=("delivered", "gone", "given_up", *(reason.value for reason in Reason)),
        )
        self.webhooks_pending = made.gauge("webhooks_pending", "Ends of jobs that are still to be told.")
        self.webhook_oldest_pending_seconds = made.gauge(
            "webhook_oldest_pending_seconds", "Age of the oldest of these; 0 without any."
        )

        self.http_seconds = http.histogram(
            "request_duration_seconds",
            "HTTP requests, by the path that the route declares; `none`: no route has it.",
            (0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            route=(),
            method=(),
            code=(),
        )
        self.http_active = http.gauge("requests_active", "HTTP requests that are being answered.")
        self.websockets_active = http.gauge("websockets_active", "WebSocket connections that are open.")
        self.websockets = http.counter("websockets_total", "WebSocket connections that were asked for.", route=())


def declare(registry: CollectorRegistry) -> Metrics:
    """Declare them in a registry."""
    return Metrics(registry)
