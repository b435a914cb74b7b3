"""The client of jobs: recordings that are heard while nobody waits. Errors are SpeakerdError, as everywhere here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

from grpc import aio

from speakerd.channel import TlsTrust, credentials, open_channel
from speakerd.errors import SpeakerdError, error_from_status
from speakerd.late_status import keep_status
from speakerd.uploads import Clip, answer, opened
from speakerd.v1 import jobs_pb2, jobs_pb2_grpc, node_pb2

CALL_BOUND_S = 60.0
LIST_PAGE = 100
ENDS = (jobs_pb2.Job.STATE_SUCCEEDED, jobs_pb2.Job.STATE_FAILED, jobs_pb2.Job.STATE_CANCELED)


class JobsClient:
    """A control plane's jobs, with an API key that has the scope jobs:write. One object is one connection."""

    def __init__(self, address: str, api_key: str | None, *, tls: TlsTrust | None = None) -> None:
        self._peer = address
        self._metadata = credentials(api_key)
        self._channel = open_channel(address, tls)
        self._jobs = jobs_pb2_grpc.JobsStub(self._channel)

    def __repr__(self) -> str:
        return f"JobsClient({self._peer!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def upload(self, key: str, recording: Clip) -> jobs_pb2.UploadMediaResponse:
        """Put a recording in the media store, for 24 h."""
        async with opened(recording) as file:

            async def requests() -> AsyncIterator[jobs_pb2.UploadMediaRequest]:
                yield jobs_pb2.UploadMediaRequest(key=key)
                async for piece in file.pieces():
                    yield jobs_pb2.UploadMediaRequest(data=piece)

            call: Any = keep_status(self._jobs.UploadMedia(requests(), metadata=self._metadata))
            try:
                kept: jobs_pb2.UploadMediaResponse = await answer(call, peer=self._peer)
            except SpeakerdError:
                if file.failure is not None:
                    raise file.failure from None
                raise
            return kept

    async def create(self, request: jobs_pb2.CreateJobRequest) -> jobs_pb2.Job:
        """Ask for a job."""
        call = self._jobs.CreateJob(request, metadata=self._metadata, timeout=CALL_BOUND_S)
        return await answer(call, peer=self._peer)

    async def job(self, job_id: str) -> jobs_pb2.Job:
        """A job; its result with it, unless that is too long for one message (`result_is_long`): see `result`."""
        request = jobs_pb2.GetJobRequest(job_id=job_id)
        return await answer(self._jobs.GetJob(request, metadata=self._metadata, timeout=CALL_BOUND_S), peer=self._peer)

    async def result(self, job_id: str) -> node_pb2.FileResult:
        """What a job gave, however long it is."""
        whole = node_pb2.FileResult()
        call = self._jobs.ReadJobResult(jobs_pb2.GetJobRequest(job_id=job_id), metadata=self._metadata)
        async for piece in self._told(call):
            if piece.HasField("result"):
                whole.MergeFrom(piece.result)
        return whole

    async def jobs(
        self, *, state: jobs_pb2.Job.State.ValueType = jobs_pb2.Job.STATE_UNSPECIFIED, limit: int = LIST_PAGE
    ) -> Sequence[jobs_pb2.Job]:
        """The tenant's jobs, newest first, without their results."""
        found: list[jobs_pb2.Job] = []
        token = ""
        while len(found) < limit:
            request = jobs_pb2.ListJobsRequest(
                page_size=min(LIST_PAGE, limit - len(found)), page_token=token, state=state
            )
            page = await answer(
                self._jobs.ListJobs(request, metadata=self._metadata, timeout=CALL_BOUND_S), peer=self._peer
            )
            found += page.jobs
            token = page.next_page_token
            if not token:
                break
        return found

    async def cancel(self, job_id: str) -> jobs_pb2.Job:
        """End a job; one that has ended stays as it is."""
        request = jobs_pb2.CancelJobRequest(job_id=job_id)
        return await answer(
            self._jobs.CancelJob(request, metadata=self._metadata, timeout=CALL_BOUND_S), peer=self._peer
        )

    async def watch(self, job_id: str) -> AsyncIterator[jobs_pb2.Job]:
        """A job now, and whenever it has changed, to its end."""
        call = self._jobs.WatchJob(jobs_pb2.GetJobRequest(job_id=job_id), metadata=self._metadata)
        async for job in self._told(call):
            yield job

    async def _told(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for message in call:
                yield message
        except aio.AioRpcError as error:
            raise error_from_status(error, peer=self._peer) from None
        finally:
            call.cancel()
