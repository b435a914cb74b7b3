"""What the erasure journal holds, and how a record is written: one line of canonical JSON. No names, no voice ids.

Beside erasures: decisions by which something may be used no more, and which a restored database has to learn again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from runtime.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Erased:
    """An erasure was asked for. subject: keyed hash of tenant and voice; generation and revision: of its eviction."""

    audit_id: str
    tenant_id: str
    subject: str
    generation: int
    revision: int
    epoch: str
    trigger: str
    requested_at_s: float


@dataclass(frozen=True, slots=True)
class Proven:
    """An erasure was proven: nobody holds the voice any more but the residual nodes."""

    audit_id: str
    erased_at_s: float
    residual_node_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the database was. run: of the control plane that wrote it.

    incarnation: the last one that was given out; 0: written before marks told it.
    """

    epoch: str
    run: str
    revision: int
    audit_sequence: int
    audit_hash: str
    at_s: float
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Consent to a voice was taken back. subject: as in Erased; key_id: the API key of whoever said so."""

    tenant_id: str
    subject: str
    at_s: float
    key_id: str


@dataclass(frozen=True, slots=True)
class OptedOut:
    """A person is not to be enrolled. person: what the tenant's own key makes of what the caller calls them, hex."""

    tenant_id: str
    person: str
    at_s: float
    key_id: str


@dataclass(frozen=True, slots=True)
class KeyEnded:
    """An API key was revoked, or given a successor and a date. ends_at_s: Unix time from which it is refused."""

    tenant_id: str
    ended_key_id: str
    ends_at_s: float
    is_revoked: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """A tenant was closed, or one of its users. user_id: empty for the tenant."""

    tenant_id: str
    user_id: str
    at_s: float


Decision = Withdrawn | OptedOut | KeyEnded | Closed
Record = Erased | Proven | Mark | Decision

_KINDS: dict[str, type[Record]] = {
    "erased": Erased,
    "proven": Proven,
    "mark": Mark,
    "withdrawn": Withdrawn,
    "opted_out": OptedOut,
    "key_ended": KeyEnded,
    "closed": Closed,
}


def encoded(record: Record) -> bytes:
    """A record as it is written."""
    kind = next(name for name, made in _KINDS.items() if isinstance(record, made))
    return json.dumps({"kind": kind, **asdict(record)}, sort_keys=True, separators=(",", ":")).encode()


def decoded(body: bytes) -> Record:
    """A record as it was written. Raises InvalidRequest for one of a later version."""
    try:
        fields: dict[str, Any] = json.loads(body)
        made = _KINDS[fields.pop("kind")]
        if made is Proven:
            fields["residual_node_ids"] = tuple(fields["residual_node_ids"])
        return made(**fields)
    except (ValueError, KeyError, TypeError):
        raise InvalidRequest("the erasure journal holds a record that this version does not know") from None
