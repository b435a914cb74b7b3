"""Who may call a node: control planes of its fleet, streams with a ticket, and anybody on a standalone node.

In: credentials as they came. Out: nothing, or a tenant; Unauthenticated or Denied otherwise. What always holds: with
TLS the certificate says who is a control plane, without it the fleet's key, compared in constant time; a ticket is good
once, for one incarnation of this node, so that none outlives a restart; the memory of used tickets is bounded by their
own expiry.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any

from grpc import aio

from node.audiences import require_heard_audience
from runtime.clock import Clock
from runtime.errors import Denied, Overloaded, Stale, Unauthenticated
from runtime.grpc_server import bearer
from runtime.lease import Lease
from runtime.tickets import Ticket, verify_ticket
from runtime.tls import CONTROL_PLANE, EDGE, PeerName, Tls

USED_TICKETS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Caller:
    """What a caller shows. peer: by its certificate. is_public: it came to the streams' own port."""

    token: str | None = None
    peer: PeerName | None = None
    is_public: bool = False


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """Whose stream it is. stream_id is empty when the caller may choose it. audiences: empty for the tenant's."""

    tenant_id: str
    stream_id: str
    audiences: tuple[str, ...] = ()


class Access:
    """fleet_key, tls: None for both on a standalone node, which trusts its address.

    lease: whose incarnation tickets are for. streams_apart: whether streams with tickets have a port of their own.
    """

    def __init__(
        self,
        *,
        node_id: str,
        fleet_key: str | None,
        clock: Clock,
        tls: Tls | None = None,
        lease: Lease | None = None,
        streams_apart: bool = False,
    ) -> None:
        self._node_id = node_id
        self._fleet_key = fleet_key
        self._clock = clock
        self._tls = tls
        self._lease = lease
        self._streams_apart = streams_apart
        self._ticket_keys: tuple[bytes, ...] = ()
        self._used: dict[str, int] = {}  # ticket id → when it expires

    def __repr__(self) -> str:
        return f"Access(open={self.is_open}, {len(self._ticket_keys)} ticket keys, {len(self._used)} used)"

    @property
    def is_open(self) -> bool:
        """Whether anybody may call anything."""
        return self._fleet_key is None and self._tls is None

    def caller(self, context: aio.ServicerContext[Any, Any], *, is_public: bool = False) -> Caller:
        """Who calls. Raises Unauthenticated for a certificate that names nobody of our trust domain."""
        peer = None if self._tls is None or is_public else self._tls.peer(context)
        return Caller(bearer(context), peer, is_public)

    def trust_tickets_of(self, public_keys: tuple[bytes, ...]) -> None:
        """The keys whose tickets are good from now on."""
        self._ticket_keys = public_keys

    def require_fleet(self, caller: Caller) -> None:
        """Raises Unauthenticated or Denied unless the caller is a control plane, or the node is standalone."""
        self._require(caller, CONTROL_PLANE)

    def admit_stream(self, caller: Caller, ticket: str, tenant_id: str) -> StreamIdentity:
        """Whose stream this is: the ticket's, or the caller's word where the caller is trusted. Uses up the ticket."""
        if not ticket:
            if not self.is_open and (caller.is_public or (caller.token is None and caller.peer is None)):
                raise Unauthenticated("no stream ticket: call Streams.PlaceStream and send its ticket in StreamOpen")
            self._require(caller, CONTROL_PLANE, EDGE)
            return StreamIdentity(tenant_id or "default", "")
        if self._streams_apart and not caller.is_public:
            raise Unauthenticated("stream tickets are taken at another port: dial the address that PlaceStream gave")
        found = verify_ticket(ticket, self._ticket_keys, node_id=self._node_id, now_s=self._clock.wall_s())
        if self._lease is not None and found.incarnation != self._lease.incarnation:
            raise Stale("the stream ticket is for this node as it was before: call PlaceStream again")
        for audience in found.audiences:
            require_heard_audience(found.tenant_id, audience)
        self._use(found)
        return StreamIdentity(found.tenant_id, found.stream_id, found.audiences)

    def _require(self, caller: Caller, *roles: str) -> None:
        if self.is_open:
            return
        if self._tls is not None:
            if caller.peer is None or caller.peer.role not in roles:
                said = "none was shown" if caller.peer is None else f"{caller.peer.role}/{caller.peer.id}"
                raise Denied(f"this call is for {' or '.join(roles)}; the certificate: {said}")
            return
        assert self._fleet_key is not None
        if not hmac.compare_digest((caller.token or "").encode(), self._fleet_key.encode()):
            raise Unauthenticated("this call is for the control plane: send `authorization: Bearer <fleet key>`")

    def _use(self, ticket: Ticket) -> None:
        if ticket.ticket_id in self._used:
            raise Unauthenticated("the stream ticket has been used: call PlaceStream again")
        if len(self._used) >= USED_TICKETS_MAX:
            now_s = self._clock.wall_s()
            self._used = {ticket_id: until for ticket_id, until in self._used.items() if until > now_s}
        if len(self._used) >= USED_TICKETS_MAX:
            raise Overloaded("too many streams were opened in a short time: try again", retry_after_s=5.0)
        self._used[ticket.ticket_id] = ticket.expires_at_s
