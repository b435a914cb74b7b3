"""speakerd.v1.Jobs on the wire. Recordings are diarized while the caller waits; jobs that outlive a call come later."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from controlplane.identity import Identity
from controlplane.relay import Relay
from controlplane.scopes import JOBS_WRITE
from runtime.errors import Unimplemented
from runtime.grpc_server import bearer
from speakerd.v1 import jobs_pb2, jobs_pb2_grpc, node_pb2

NO_JOBS = "jobs are not kept yet: use Jobs.DiarizeFile, which answers while you wait"

Context = aio.ServicerContext[Any, Any]


class JobsServicer(jobs_pb2_grpc.JobsServicer):
    """The wire side of recordings."""

    def __init__(self, identity: Identity, relay: Relay) -> None:
        self._identity = identity
        self._relay = relay

    async def DiarizeFile(  # noqa: N802
        self, request_iterator: AsyncIterator[node_pb2.DiarizeFileRequest], context: Context
    ) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        """Relay a recording to a node."""
        principal = await self._identity.principal(bearer(context), JOBS_WRITE)
        async for answer in self._relay.diarize_file(principal, request_iterator):
            yield answer

    async def UploadMedia(  # noqa: N802
        self, request_iterator: AsyncIterator[jobs_pb2.UploadMediaRequest], context: Context
    ) -> jobs_pb2.UploadMediaResponse:
        """Not yet."""
        await self._identity.principal(bearer(context), JOBS_WRITE)
        raise Unimplemented(NO_JOBS)

    async def CreateJob(self, request: jobs_pb2.CreateJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Not yet."""
        await self._identity.principal(bearer(context), JOBS_WRITE)
        raise Unimplemented(NO_JOBS)

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Not yet."""
        await self._identity.principal(bearer(context), JOBS_WRITE)
        raise Unimplemented(NO_JOBS)

    async def ListJobs(self, request: jobs_pb2.ListJobsRequest, context: Context) -> jobs_pb2.ListJobsResponse:  # noqa: N802
        """Not yet."""
        await self._identity.principal(bearer(context), JOBS_WRITE)
        raise Unimplemented(NO_JOBS)

    async def CancelJob(self, request: jobs_pb2.CancelJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Not yet."""
        await self._identity.principal(bearer(context), JOBS_WRITE)
        raise Unimplemented(NO_JOBS)

    async def WatchJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> AsyncIterator[jobs_pb2.Job]:  # noqa: N802
        """Not yet."""
        await self._identity.principal(bearer(context), JOBS_WRITE)
        for job in await self._refused():
            yield job

    async def _refused(self) -> list[jobs_pb2.Job]:
        raise Unimplemented(NO_JOBS)
