"""Who called a moment ago: placing streams asks the database once a second for a key, not once a stream.

What always holds: a key that is revoked, or expires, places no stream a second later.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from controlplane.identity import Identity
from controlplane.policy import Principal
from runtime.clock import Clock
from runtime.errors import SpeakerdError

KEPT_S = 1.0
REFRESH_S = 0.4
KEPT_MAX = 10_000


class RecentCallers:
    """Principals by the digest of their token, so that no key lies about in memory."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        # When it was asked for, and who it was.
        self._kept: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"RecentCallers({len(self._kept)})"

    async def principal(self, token: str | None, scope: str) -> Principal:
        """The caller of a token. Raises Unauthenticated, or Denied without the scope."""
        if token is None:
            return await self._identity.principal(token, scope)
        digest = hashlib.sha256(token.encode()).digest()
        kept = self._kept.get(digest)
        age_s = float("inf") if kept is None else self._clock.lease_now_s() - kept[0]
        if kept is None or age_s >= KEPT_S:
            return await self._ask(digest, token, scope)
        if age_s >= REFRESH_S and digest not in self._asking:
            # Asked again before it is too old, so that nobody waits for it.
            asking = self._asking[digest] = asyncio.create_task(self._refresh(digest, token, scope), name="caller.ask")
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        kept[1].require(scope)
        return kept[1]

    async def _refresh(self, digest: bytes, token: str, scope: str) -> None:
        try:
            await self._ask(digest, token, scope)
        except SpeakerdError:
            self._kept.pop(digest, None)  # whoever calls next asks, and is told why

    async def _ask(self, digest: bytes, token: str, scope: str) -> Principal:
        asked_s = self._clock.lease_now_s()
        principal = await self._identity.principal(token, scope)
        self._kept.pop(digest, None)
        self._kept[digest] = (asked_s, principal)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return principal
