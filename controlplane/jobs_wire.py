"""Between the contract's messages of jobs and the core's dataclasses. No decisions, no I/O."""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.job_leaving import Leaving
from controlplane.job_spec import (
    JobKind,
    JobSource,
    JobSpec,
    JobState,
    Matching,
    MediaKey,
    MediaUrl,
    Priority,
    SentVoiceprint,
    Webhook,
)
from controlplane.job_view import Job
from controlplane.jobs import PAGE_DEFAULT
from controlplane.media_store import MediaInfo
from runtime.errors import InvalidRequest
from speakerd.v1 import jobs_pb2, node_pb2

RESULT_BYTES_MAX = 2 << 20

_KINDS = {
    jobs_pb2.CreateJobRequest.KIND_UNSPECIFIED: JobKind.DIARIZE,
    jobs_pb2.CreateJobRequest.KIND_DIARIZE: JobKind.DIARIZE,
    jobs_pb2.CreateJobRequest.KIND_IDENTIFY: JobKind.IDENTIFY,
    jobs_pb2.CreateJobRequest.KIND_VOICEPRINT: JobKind.VOICEPRINT,
}
_KINDS_OUT = {kind: number for number, kind in _KINDS.items()}
_STATES = {
    JobState.PENDING: jobs_pb2.Job.STATE_PENDING,
    JobState.CREATED: jobs_pb2.Job.STATE_CREATED,
    JobState.RUNNING: jobs_pb2.Job.STATE_RUNNING,
    JobState.SUCCEEDED: jobs_pb2.Job.STATE_SUCCEEDED,
    JobState.FAILED: jobs_pb2.Job.STATE_FAILED,
    JobState.CANCELED: jobs_pb2.Job.STATE_CANCELED,
}
_STATES_IN = {number: state for state, number in _STATES.items()}
_PRIORITIES = {
    jobs_pb2.CreateJobRequest.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    jobs_pb2.CreateJobRequest.PRIORITY_HIGH: Priority.HIGH,
    jobs_pb2.CreateJobRequest.PRIORITY_NORMAL: Priority.NORMAL,
    jobs_pb2.CreateJobRequest.PRIORITY_LOW: Priority.LOW,
}


def job_spec(request: jobs_pb2.CreateJobRequest) -> JobSpec:
    """What is asked, not yet checked. Raises InvalidRequest for what no job could be."""
    kind, priority = _KINDS.get(request.kind), _PRIORITIES.get(request.priority)
    if kind is None or priority is None:
        raise InvalidRequest("kind, priority: one of those that the contract names")
    if bool(request.media_key) == bool(request.url):
        raise InvalidRequest("media_key, url: one of the two says where the recording is")
    source: JobSource = MediaUrl(request.url) if request.url else MediaKey(request.media_key)
    options, matching = request.options, request.matching
    return JobSpec(
        kind=kind,
        source=source,
        num_speakers=options.num_speakers or None,
        min_speakers=options.min_speakers or None,
        max_speakers=options.max_speakers or None,
        exclusive=True,
        confidence=options.frame_confidence,
        turn_confidence=True,
        names=True,
        voice_ids=tuple(options.voice_ids),
        fast=options.mode == node_pb2.FileOpen.MODE_FAST,
        voiceprints=tuple(
            SentVoiceprint(sent.label, base64.b64encode(sent.voiceprint).decode()) for sent in request.voiceprints
        ),
        matching=Matching(
            exclusive=matching.exclusive if matching.HasField("exclusive") else True,
            threshold=matching.threshold,
            everybody=matching.everybody,
            speakers=tuple(matching.voice_ids),
        ),
        webhook=Webhook(request.webhook.url, request.webhook.status_only) if request.HasField("webhook") else None,
        priority=priority,
        idempotency_key=request.idempotency_key,
    )


def listing(request: jobs_pb2.ListJobsRequest) -> dict[str, Any]:
    """The arguments of Jobs.list. Raises InvalidRequest."""
    state = _STATES_IN.get(request.state)
    if state is None and request.state != jobs_pb2.Job.STATE_UNSPECIFIED:
        raise InvalidRequest("state: one of those that the contract names")
    return {"limit": request.page_size or PAGE_DEFAULT, "cursor": request.page_token or None, "state": state}


def bare_job(job: Job) -> jobs_pb2.Job:
    """A job without what it gave."""
    return jobs_pb2.Job(
        job_id=job.job_id,
        kind=_KINDS_OUT[job.kind],
        state=_STATES[job.state],
        created_at=_instant(job.created_at_s),
        updated_at=_instant(job.updated_at_s),
        progress=node_pb2.FileProgress(processed_ms=job.processed_ms, duration_ms=job.duration_ms),
        error=job.error or "",
        warning=job.warning or "",
        expires_at=None if job.expires_at_s is None else _instant(job.expires_at_s),
    )


def job(leaving: Leaving) -> jobs_pb2.Job:
    """A job with what it gave, unless that is too long for one message."""
    found = bare_job(leaving.job)
    output = leaving.job.output
    if leaving.result is None or output is None:
        return found
    if output.voiceprint is not None:
        found.voiceprint = base64.b64decode(output.voiceprint)
    if leaving.result.ByteSize() > RESULT_BYTES_MAX:
        found.result_is_long = True
    else:
        found.result.CopyFrom(leaving.result)
    return found


def uploaded(kept: MediaInfo) -> jobs_pb2.UploadMediaResponse:
    """A recording that is kept."""
    return jobs_pb2.UploadMediaResponse(
        key=kept.key, size_bytes=kept.size_bytes, expires_at=_instant(kept.expires_at_s)
    )


def _instant(at_s: float) -> Timestamp:
    instant = Timestamp()
    instant.FromMilliseconds(round(at_s * 1000))
    return instant
