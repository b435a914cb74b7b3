"""Jobs as their callers see them: made, read, listed, watched, canceled.

In: requests of callers. Out: jobs. What always holds: a job that was answered is durable, and ends once; it is seen
by its tenant alone; a result names nobody who may not be named to this caller at this moment; a repeated request
gives the first job.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import job_rows
from controlplane.accounts import require_open
from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import job_results, jobs, media, voices
from controlplane.fleet import Fleet
from controlplane.guarded_http import NotAllowed
from controlplane.holdings import LIVE_STATES
from controlplane.job_codec import encode_spec, request_digest
from controlplane.job_leaving import JobLeaving, Leaving
from controlplane.job_news import JobNews
from controlplane.job_queue import JobQueue
from controlplane.job_reading import as_cursor, job_of, read_cursor, spec_of
from controlplane.job_rows import EndedJob, EndHook, Waiting
from controlplane.job_spec import JobKind, JobSpec, JobState, MediaKey, MediaUrl, check, place_of
from controlplane.job_view import Job, JobPage
from controlplane.media_store import KEPT, NO_SUCH_MEDIA, MediaStore
from controlplane.policy import Principal
from controlplane.pulse import wait_s
from controlplane.relay_names import strip_result
from controlplane.result_pieces import confidence_pieces, result_pieces
from controlplane.tenant_keys import TenantKeys
from controlplane.tenant_seals import JOBS, TenantSeals, find_seals, make_seals
from controlplane.voice_lookup import NO_SUCH_VOICE, usable_by
from controlplane.voiceprint_blobs import open_print
from runtime.clock import Clock
from runtime.errors import Conflict, InvalidRequest, NotFound, Overloaded
from runtime.logs import get_logger
from speakerd.v1 import node_pb2

LIVE_MAX = 10_000
"""Jobs of a tenant that have not ended."""
PAGE_MAX = 100
PAGE_DEFAULT = 10
LOOK_S = 2.0
"""How often a watcher looks without having heard of anything."""
RESULT_S = 24 * 3600.0
NO_SUCH_JOB = "no such job"
OTHER_MODEL = (
    "{which}: made by a model that no node here runs now, so that it matches nobody until one does: make new "
    "voiceprints"
)


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Settings of jobs. Times in seconds."""

    result_s: float = RESULT_S


