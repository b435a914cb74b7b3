"""What a node measures. Declared here alone; base units; no label names a tenant, a voice or a stream."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5)


class NodeMetrics:
    """The metrics of one node on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"node_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"node_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"node_{name}", text, buckets=buckets, registry=registry)

        self.streams_active = gauge("streams_active", "Live streams that hold a slot.")
        self.streams_limit = gauge("streams_limit", "Slots for live streams.")
        self.files_active = gauge("files_active", "Files that hold a slot.")
        self.audio_seconds = counter("audio_seconds_total", "Audio analysed, streams and files.")
        self.queue_wait_seconds = histogram(
            "queue_wait_seconds", "From a window being due to its batch.", LATENCY_BUCKETS
        )
        self.infer_seconds = histogram("infer_seconds", "A batch on the device.", LATENCY_BUCKETS)
        self.stream_lag_seconds = histogram(
            "stream_lag_seconds", "How far analysis is behind what was received.", (*LATENCY_BUCKETS, 10, 30)
        )
        self.batch_size = histogram("batch_size", "Windows in a batch.", (1, 2, 4, 8, 16, 32, 64))
        self.skipped_windows = counter("skipped_windows_total", "Windows of live streams that were not analysed.")
        self.late_results = counter("late_results_total", "Analyses that came back after their slot was closed.")
        self.device_faults = counter("device_faults_total", "Streams and files that a fault of the device ended.")
        self.voices_warm = gauge("voices_warm", "Voices held on the device.")
        self.enroll = counter("enroll_total", "Enrolments.", "result")
        self.evict = counter("evict_total", "Voices forgotten.", "reason")
        self.stream_end = counter("stream_end_total", "Streams that ended.", "reason")
        self.rejected = counter("rejected_total", "Streams and files refused.", "reason")
        self.lease_remaining_seconds = gauge("lease_remaining_seconds", "What is left of the lease; 0 without one.")
        self.applied_revision = gauge("applied_revision", "The node's cursor in the fleet log.")
        self.incarnation = gauge("incarnation", "The node's incarnation; 0 without one.")
