"""Webhooks: who asked for a job is told of its end, at once or a little later, by whichever control plane is free.

In: ends of jobs, from the transactions in which they end. Out: signed POSTs. What always holds: an end that was
committed is told, across restarts, by one control plane at a time; what is told is what the asker may see at that
moment, so that the name of somebody who was erased meanwhile does not leave; one tenant's slow receivers hold up
nobody else's.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import webhook_rows as rows
from controlplane.chores import Chore
from controlplane.database.engine import Database
from controlplane.job_rows import EndedJob
from controlplane.job_view import Job
from controlplane.metrics import Metrics
from controlplane.pulse import Pulse, wait_s
from controlplane.relay_guard import RelayGuard
from controlplane.tenant_keys import TenantKeys
from controlplane.tenant_seals import Foreign, find_seals, make_seals
from controlplane.webhook_post import WebhookPost
from controlplane.webhook_secrets import WebhookSecrets
from runtime.clock import Clock
from runtime.errors import SpeakerdError, Stale
from runtime.logs import get_logger

PURPOSE = "webhook url"
RUNNING_MAX = 32
RUNNING_OF_TENANT_MAX = 4
LOOK_S = 1.0
"""How often what is due is looked for: ends of other control planes' jobs, and what is to be tried again."""
LOOK_MAX = 200
AGAIN_S = 2.0
"""When a delivery that could not be tried is tried."""
KEPT_S = 24 * 3600.0
FORGET_S = 600.0
STOP_S = 15.0

AsCreator = Callable[[str], Awaitable[Job | None]]
"""A job as whoever asked for it may see it now; None: it is gone."""
BodyOf = Callable[[Job, bool], bytes]
"""What is told of a job; whether its status alone. May take a moment: it is called in a thread."""