class Jobs:
    """The use cases."""

    def __init__(
        self,
        *,
        database: Database,
        tenant_keys: TenantKeys,
        media: MediaStore,
        queue: JobQueue,
        news: JobNews,
        fleet: Fleet,
        leaving: JobLeaving,
        check_url: Callable[[str], Awaitable[None]],
        clock: Clock,
        limits: JobLimits = JobLimits(),
    ) -> None:
        """check_url: raises NotAllowed for urls that will not be called."""
        self._database = database
        self._tenant_keys = tenant_keys
        self._media = media
        self._queue = queue
        self._news = news
        self._fleet = fleet
        self._leaving = leaving
        self._check_url = check_url
        self._clock = clock
        self._limits = limits
        self.on_end: list[EndHook] = []
        # Told of ends that are written down, other than by a worker.
        self.count_ended: Callable[[JobKind, JobState], None] = lambda _kind, _state: None

    def __repr__(self) -> str:
        return f"Jobs({self._queue!r})"

    async def create(self, principal: Principal, spec: JobSpec) -> Job:
        """Ask for a job. Raises InvalidRequest, NotFound for voices, Conflict, Overloaded, Unavailable."""
        check(spec)
        if isinstance(spec.source, MediaUrl):
            await self._check_url(spec.source.url)
        if spec.webhook is not None:
            try:
                await self._check_url(spec.webhook.url)
            except NotAllowed as error:
                raise NotAllowed(f"webhook: {str(error).removeprefix('url: ')}") from None
        media_id = None
        if isinstance(spec.source, MediaKey):
            try:
                media_id = await self._media.find(principal, spec.source.key)
            except NotFound:
                media_id = ""
        job_id, now_s, digest = str(uuid.uuid4()), self._clock.wall_s(), request_digest(spec)
        models = {lease.model for lease in await self._fleet.serving()}
        async with self._database.write() as connection:
            # Who writes takes the head first; it also orders two requests under one idempotency key.
            await locked_head(connection)
            await require_open(connection, principal)
            seals = await make_seals(connection, self._tenant_keys, principal.tenant_id)
            index = _request_index(seals, principal, spec.idempotency_key)
            known = await _answered(connection, principal, index, digest)
            if known is not None:
                job_id = known
            else:
                await self._require_usable(connection, principal, {*spec.matching.speakers, *spec.voice_ids})
                await _require_media(connection, media_id)
                await _require_few(connection, principal.tenant_id)
                await connection.execute(
                    insert(jobs).values(
                        job_id=job_id,
                        tenant_id=principal.tenant_id,
                        user_id=principal.user_id,
                        key_id=principal.key_id,
                        kind=spec.kind.value,
                        state=JobState.CREATED.value,
                        priority=int(place_of(spec)),
                        spec_ciphertext=seals.seal(JOBS, encode_spec(spec), job_id),
                        media_id=media_id,
                        idempotency_index=index,
                        request_digest=digest,
                        warning=_warning(seals, spec, models),
                        created_at_s=now_s,
                        updated_at_s=now_s,
                    )
                )
        # Looked at before a worker may have it: a new job is answered as one that waits.
        job = await self.get(principal, job_id)
        if known is None:
            get_logger().info("job.created", job_id=job_id, tenant_id=principal.tenant_id, kind=spec.kind.value)
            await self._queue.enqueue([Waiting(job_id, principal.tenant_id, int(place_of(spec)))])
            await self._tell("new")
        return job

    async def get(self, principal: Principal, job_id: str) -> Job:
        """A job, with what it gave as it may leave now. Raises NotFound."""
        return (await self.leaving(principal, job_id)).job

    async def leaving(self, principal: Principal, job_id: str) -> Leaving:
        """A job and its result as they may leave now, also as the contract has it. Raises NotFound."""
        async with self._database.read() as connection:
            row, result, seals = await self._row(connection, principal.tenant_id, job_id)
        spec = spec_of(row, seals)
        job = job_of(row, spec)
        if result is None or spec is None or seals is None:
            return Leaving(job)
        return await self._leaving.leave(principal, job, spec, seals, result)

    async def as_creator(self, job_id: str) -> Job | None:
        """A job as whoever asked for it may see it now; None: there is no such job any more."""
        async with self._database.read() as connection:
            row = (await connection.execute(select(jobs).where(jobs.c.job_id == job_id))).one_or_none()
        if row is None:
            return None
        try:
            return await self.get(Principal(row.tenant_id, row.key_id, frozenset(), row.user_id), job_id)
        except NotFound:
            return None

    async def list(
        self,
        principal: Principal,
        *,
        limit: int = PAGE_DEFAULT,
        cursor: str | None = None,
        state: JobState | None = None,
    ) -> JobPage:
        """A page of the tenant's jobs, newest first. Raises InvalidRequest."""
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidRequest(f"limit: 1 to {PAGE_MAX}")
        query = select(jobs).where(jobs.c.tenant_id == principal.tenant_id)
        if state is not None:
            query = query.where(jobs.c.state == state.value)
        if cursor:
            at_s, job_id = read_cursor(cursor)
            query = query.where(
                or_(jobs.c.created_at_s < at_s, and_(jobs.c.created_at_s == at_s, jobs.c.job_id < job_id))
            )
        query = query.order_by(jobs.c.created_at_s.desc(), jobs.c.job_id.desc()).limit(limit + 1)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        found = tuple(job_of(row, None) for row in rows[:limit])
        last = rows[limit - 1] if len(rows) > limit else None
        return JobPage(found, None if last is None else as_cursor(last.created_at_s, last.job_id))

    async def cancel(self, principal: Principal, job_id: str) -> Job:
        """End a job that has not ended; one that has stays as it is. Raises NotFound."""
        now_s = self._clock.wall_s()
        async with self._database.write() as connection:
            row, _, seals = await self._row(connection, principal.tenant_id, job_id)
            is_canceled = await job_rows.end_waiting(
                connection,
                job_id,
                JobState.CANCELED,
                error=None,
                now_s=now_s,
                expires_at_s=now_s + self._limits.result_s,
            )
            if is_canceled:
                await self._ended(connection, row, spec_of(row, seals), JobState.CANCELED, now_s)
        if is_canceled:
            self.count_ended(JobKind(row.kind), JobState.CANCELED)
            get_logger().info("job.ended", job_id=job_id, state="canceled")
            await self._tell(f"canceled {job_id}")
        return await self.get(principal, job_id)

    async def watch(self, principal: Principal, job_id: str) -> AsyncIterator[Job]:
        """A job now, and again whenever it has changed, to its end. Raises NotFound."""
        async for leaving in self.watch_leaving(principal, job_id):
            yield leaving.job

    async def watch_leaving(self, principal: Principal, job_id: str) -> AsyncIterator[Leaving]:
        """The same, with the result also as the contract has it."""
        said: Job | None = None
        with self._news.of(job_id) as pulse:
            while True:
                changed = pulse.next()
                leaving = await self.leaving(principal, job_id)
                if leaving.job != said:
                    said = leaving.job
                    yield leaving
                if said.state.is_end:
                    return
                await wait_s(changed, LOOK_S)

    async def read_result(self, principal: Principal, job_id: str) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        """What a job gave, in pieces; whom each names is looked at right before it leaves. Raises NotFound."""
        async with self._leaving.guarded() as may_name:
            leaving = await self.leaving(principal, job_id)
            if leaving.result is None:
                raise NotFound("this job has no result, or none any more")
            for confidence in confidence_pieces(leaving.confidence):
                yield node_pb2.DiarizeFileResponse(confidence=confidence)
            for piece in result_pieces(leaving.result):
                strip_result(piece, may_name)
                yield node_pb2.DiarizeFileResponse(result=piece)

    async def ended(self, connection: AsyncConnection, job_id: str, state: JobState, now_s: float) -> None:
        """Tell the hooks, within the transaction in which a job ends, that it did."""
        row = (await connection.execute(select(jobs).where(jobs.c.job_id == job_id))).one()
        seals = await find_seals(connection, self._tenant_keys, row.tenant_id)
        await self._ended(connection, row, spec_of(row, seals), state, now_s)

    async def _ended(
        self, connection: AsyncConnection, row: Row[Any], spec: JobSpec | None, state: JobState, now_s: float
    ) -> None:
        told = EndedJob(row.job_id, row.tenant_id, state, None if spec is None else spec.webhook, now_s)
        for hook in self.on_end:
            await hook(connection, told)

    async def _row(
        self, connection: AsyncConnection, tenant_id: str, job_id: str
    ) -> tuple[Row[Any], bytes | None, TenantSeals | None]:
        query = (
            select(jobs, job_results.c.ciphertext)
            .join(job_results, job_results.c.job_id == jobs.c.job_id, isouter=True)
            .where(jobs.c.job_id == job_id, jobs.c.tenant_id == tenant_id)
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound(NO_SUCH_JOB)
        expired = row.expires_at_s is not None and row.expires_at_s <= self._clock.wall_s()
        seals = await find_seals(connection, self._tenant_keys, tenant_id)
        return row, None if expired or row.ciphertext is None else bytes(row.ciphertext), seals

    @staticmethod
    async def _require_usable(connection: AsyncConnection, principal: Principal, voice_ids: Collection[str]) -> None:
        if not voice_ids:
            return
        query = select(voices.c.voice_id).where(
            usable_by(principal), voices.c.voice_id.in_(voice_ids), voices.c.state.in_(LIVE_STATES)
        )
        found = {row.voice_id for row in await connection.execute(query)}
        if found != set(voice_ids):
            raise NotFound(NO_SUCH_VOICE)

    async def _tell(self, news: str) -> None:
        self._news.hear(news)
        await self._queue.publish(news)


def _request_index(seals: TenantSeals, principal: Principal, key: str) -> bytes | None:
    # Two users of a tenant know nothing of each other's keys.
    return seals.index("request", f"{principal.user_id or ''}\0{key}") if key else None


async def _answered(
    connection: AsyncConnection, principal: Principal, index: bytes | None, digest: bytes
) -> str | None:
    if index is None:
        return None
    query = select(jobs.c.job_id, jobs.c.request_digest).where(
        jobs.c.tenant_id == principal.tenant_id, jobs.c.idempotency_index == index
    )
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    if bytes(row.request_digest) != digest:
        raise Conflict("this idempotency key was used for another request: use a new one")
    return str(row.job_id)


async def _require_media(connection: AsyncConnection, media_id: str | None) -> None:
    if media_id is None:
        return
    query = select(media.c.media_id).where(media.c.media_id == media_id, media.c.state == KEPT)
    if not media_id or (await connection.execute(query)).one_or_none() is None:
        raise InvalidRequest(f"url: {NO_SUCH_MEDIA}")


async def _require_few(connection: AsyncConnection, tenant_id: str) -> None:
    query = select(func.count()).select_from(jobs).where(jobs.c.tenant_id == tenant_id, jobs.c.state.in_(job_rows.LIVE))
    if int((await connection.execute(query)).scalar_one()) >= LIVE_MAX:
        raise Overloaded(f"{LIVE_MAX} jobs are waiting already: wait for some to end, or cancel them", retry_after_s=60)


def _warning(seals: TenantSeals, spec: JobSpec, models: Collection[str]) -> str | None:
    """Opens each voiceprint, so that a wrong one is refused now. Raises InvalidRequest."""
    other = []
    for index, sent in enumerate(spec.voiceprints):
        field = f"voiceprints.{index}.voiceprint"
        voiceprint = open_print(seals, sent.blob, field=field)
        # With no node online nobody knows yet.
        if models and voiceprint.model not in models:
            other.append(field)
    return OTHER_MODEL.format(which=", ".join(other)) if other else None
