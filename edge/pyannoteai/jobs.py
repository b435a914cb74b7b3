"""Jobs: submit, look, list, cancel; and beyond pyannoteAI their RTTM, SRT and match report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response

from controlplane.job_spec import JobState
from controlplane.job_view import Job, JobOutput
from controlplane.policy import Principal
from controlplane.scopes import JOBS_WRITE
from edge.dialect import Edge
from edge.failures import FieldError, InvalidFields
from edge.pyannoteai.answers import Created, JobAnswer, JobItem, JobList, MatchReportAnswer, Status
from edge.pyannoteai.outputs import instant, is_large, job_body, names_told, report_body, rttm, srt
from edge.pyannoteai.requests import DiarizeRequest, IdentifyRequest, VoiceprintRequest
from edge.terms import Caller, TheEdge, TurnName, terms
from runtime.errors import Conflict, NotFound, Unavailable

SUBMIT = "pyannoteai.submit"
READ = "pyannoteai.read"
BODY_BYTES_MAX = 4 << 20
"""50 voiceprints of 20,000 characters each, and one too many of them, so that it is told what is wrong."""
WRITTEN_MAX = 3
"""How often a long output is written down again because somebody in it was erased meanwhile."""
LIST_MAX = 100


def install(app: FastAPI) -> None:
    """Add the routes."""
    _install_submitting(app)
    _install_reading(app)
    _install_beyond(app)


def _install_submitting(app: FastAPI) -> None:
    @app.post("/v1/diarize", response_model_exclude_unset=True)
    @terms(JOBS_WRITE, rate=SUBMIT, body_bytes_max=BODY_BYTES_MAX, idempotent=True)
    async def diarize(caller: Caller, edge: TheEdge, turn: TurnName, body: DiarizeRequest) -> Created:
        """Find out who spoke when."""
        return await _submit(edge, caller, turn, body)

    @app.post("/v1/identify", response_model_exclude_unset=True)
    @terms(JOBS_WRITE, rate=SUBMIT, body_bytes_max=BODY_BYTES_MAX, idempotent=True)
    async def identify(caller: Caller, edge: TheEdge, turn: TurnName, body: IdentifyRequest) -> Created:
        """Find out who spoke when, and who of those whose voiceprints are sent, or who are enrolled, that is."""
        return await _submit(edge, caller, turn, body)

    @app.post("/v1/voiceprint", response_model_exclude_unset=True)
    @terms(JOBS_WRITE, rate=SUBMIT, body_bytes_max=BODY_BYTES_MAX, idempotent=True)
    async def voiceprint(caller: Caller, edge: TheEdge, turn: TurnName, body: VoiceprintRequest) -> Created:
        """Make a voiceprint of the one person who speaks in a recording."""
        return await _submit(edge, caller, turn, body)


def _install_reading(app: FastAPI) -> None:
    @app.get("/v1/jobs/{jobId}", response_class=Response, responses={200: {"model": JobAnswer}})
    @terms(JOBS_WRITE, rate=READ)
    async def job(caller: Caller, edge: TheEdge, jobId: str) -> Response:  # noqa: N803
        """A job, with its output once it has one."""
        return await _written(edge, caller, jobId, _json)

    @app.delete("/v1/jobs/{jobId}", response_class=Response, responses={200: {"model": JobAnswer}})
    @terms(JOBS_WRITE, rate=READ)
    async def cancel(caller: Caller, edge: TheEdge, jobId: str) -> Response:  # noqa: N803
        """Cancel a job that has not ended; one that has stays as it ended."""
        await edge.core.jobs.cancel(caller, jobId)
        return await _written(edge, caller, jobId, _json)

    @app.get("/v2/jobs")
    @terms(JOBS_WRITE, rate=READ)
    async def jobs(
        caller: Caller,
        edge: TheEdge,
        limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = 10,
        cursor: Annotated[str | None, Query(max_length=512)] = None,
        status: Annotated[Status | None, Query()] = None,
    ) -> JobList:
        """The jobs, newest first, a page at a time."""
        page = await edge.core.jobs.list(
            caller, limit=limit, cursor=cursor or None, state=JobState(status) if status else None
        )
        items = [
            JobItem(id=one.job_id, status=one.state.value, created_at=instant(one.created_at_s)) for one in page.jobs
        ]
        return JobList(items=items, next_cursor=page.next_cursor)


def _install_beyond(app: FastAPI) -> None:
    @app.get("/v1/jobs/{jobId}/rttm", response_class=Response, responses={200: _text("application/x-rttm")})
    @terms(JOBS_WRITE, rate=READ)
    async def as_rttm(caller: Caller, edge: TheEdge, jobId: str) -> Response:  # noqa: N803
        """The turns as RTTM."""
        return await _written(edge, caller, jobId, _rttm, "application/x-rttm")

    @app.get("/v1/jobs/{jobId}/srt", response_class=Response, responses={200: _text("application/x-subrip")})
    @terms(JOBS_WRITE, rate=READ)
    async def as_srt(caller: Caller, edge: TheEdge, jobId: str) -> Response:  # noqa: N803
        """The turns as subtitles that say who speaks."""
        return await _written(edge, caller, jobId, _srt, "application/x-subrip")

    @app.get("/v1/jobs/{jobId}/report", response_class=Response, responses={200: {"model": MatchReportAnswer}})
    @terms(JOBS_WRITE, rate=READ)
    async def report(caller: Caller, edge: TheEdge, jobId: str) -> Response:  # noqa: N803
        """Why each speaker was matched with somebody, or not."""
        return await _written(edge, caller, jobId, _report)


def _text(media_type: str) -> dict[str, Any]:
    return {"content": {media_type: {"schema": {"type": "string"}}}, "description": "The turns."}


async def _submit(
    edge: Edge, caller: Principal, turn: str, body: DiarizeRequest | IdentifyRequest | VoiceprintRequest
) -> Created:
    try:
        job = await edge.core.jobs.create(caller, body.spec(turn))
    except NotFound as error:
        # Whom one may not see is not there, and so the request names nobody.
        raise InvalidFields(FieldError("matching.speakers", str(error))) from None
    warnings = [text for text in (job.warning, body.warning()) if text]
    said = {"warning": "; ".join(warnings)} if warnings else {}
    return Created(job_id=job.job_id, status=job.state.value, **said)


async def _written(
    edge: Edge, caller: Principal, job_id: str, write: Callable[[Job], bytes], media_type: str = "application/json"
) -> Response:
    """A job as text. What it tells of names holds at the moment of its leaving, however long it took to write."""
    job = await edge.core.jobs.get(caller, job_id)
    for _ in range(WRITTEN_MAX):
        if not is_large(job):
            return Response(write(job), media_type=media_type)
        written = await asyncio.to_thread(write, job)
        now = await edge.core.jobs.get(caller, job_id)
        if names_told(now) == names_told(job) and now.state is job.state:
            return Response(written, media_type=media_type)
        job = now
    raise Unavailable("the job's people are changing; try again", retry_after_s=1.0)


def _json(job: Job) -> bytes:
    return _encoded(job_body(job))


def _report(job: Job) -> bytes:
    return _encoded(report_body(job.job_id, _turns_of(job)))


def _rttm(job: Job) -> bytes:
    return rttm(job.job_id, _turns_of(job)).encode()


def _srt(job: Job) -> bytes:
    return srt(_turns_of(job)).encode()


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _turns_of(job: Job) -> JobOutput:
    if not job.state.is_end:
        raise Conflict("the job has not ended yet", retry_after_s=1.0)
    if job.output is None or job.output.voiceprint is not None:
        raise NotFound("the job has no turns")
    return job.output
