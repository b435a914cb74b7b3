"""The audit: rows that only grow, each hashed together with the one before.

h_n = SHA-256(h_{n-1} ‖ n ‖ body), with n as 8 bytes big-endian and body as canonical JSON. A changed, missing or
reordered row breaks the chain from there on. Voices appear as keyed hashes; no names, ever. Who owns the database can
still cut the tail or rewrite all of it: tamper-evident, not tamper-proof.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import locked_head
from controlplane.database.schema import audit

GENESIS = bytes(32)
_PAGE_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking the chain found. broken_at: first sequence that does not fit; None when all do."""

    num_rows: int
    broken_at: int | None
    head: bytes


async def append(connection: AsyncConnection, action: str, *, at_s: float, facts: Mapping[str, object]) -> int:
    """Append a row within the caller's transaction, and return its sequence."""
    await locked_head(connection)
    last = (
        await connection.execute(select(audit.c.sequence, audit.c.hash).order_by(audit.c.sequence.desc()).limit(1))
    ).one_or_none()
    sequence, previous = (1, GENESIS) if last is None else (int(last.sequence) + 1, bytes(last.hash))
    body = json.dumps({"action": action, "at_s": at_s, **facts}, sort_keys=True, separators=(",", ":"))
    await connection.execute(
        insert(audit).values(
            sequence=sequence, body=body, previous_hash=previous, hash=chained(previous, sequence, body)
        )
    )
    return sequence


async def verify(connection: AsyncConnection) -> Verdict:
    """Walk the chain from its beginning."""
    sequence, previous = 0, GENESIS
    while True:
        page = (
            await connection.execute(
                select(audit).where(audit.c.sequence > sequence).order_by(audit.c.sequence).limit(_PAGE_ROWS)
            )
        ).all()
        for row in page:
            fits = (
                row.sequence == sequence + 1
                and bytes(row.previous_hash) == previous
                and bytes(row.hash) == chained(previous, int(row.sequence), row.body)
            )
            if not fits:
                return Verdict(sequence, sequence + 1, previous)
            sequence, previous = int(row.sequence), bytes(row.hash)
        if len(page) < _PAGE_ROWS:
            return Verdict(sequence, None, previous)


def chained(previous: bytes, sequence: int, body: str) -> bytes:
    """The hash of a row."""
    return hashlib.sha256(previous + sequence.to_bytes(8, "big") + body.encode()).digest()
