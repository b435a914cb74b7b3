"""Jobs that wait, in Redis Streams: whose turn it is. A hint for all; SQL says who may work on what.

In: jobs that wait. Out: the next one, fair between tenants. What always holds: an entry that is delivered twice, or
lost, or about a job that has ended, costs a look at SQL and nothing else; a Redis that is away raises nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from redis.exceptions import RedisError

from controlplane import registry_schema as schema
from controlplane.job_rows import Waiting
from controlplane.job_spec import Priority
from controlplane.metrics import Metrics
from controlplane.redis_client import Patience, Script, close_redis, open_redis
from controlplane.registry_schema import JOB_NEWS, PREFIX
from runtime.clock import Clock

TIMEOUT_S = 1.0
REST_S = 1.0
"""After a failed call Redis is left alone for so long."""
DELIVERY_S = 30.0
"""A worker that took an entry and has not claimed the job after so long is taken for dead."""
ENQUEUED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Taken:
    """An entry that was delivered to this worker."""

    stream: str
    entry: str
    job_id: str


class JobQueue:
    """The streams."""

    def __init__(self, url: str, worker_id: str, clock: Clock, metrics: Metrics) -> None:
        self._redis = open_redis(url, timeout_s=TIMEOUT_S)
        self._patience = Patience(TIMEOUT_S)
        self._worker_id = worker_id
        self._clock = clock
        self._metrics = metrics
        self._enqueue = Script(self._redis, schema.JOB_ENQUEUE)
        self._take = Script(self._redis, schema.JOB_TAKE)
        self._done = Script(self._redis, schema.JOB_DONE)
        self._rest_until_s = float("-inf")

    def __repr__(self) -> str:
        return f"JobQueue(up={self.is_up})"

    @property
    def is_up(self) -> bool:
        """Whether Redis is asked at the moment."""
        return self._clock.monotonic_s() >= self._rest_until_s

    async def enqueue(self, waiting: Sequence[Waiting]) -> int:
        """Queue those that are not queued yet; how many they were."""
        added = 0
        for at in range(0, len(waiting), ENQUEUED_AT_ONCE):
            page = waiting[at : at + ENQUEUED_AT_ONCE]
            arguments: list[Any] = [PREFIX]
            arguments += [part for job in page for part in (job.job_id, job.tenant_id, job.priority)]
            added += int(await self._ask(partial(self._enqueue, args=arguments)) or 0)
        return added

    async def take(
        self, running: Mapping[str, int], full: Collection[str], lowest: Priority = Priority.LOW
    ) -> Taken | None:
        """The next entry by turns, of this priority at least.

        running: jobs that run, by tenant. full: tenants that may have no more.
        """
        counts = {**running, **dict.fromkeys(full, -1)}
        arguments: list[Any] = [PREFIX, self._worker_id, round(DELIVERY_S * 1000), int(lowest), int(max(Priority))]
        arguments += [part for pair in counts.items() for part in pair]
        found = await self._ask(lambda: self._take(args=arguments))
        if not found:
            return None
        stream, entry, job_id = (part.decode() for part in cast(list[bytes], found))
        return Taken(stream, entry, job_id)

    async def done(self, taken: Taken) -> None:
        """The job was claimed, or is not to be had: its entry goes."""
        await self._ask(lambda: self._done(args=[PREFIX, taken.stream, taken.entry, taken.job_id]))

    async def publish(self, news: str) -> None:
        """Tell all control planes."""
        await self._ask(lambda: self._redis.publish(JOB_NEWS, news))

    async def close(self) -> None:
        """Let go of Redis."""
        await self._patience.close()
        await close_redis(self._redis)

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if not self.is_up:
            return None
        try:
            return await self._patience.answer(call)
        except (RedisError, OSError, asyncio.TimeoutError):  # noqa: UP041 - redis-py raises either
            self._metrics.redis_errors.inc()
            self._rest_until_s = self._clock.monotonic_s() + REST_S
            return None


def next_of(
    waiting: Sequence[Waiting],
    running: Mapping[str, int],
    full: Collection[str],
    served: Mapping[str, float],
    lowest: Priority = Priority.LOW,
) -> Waiting | None:
    """The next job by turns, from SQL alone: while Redis is away. served: when each tenant had its last turn here."""
    firsts: dict[str, Waiting] = {}
    for job in waiting:
        if job.priority <= lowest:
            firsts.setdefault(job.tenant_id, job)
    return min(
        (job for tenant_id, job in firsts.items() if tenant_id not in full),
        key=lambda job: (running.get(job.tenant_id, 0), served.get(job.tenant_id, float("-inf"))),
        default=None,
    )
