"""Who may call a node: holders of the fleet's key, streams with a ticket, and anybody on a standalone node.

In: credentials as they came. Out: nothing, or a tenant; Unauthenticated otherwise. What always holds: keys are compared
in constant time, a ticket is good once, and the memory of used tickets is bounded by their own expiry.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from runtime.clock import Clock
from runtime.errors import Overloaded, Unauthenticated
from runtime.tickets import Ticket, verify_ticket

USED_TICKETS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """Whose stream it is. stream_id is empty when the caller may choose it."""

    tenant_id: str
    stream_id: str


class Access:
    """fleet_key: None on a standalone node, which trusts its address."""

    def __init__(self, *, node_id: str, fleet_key: str | None, clock: Clock) -> None:
        self._node_id = node_id
        self._fleet_key = fleet_key
        self._clock = clock
        self._ticket_keys: tuple[bytes, ...] = ()
        self._used: dict[str, int] = {}  # ticket id → when it expires

    def __repr__(self) -> str:
        return f"Access(open={self._fleet_key is None}, {len(self._ticket_keys)} ticket keys, {len(self._used)} used)"

    def trust_tickets_of(self, public_keys: tuple[bytes, ...]) -> None:
        """The keys whose tickets are good from now on."""
        self._ticket_keys = public_keys

    def require_fleet(self, token: str | None) -> None:
        """Raises Unauthenticated unless the caller holds the fleet's key, or the node is standalone."""
        if self._fleet_key is not None and not hmac.compare_digest((token or "").encode(), self._fleet_key.encode()):
            raise Unauthenticated("this call is for the control plane: send `authorization: Bearer <fleet key>`")

    def admit_stream(self, token: str | None, ticket: str, tenant_id: str) -> StreamIdentity:
        """Whose stream this is: the ticket's, or the caller's word where the caller is trusted. Uses up the ticket."""
        if not ticket:
            if self._fleet_key is not None and token is None:
                raise Unauthenticated("no stream ticket: call Streams.PlaceStream and send its ticket in StreamOpen")
            self.require_fleet(token)
            return StreamIdentity(tenant_id or "default", "")
        found = verify_ticket(ticket, self._ticket_keys, node_id=self._node_id, now_s=self._clock.wall_s())
        self._use(found)
        return StreamIdentity(found.tenant_id, found.stream_id)

    def _use(self, ticket: Ticket) -> None:
        if ticket.ticket_id in self._used:
            raise Unauthenticated("the stream ticket has been used: call PlaceStream again")
        if len(self._used) >= USED_TICKETS_MAX:
            now_s = self._clock.wall_s()
            self._used = {ticket_id: until for ticket_id, until in self._used.items() if until > now_s}
        if len(self._used) >= USED_TICKETS_MAX:
            raise Overloaded("too many streams were opened in a short time: try again", retry_after_s=5.0)
        self._used[ticket.ticket_id] = ticket.expires_at_s
