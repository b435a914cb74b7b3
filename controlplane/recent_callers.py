"""Who called a moment ago: placing streams asks the database once a second for a key, not once a stream.

What always holds: a key that is revoked, or expires, places no stream a second later.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from controlplane.identity import Identity
from controlplane.policy import Principal
from runtime.clock import Clock

KEPT_S = 1.0
KEPT_MAX = 10_000


class RecentCallers:
    """Principals by the digest of their token, so that no key lies about in memory."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def __repr__(self) -> str:
        return f"RecentCallers({len(self._kept)})"

    async def principal(self, token: str | None, scope: str) -> Principal:
        """The caller of a token. Raises Unauthenticated, or Denied without the scope."""
        if token is None:
            return await self._identity.principal(token, scope)
        digest = hashlib.sha256(token.encode()).digest()
        now_s = self._clock.lease_now_s()
        until_s, principal = self._kept.get(digest, (0.0, None))
        if principal is None or now_s >= until_s:
            principal = await self._identity.principal(token, scope)
            self._kept.pop(digest, None)
            self._kept[digest] = (now_s + KEPT_S, principal)
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        principal.require(scope)
        return principal
