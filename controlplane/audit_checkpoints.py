"""Signed checkpoints of the audit, kept outside the database: who owns it can cut or rewrite it, and is found out.

In: the audit's head. Out: small signed objects in a folder or an object store, one for each head that was signed. What
always holds: a checkpoint is signed (Ed25519) over the sequence, the hash and the time; none is ever overwritten.
Written after every erasure that completes (several at once share one), every 1,000 rows, every 5 minutes and as the
daemon ends, when there is something new.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import select

from controlplane.database.engine import Database
from controlplane.database.schema import audit, fleet_head
from controlplane.fault_points import reach
from controlplane.metrics import Metrics
from controlplane.outside import Outside
from controlplane.pulse import Pulse, wait_s
from runtime.clock import Clock
from runtime.errors import Conflict, InvalidRequest, SpeakerdError, Unavailable
from runtime.logs import get_logger

EVERY_S = 300.0
EVERY_ROWS = 1_000
GATHER_S = 0.5
"""How long a checkpoint waits for more erasures to complete."""
LOOK_S = 30.0
"""How often rows are counted."""
FINAL_BOUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The audit's head at a time. hash: hex. epoch: of the fleet. public_key and signature: base64."""

    sequence: int
    hash: str
    epoch: str
    at_s: float
    public_key: str
    signature: str = ""

    @property
    def name(self) -> str:
        """What it is kept as: sorts by sequence."""
        return f"{self.sequence:012d}-{self.hash[:16]}.json"


def signed(sequence: int, digest: bytes, *, epoch: str, at_s: float, key: Ed25519PrivateKey) -> bytes:
    """A checkpoint as it is kept."""
    bare = Checkpoint(sequence, digest.hex(), epoch, at_s, public_key_of(key))
    signature = base64.b64encode(key.sign(_said(bare))).decode()
    return json.dumps({**asdict(bare), "signature": signature}, sort_keys=True).encode() + b"\n"


def opened(content: bytes) -> Checkpoint:
    """A checkpoint that was signed by the key that it names. Raises InvalidRequest when it is not."""
    try:
        fields: dict[str, Any] = json.loads(content)
        found = Checkpoint(
            sequence=int(fields["sequence"]),
            hash=str(fields["hash"]),
            epoch=str(fields["epoch"]),
            at_s=float(fields["at_s"]),
            public_key=str(fields["public_key"]),
            signature=str(fields["signature"]),
        )
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(found.public_key, validate=True))
        public.verify(base64.b64decode(found.signature, validate=True), _said(found))
    except (ValueError, KeyError, TypeError, binascii.Error, InvalidSignature):
        raise InvalidRequest("a checkpoint is damaged, or its signature does not fit it") from None
    return found


async def last_of_epoch(store: Outside, epoch: str, *, public_key: str) -> Checkpoint | None:
    """The last checkpoint that this deployment signed in an epoch; None when there is none, or the store is away."""
    try:
        names = await store.names()
    except Unavailable as error:
        get_logger().warning("audit.checkpoints_away", reason=str(error))
        return None
    for name in reversed(names):
        try:
            found = opened(await store.get(name))
        except (InvalidRequest, Unavailable):
            continue  # verification tells of it
        if found.epoch == epoch and found.public_key == public_key:
            return found
    return None


def public_key_of(key: Ed25519PrivateKey) -> str:
    """What checkpoints that are signed with a key name: base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


class AuditCheckpoints:
    """The worker."""

    def __init__(
        self, *, database: Database, store: Outside, key: Ed25519PrivateKey, clock: Clock, metrics: Metrics
    ) -> None:
        self._database = database
        self._store = store
        self._key = key
        self._clock = clock
        self._metrics = metrics
        self._wanted = Pulse()
        # The last sequence that was signed, here or by another control plane; -1: not looked yet.
        self._signed = -1

    def __repr__(self) -> str:
        return f"AuditCheckpoints(signed={self._signed})"

    @property
    def public_key(self) -> str:
        """What checkpoints of this deployment are signed by: base64."""
        return public_key_of(self._key)

    def soon(self) -> None:
        """An erasure has completed: sign that."""
        self._wanted.beat()

    async def run(self) -> None:
        """Work for ever. A store that is away delays, and nothing else waits for it."""
        signed_at_s = self._clock.monotonic_s()
        wanted = self._wanted.next()
        is_wanted = True  # what an earlier run completed and did not sign
        while True:
            try:
                if is_wanted or await self._is_due(signed_at_s):
                    await self.sign()
                    signed_at_s = self._clock.monotonic_s()
            except SpeakerdError as error:
                self._metrics.audit_checkpoint_failures.inc()
                get_logger().warning("audit.not_signed", reason=str(error))
            is_wanted = await wait_s(wanted, LOOK_S)
            if is_wanted:
                # Those that complete in the meantime are in the same checkpoint; those after it want another.
                await asyncio.sleep(GATHER_S)
                wanted = self._wanted.next()

    async def close(self) -> None:
        """Sign what is left, within a bound."""
        try:
            async with asyncio.timeout(FINAL_BOUND_S):
                await self.sign()
        except (SpeakerdError, TimeoutError):
            get_logger().warning("audit.not_signed", reason="the daemon ends")

    async def sign(self) -> None:
        """Sign the head as it is now, if that was not done. Raises Unavailable."""
        if self._signed < 0:
            self._signed = await self._last_signed()
        head = await self._head()
        if head is None or head[0] <= self._signed:
            return
        sequence, digest, epoch = head
        content = signed(sequence, digest, epoch=epoch, at_s=self._clock.wall_s(), key=self._key)
        with contextlib.suppress(Conflict):  # another control plane may have signed the same head
            await self._store.put(opened(content).name, content)
        reach("erase.checkpointed")
        self._signed = sequence
        self._metrics.audit_signed.set(sequence)

    async def _last_signed(self) -> int:
        names = [name for name in await self._store.names() if name[:12].isdigit()]
        if not names:
            return 0
        sequence, hash_start = int(names[-1][:12]), names[-1][13:29]
        async with self._database.read() as connection:
            query = select(audit.c.hash).where(audit.c.sequence == sequence)
            found = (await connection.execute(query)).scalar_one_or_none()
        # Not of this history when a backup was restored in between: then nothing of it is signed yet.
        return sequence if found is not None and bytes(found).hex()[:16] == hash_start else 0

    async def _is_due(self, signed_at_s: float) -> bool:
        head = await self._head()
        fresh = 0 if head is None else head[0] - max(0, self._signed)
        return fresh >= EVERY_ROWS or (fresh > 0 and self._clock.monotonic_s() - signed_at_s >= EVERY_S)

    async def _head(self) -> tuple[int, bytes, str] | None:
        query = select(audit.c.sequence, audit.c.hash).order_by(audit.c.sequence.desc()).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            epoch = str((await connection.execute(select(fleet_head.c.epoch))).scalar_one())
        return None if row is None else (int(row.sequence), bytes(row.hash), epoch)


def _said(checkpoint: Checkpoint) -> bytes:
    fields = {name: value for name, value in asdict(checkpoint).items() if name != "signature"}
    return b"speakerd audit checkpoint 1\n" + json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
