"""speakerd.v1.Jobs on the wire: recordings at once, the media store, and jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from controlplane import jobs_wire as wire
from controlplane.arrivals import arriving
from controlplane.identity import Identity
from controlplane.jobs import Jobs
from controlplane.media_store import MediaStore
from controlplane.policy import Principal
from controlplane.relay import Relay
from controlplane.scopes import JOBS_WRITE
from runtime.errors import InvalidRequest
from runtime.grpc_server import bearer
from speakerd.v1 import jobs_pb2, jobs_pb2_grpc, node_pb2

CHUNK_BYTES_MAX = 1 << 20
Context = aio.ServicerContext[Any, Any]


class JobsServicer(jobs_pb2_grpc.JobsServicer):
    """The wire side of recordings and jobs."""

    def __init__(self, identity: Identity, relay: Relay, jobs: Jobs, media: MediaStore) -> None:
        self._identity = identity
        self._relay = relay
        self._jobs = jobs
        self._media = media

    async def DiarizeFile(  # noqa: N802
        self, request_iterator: AsyncIterator[node_pb2.DiarizeFileRequest], context: Context
    ) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        """Relay a recording to a node."""
        principal = await self._principal(context)
        async for answer in self._relay.diarize_file(principal, request_iterator):
            yield answer

    async def UploadMedia(  # noqa: N802
        self, request_iterator: AsyncIterator[jobs_pb2.UploadMediaRequest], context: Context
    ) -> jobs_pb2.UploadMediaResponse:
        """Put a recording in the media store."""
        principal = await self._principal(context)
        messages = arriving(request_iterator)
        first = await anext(messages, None)
        if first is None or first.WhichOneof("message") != "key":
            raise InvalidRequest("the first message is `key`; the recording's chunks follow")
        kept = await self._media.put(principal, first.key, _data(messages))
        return wire.uploaded(kept)

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Ask for a job."""
        principal = await self._principal(context)
        job = await self._jobs.create(principal, wire.job_spec(request))
        return wire.job(await self._jobs.leaving(principal, job.job_id))

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """A job, with what it gave."""
        principal = await self._principal(context)
        return wire.job(await self._jobs.leaving(principal, request.job_id))

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:  # noqa: N802
        """The tenant's jobs, newest first."""
        principal = await self._principal(context)
        page = await self._jobs.list(principal, **wire.listing(request))
        return jobs_pb2.ListJobsResponse(
            jobs=[wire.bare_job(job) for job in page.jobs], next_page_token=page.next_cursor or ""
        )

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """End a job."""
        principal = await self._principal(context)
        job = await self._jobs.cancel(principal, request.job_id)
        return wire.job(await self._jobs.leaving(principal, job.job_id))

    async def WatchJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> AsyncIterator[jobs_pb2.Job]:  # noqa: N802
        """A job whenever it changes."""
        principal = await self._principal(context)
        async for leaving in self._jobs.watch_leaving(principal, request.job_id):
            yield wire.job(leaving)

    async def ReadJobResult(  # noqa: N802
        self, request: jobs_pb2.GetJobRequest, context: Context
    ) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        """What a job gave, in pieces: whom each of them names is looked at anew before it leaves."""
        principal = await self._principal(context)
        async for piece in self._jobs.read_result(principal, request.job_id):
            yield piece

    async def _principal(self, context: Context) -> Principal:
        return await self._identity.principal(bearer(context), JOBS_WRITE)


async def _data(messages: AsyncIterator[jobs_pb2.UploadMediaRequest]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("message") != "data":
            raise InvalidRequest("`key` comes once, first")
        data = message.data
        if len(data) > CHUNK_BYTES_MAX:
            raise InvalidRequest("a chunk is at most 1 MiB: send more of them")
        yield data