class Webhooks:
    """Tells. body_of: gives the dialect's way of telling; None while no dialect is spoken here, and nothing told."""

    def __init__(
        self,
        *,
        database: Database,
        tenant_keys: TenantKeys,
        secrets: WebhookSecrets,
        post: WebhookPost,
        as_creator: AsCreator,
        body_of: Callable[[], BodyOf | None],
        guard: RelayGuard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._database = database
        self._tenant_keys = tenant_keys
        self._post = post
        self._as_creator = as_creator
        self._body_of = body_of
        self._guard = guard
        self._clock = clock
        self._metrics = metrics
        self._soon = Pulse()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._running_of: Counter[str] = Counter()
        self.secrets = secrets

    def __repr__(self) -> str:
        return f"Webhooks({len(self._running)} running)"

    async def on_end(self, connection: AsyncConnection, ended: EndedJob) -> None:
        """A job ends, in this transaction: whoever asked for it is to be told."""
        if ended.webhook is None:
            return
        seals = await make_seals(connection, self._tenant_keys, ended.tenant_id)
        await rows.add(
            connection,
            job_id=ended.job_id,
            tenant_id=ended.tenant_id,
            url_ciphertext=seals.seal(PURPOSE, ended.webhook.url.encode(), ended.job_id),
            status_only=ended.webhook.status_only,
            now_lease_s=await self._database.lease_now_s(connection),
            now_s=self._clock.wall_s(),
        )
        self._soon.beat()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            soon = self._soon.next()
            try:
                await self._begin_due()
            except SpeakerdError as error:
                get_logger().warning("webhooks.not_looked", cause=error.cause.value)
            await wait_s(soon, LOOK_S)

    async def close(self) -> None:
        """Let those that are under way end, for a while. What does not is tried again by whoever comes next."""
        running = list(self._running.values())
        if running:
            await asyncio.wait(running, timeout=STOP_S)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def chore(self) -> Chore:
        """Deletes what is past its day."""

        async def forget() -> int:
            async with self._database.write() as connection:
                return await rows.forget(connection, self._clock.wall_s() - KEPT_S)

        return Chore("webhooks", FORGET_S, forget)

    async def _begin_due(self) -> None:
        while self._body_of() is not None and len(self._running) < RUNNING_MAX:
            full = [tenant_id for tenant_id, number in self._running_of.items() if number >= RUNNING_OF_TENANT_MAX]
            async with self._database.read() as connection:
                now_lease_s = await self._database.lease_now_s(connection)
                found = await rows.due(connection, now_lease_s, LOOK_MAX, without=full)
            num_begun = sum(self._begin(one) for one in found)
            # A tenant that has much to be told of fills a look; who comes behind it is found by the next.
            if not num_begun or len(found) < LOOK_MAX:
                return

    def _begin(self, one: rows.Due) -> bool:
        """Begin to tell of a job, if there is room for it."""
        is_full = len(self._running) >= RUNNING_MAX or self._running_of[one.tenant_id] >= RUNNING_OF_TENANT_MAX
        if is_full or one.job_id in self._running:
            return False
        self._running_of[one.tenant_id] += 1
        task = asyncio.create_task(self._attempt(one), name="webhook")
        self._running[one.job_id] = task
        task.add_done_callback(lambda _: self._ended(one))
        return True

    def _ended(self, one: rows.Due) -> None:
        del self._running[one.job_id]
        self._running_of[one.tenant_id] -= 1
        if not self._running_of[one.tenant_id]:
            del self._running_of[one.tenant_id]
        self._soon.beat()

    async def _attempt(self, due: rows.Due) -> None:
        try:
            async with self._database.write() as connection:
                attempt = await rows.claim(connection, due.job_id, await self._database.lease_now_s(connection))
            if attempt is not None:
                await self._tell(attempt)
        except SpeakerdError as error:
            # The database is away: the claim runs out by itself.
            get_logger().warning("webhook.put_off", cause=error.cause.value)
        except Exception as error:  # noqa: BLE001 - one delivery that fails must not keep the others
            get_logger().error("webhook.broke", error_type=type(error).__name__, exc_info=error)

    async def _tell(self, attempt: rows.Attempt) -> None:
        url = await self._url(attempt)
        job = None if url is None else await self._as_creator(attempt.job_id)
        if url is None or job is None:
            self._metrics.webhook_deliveries.labels("gone").inc()
            async with self._database.write() as connection:
                await rows.given_up(connection, attempt, self._clock.wall_s())
            return
        secret = await self.secrets.of(attempt.tenant_id)
        async with self._guard.relaying() as relaying:
            # Read again under the lease: from here on we are told of every eviction before it counts as done.
            evictions = self._guard.evictions
            job = await self._as_creator(attempt.job_id)
            tells_names = job is not None and job.output is not None and not attempt.status_only

            def may_leave() -> bool:
                return not tells_names or (relaying.holds and self._guard.evictions == evictions)

            make_body = self._body_of()
            if job is None or make_body is None or not may_leave():
                await self._put_off(attempt)
                return
            body = await asyncio.to_thread(make_body, job, attempt.status_only)
            try:
                reason = await self._post.post(
                    url, body, secret=secret, number=attempt.number, reason=attempt.reason, may_leave=may_leave
                )
            except Stale:
                await self._put_off(attempt)
                return
        async with self._database.write() as connection:
            now_s = self._clock.wall_s()
            if reason is None:
                await rows.delivered(connection, attempt, now_s)
                result = "delivered"
            else:
                now_lease_s = await self._database.lease_now_s(connection)
                again = await rows.failed(connection, attempt, reason.value, now_lease_s=now_lease_s, now_s=now_s)
                result = reason.value if again else "given_up"
        self._metrics.webhook_deliveries.labels(result).inc()
        get_logger().info("webhook.told", job_id=attempt.job_id, result=result, attempt=attempt.number)

    async def _url(self, attempt: rows.Attempt) -> str | None:
        """Whom to tell; None: the tenant is gone, and its keys with it."""
        async with self._database.read() as connection:
            seals = await find_seals(connection, self._tenant_keys, attempt.tenant_id)
        try:
            return None if seals is None else seals.open(PURPOSE, attempt.url_ciphertext, attempt.job_id).decode()
        except Foreign:
            return None

    async def _put_off(self, attempt: rows.Attempt) -> None:
        async with self._database.write() as connection:
            now_lease_s = await self._database.lease_now_s(connection)
            await rows.postponed(connection, attempt, due_lease_s=now_lease_s + AGAIN_S)
