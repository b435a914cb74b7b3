"""Keeps a lease: asks for it, prolongs it, reads the log when told to, and lets go of everything when it lapses.

Nodes and relays are members alike: what they hold under the lease (`Holder`) and how they ask (`Link`) is theirs.
In: answers, and time. Out: calls on the lease and the holder. What always holds: an answer counts only for the
incarnation that asked; everything is wiped before a new incarnation is asked for; waits between attempts are bounded,
and nothing but the end of the process ends the attempts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from runtime.clock import Clock
from runtime.errors import SpeakerdError, Stale
from runtime.lease import HolderState, Lease, Next, Renewal
from runtime.lifecycle import Tasks
from runtime.logs import get_logger

RENEW_S = 2.0
"""Until the control plane says otherwise, and never more rarely."""
RETRY_S = 0.5
RETRY_MAX_S = 4.0
WATCH_S = 0.25
"""How often the lease is looked at. A timer would stop while the machine sleeps; the lease's clock does not."""
LEAVE_BOUND_S = 1.5


@dataclass(frozen=True, slots=True)
class Report:
    """What a holder says of itself as it renews."""

    incarnation: int
    cursor: int
    num_voices: int
    voices_digest: bytes
    state: HolderState
    epoch: str = ""


class Answer(Protocol):
    """What a renewal was answered with."""

    @property
    def renewal(self) -> Renewal:
        """The lease."""
        ...

    @property
    def renew_s(self) -> float:
        """When to renew next; 0: not said."""
        ...


A = TypeVar("A", bound=Answer)
A_co = TypeVar("A_co", bound=Answer, covariant=True)
A_contra = TypeVar("A_contra", bound=Answer, contravariant=True)


class Link(Protocol[A_co]):
    """The way to whoever gives leases."""

    async def renew(self, report: Report) -> A_co:
        """Take or prolong the lease. Raises Stale when the incarnation is lost, another SpeakerdError otherwise."""
        ...


class Holder(Protocol[A_contra]):
    """What a lease is held for."""

    def report(self) -> Report:
        """What to say of itself now."""
        ...

    async def sync(self, todo: Next) -> None:
        """Read the log to its head, from nothing if need be. Raises Stale, Unavailable."""
        ...

    async def wipe(self, reason: str) -> None:
        """Forget everything; the lease is fenced already, so that nothing is named from before this call on."""
        ...

    def answered(self, answer: A_contra) -> None:
        """An answer counted."""
        ...

    async def looked(self, told: HolderState | None) -> None:
        """Something may have changed. told: what was just reported, if anything was."""
        ...


class LeaseKeeper(Generic[A]):
    """Keeps one lease. name: what its tasks are called after."""

    def __init__(self, *, name: str, link: Link[A], lease: Lease, holder: Holder[A], clock: Clock) -> None:
        self._name = name
        self._link = link
        self._lease = lease
        self._holder = holder
        self._clock = clock
        self._todo = Next.NOTHING
        self._sync_wanted = asyncio.Event()
        self._renew_now = asyncio.Event()
        self._letting_go = asyncio.Lock()
        self._running: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"LeaseKeeper({self._name}, {self._lease!r}, todo={self._todo.name})"

    def start(self, tasks: Tasks) -> None:
        """Begin."""
        self._running = [
            tasks.spawn(f"{self._name}-renew", self._renew()),
            tasks.spawn(f"{self._name}-sync", self._sync()),
            tasks.spawn(f"{self._name}-watch", self._watch()),
        ]

    async def leave(self) -> None:
        """Stop, forget everything, and say so, so that nobody has to wait for this lease to run out."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        incarnation, epoch = self._lease.incarnation, self._lease.epoch
        try:
            async with asyncio.timeout(LEAVE_BOUND_S):
                await self._let_go("drain")
                if incarnation:
                    held = self._holder.report()
                    await self._link.renew(
                        Report(incarnation, 0, held.num_voices, held.voices_digest, HolderState.FENCED, epoch)
                    )
        except (SpeakerdError, TimeoutError):
            get_logger().info("fleet.left_unheard")  # the lease runs out by itself

    def want(self, todo: Next) -> None:
        """The log has to be read."""
        if todo is not Next.NOTHING:
            # A wipe that is still to be done is not forgotten over a later wish.
            self._todo = Next.WIPE_AND_SYNC if Next.WIPE_AND_SYNC in (todo, self._todo) else todo
            self._sync_wanted.set()

    async def _renew(self) -> None:
        retry_s = RETRY_S
        while True:
            await self._let_go_if_lapsed()
            asked, report = self._lease.ask(), self._holder.report()
            self._renew_now.clear()
            wait_s, told = RENEW_S, None
            try:
                answer = await self._link.renew(report)
            except Stale:
                if self._lease.refused(asked):
                    await self._let_go("lease_lost")
                wait_s = RETRY_S
            except SpeakerdError as error:
                get_logger().warning("fleet.renew_failed", cause=error.cause.value, reason=str(error))
                wait_s, retry_s = retry_s, min(2 * retry_s, RETRY_MAX_S)
            else:
                retry_s, told = RETRY_S, report.state
                todo = self._lease.answered(asked, answer.renewal)
                if todo is not None:
                    self._holder.answered(answer)
                    self.want(todo)
                    wait_s = min(answer.renew_s or RENEW_S, RENEW_S)
            await self._holder.looked(told)
            await _first_of(self._renew_now, wait_s)

    async def _sync(self) -> None:
        while True:
            await self._sync_wanted.wait()
            self._sync_wanted.clear()
            todo, self._todo = self._todo, Next.NOTHING
            try:
                await self._holder.sync(todo)
            except Stale:
                self._renew_now.set()  # the renewal learns it too, and lets go
            except SpeakerdError as error:
                get_logger().warning("fleet.sync_failed", cause=error.cause.value, reason=str(error))
                await asyncio.sleep(RETRY_S)
                self.want(todo)
            else:
                # Whoever gives leases learns at once how far this holder is, and that it serves.
                self._renew_now.set()
            await self._holder.looked(None)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self._let_go_if_lapsed()
            await self._holder.looked(None)

    async def _let_go_if_lapsed(self) -> None:
        if self._lease.has_lapsed():
            get_logger().warning("lease.lapsed", incarnation=self._lease.incarnation)
            await self._let_go("lease_lost")
        else:
            async with self._letting_go:
                return  # a wipe that is being done is waited for

    async def _let_go(self, reason: str) -> None:
        # Fenced before anything is awaited: from here on nothing is named.
        if self._lease.incarnation:
            self._lease.fence()
        self._todo = Next.NOTHING
        async with self._letting_go:
            await self._holder.wipe(reason)
        self._renew_now.set()


async def _first_of(event: asyncio.Event, bound_s: float) -> None:
    """Wait for an event, at most so long."""
    try:
        async with asyncio.timeout(bound_s):
            await event.wait()
    except TimeoutError:
        return
