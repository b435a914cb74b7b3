"""Jobs as a caller drives them, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from speakerd.v1 import jobs_pb2, node_pb2
from tests.controlplane.conftest import Client

State = jobs_pb2.Job.State
ENDS = (jobs_pb2.Job.STATE_SUCCEEDED, jobs_pb2.Job.STATE_FAILED, jobs_pb2.Job.STATE_CANCELED)
KIND = {
    "diarize": jobs_pb2.CreateJobRequest.KIND_DIARIZE,
    "identify": jobs_pb2.CreateJobRequest.KIND_IDENTIFY,
    "voiceprint": jobs_pb2.CreateJobRequest.KIND_VOICEPRINT,
}


async def chunks(data: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def upload(client: Client, key: str, data: bytes) -> jobs_pb2.UploadMediaResponse:
    async def requests() -> AsyncIterator[jobs_pb2.UploadMediaRequest]:
        yield jobs_pb2.UploadMediaRequest(key=key)
        async for chunk in chunks(data):
            yield jobs_pb2.UploadMediaRequest(data=chunk)

    return await client.jobs.UploadMedia(requests(), metadata=client.metadata, timeout=60)


async def create(client: Client, kind: str = "diarize", **fields: Any) -> jobs_pb2.Job:
    request = jobs_pb2.CreateJobRequest(kind=KIND[kind], **fields)
    return await client.jobs.CreateJob(request, metadata=client.metadata, timeout=60)


async def get(client: Client, job_id: str) -> jobs_pb2.Job:
    return await client.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id), metadata=client.metadata, timeout=30)


async def cancel(client: Client, job_id: str) -> jobs_pb2.Job:
    return await client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id), metadata=client.metadata, timeout=30)


async def ended(client: Client, job_id: str, seconds: float = 170.0) -> jobs_pb2.Job:
    """The job once it has ended."""
    request = jobs_pb2.GetJobRequest(job_id=job_id)
    watched = client.jobs.WatchJob(request, metadata=client.metadata, timeout=seconds)
    *_, last = [job async for job in watched]
    assert last.state in ENDS
    return last


async def run(client: Client, kind: str = "diarize", **fields: Any) -> jobs_pb2.Job:
    """A job from its creation to its end."""
    return await ended(client, (await create(client, kind, **fields)).job_id)


async def read_result(client: Client, job_id: str) -> tuple[node_pb2.FileResult, bytes, int]:
    """The whole result, its confidences, and in how many messages the former came."""
    result, confidence, pieces = node_pb2.FileResult(), b"", 0
    request = jobs_pb2.GetJobRequest(job_id=job_id)
    async for piece in client.jobs.ReadJobResult(request, metadata=client.metadata, timeout=60):
        if piece.HasField("result"):
            result.MergeFrom(piece.result)
            pieces += 1
        else:
            confidence += piece.confidence.values
    return result, confidence, pieces
