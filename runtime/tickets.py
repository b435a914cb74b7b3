"""Stream tickets: the control plane signs, nodes verify, clients carry them unread.

A ticket says that one stream of one tenant may open on one node until a moment in time. It is Ed25519 over canonical
JSON, so that nodes hold public keys only and a leaked node cannot mint tickets for its neighbours.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from runtime.errors import Unauthenticated

TICKET_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket says. expires_at_s is Unix time; ticket_id is random and used once; incarnation is the node's.

    audiences: whose voices the stream is matched against; empty: the tenant's.
    """

    tenant_id: str
    stream_id: str
    node_id: str
    expires_at_s: int
    ticket_id: str
    incarnation: int = 0
    audiences: tuple[str, ...] = ()


class Signer(Protocol):
    """An Ed25519 key, or whatever signs as one."""

    def sign(self, data: bytes, /) -> bytes:
        """The signature."""
        ...


def sign_ticket(ticket: Ticket, key: Signer) -> str:
    """The ticket as text: base64url(JSON) "." base64url(signature)."""
    body = json.dumps(asdict(ticket), sort_keys=True, separators=(",", ":")).encode()
    return f"{_encode(body)}.{_encode(key.sign(body))}"


def verify_ticket(text: str, keys: Sequence[bytes], *, node_id: str, now_s: float) -> Ticket:
    """Check a ticket against public keys (32 bytes each), this node and the time.

    Raises Unauthenticated; the text says which check failed, for whoever holds the ticket may know.
    """
    if not text:
        raise Unauthenticated("no stream ticket: call Streams.PlaceStream and send its ticket in StreamOpen")
    parsed = _parse(text)
    if parsed is None:
        raise Unauthenticated("the stream ticket is malformed: send it as PlaceStream gave it")
    ticket, body, signature = parsed
    if not any(_signed_by(key, signature, body) for key in keys):
        raise Unauthenticated("the stream ticket is not signed by this fleet's control plane")
    if ticket.node_id != node_id:
        raise Unauthenticated("the stream ticket is for another node: dial the address that PlaceStream gave with it")
    if now_s >= ticket.expires_at_s:
        raise Unauthenticated(
            "the stream ticket has expired: call PlaceStream again; if it is new, the clocks of this node and of its "
            "control plane are apart: set them"
        )
    return ticket


def _parse(text: str) -> tuple[Ticket, bytes, bytes] | None:
    """Ticket, signed body and signature; None if the text is no ticket at all."""
    if len(text) > TICKET_BYTES_MAX:
        return None
    try:
        body, signature = (_decode(part) for part in text.split("."))
        fields = json.loads(body)
        if not isinstance(fields, dict):
            return None
        audiences = fields.pop("audiences", [])
        ticket = Ticket(**fields, audiences=tuple(audiences))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        return None
    texts = [value for name, value in fields.items() if name not in ("expires_at_s", "incarnation")]
    texts += ticket.audiences
    well_formed = (
        isinstance(audiences, list)
        and type(ticket.expires_at_s) is int
        and type(ticket.incarnation) is int
        and all(isinstance(value, str) for value in texts)
    )
    return (ticket, body, signature) if well_formed else None


def _signed_by(key: bytes, signature: bytes, body: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, body)
    except InvalidSignature:
        return False
    return True


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
