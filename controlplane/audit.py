"""The audit: rows that only grow, each hashed together with the one before.

h_n = SHA-256(h_{n-1} ‖ n ‖ body), with n as 8 bytes big-endian and body as canonical JSON. A changed, missing or
reordered row breaks the chain from there on. Voices appear as keyed hashes; no names, ever. Who owns the database can
still cut the tail or rewrite all of it: tamper-evident, not tamper-proof.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
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


@dataclass(frozen=True, slots=True)
class Entry:
    """A row that fits. body: canonical JSON."""

    sequence: int
    hash: bytes
    body: str


class Broken(Exception):
    """The chain does not hold. at: the first sequence that does not fit; the text says how."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__(how)
        self.at = at


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


async def walk(connection: AsyncConnection) -> AsyncIterator[Entry]:
    """The rows from the beginning, as long as the chain holds. Raises Broken at the first one that does not fit."""
    sequence, previous = 0, GENESIS
    while True:
        page = (
            await connection.execute(
                select(audit).where(audit.c.sequence > sequence).order_by(audit.c.sequence).limit(_PAGE_ROWS)
            )
        ).all()
        for row in page:
            found = int(row.sequence)
            if found != sequence + 1:
                raise Broken(sequence + 1, f"rows {sequence + 1} to {found - 1} of the audit are missing")
            if bytes(row.previous_hash) != previous:
                raise Broken(found, f"row {found} of the audit does not go on from the row before: one was replaced")
            if bytes(row.hash) != chained(previous, found, row.body):
                raise Broken(found, f"row {found} of the audit was changed: its hash does not fit")
            sequence, previous = found, bytes(row.hash)
            yield Entry(sequence, previous, row.body)
        if len(page) < _PAGE_ROWS:
            return


async def verify(connection: AsyncConnection) -> Verdict:
    """Walk the chain from its beginning."""
    last = Entry(0, GENESIS, "")
    try:
        async for entry in walk(connection):
            last = entry
    except Broken as broken:
        return Verdict(last.sequence, broken.at, last.hash)
    return Verdict(last.sequence, None, last.hash)


def chained(previous: bytes, sequence: int, body: str) -> bytes:
    """The hash of a row."""
    return hashlib.sha256(previous + sequence.to_bytes(8, "big") + body.encode()).digest()
