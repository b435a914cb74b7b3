"""What is written of an erasure: its rows, and a row of the audit for each of its transitions.

Each function is a step of the caller's transaction. The audit names the voice by a keyed hash, who asked by the id that
the caller gave, and the reason by a keyed hash alone: what can be read in it is sealed beside the erasure.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import audit, fleet_log, leases
from controlplane.database.schema import erasures, voices
from controlplane.derived_keys import reason_digest, seal_reason
from controlplane.erasure_rows import Asking, Erasure, destroy
from controlplane.fault_points import reach
from controlplane.fleet_log import Change
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.voices import Outcome

Facts = Mapping[str, object]


def new_audit_id() -> str:
    """The name of an erasure, given out as it is asked for."""
    return f"e_{secrets.token_hex(12)}"


async def request(
    connection: AsyncConnection,
    keys: KeyRing,
    voice: VoiceAddress,
    asking: Asking,
    *,
    audit_id: str,
    generation: int,
    now_s: float,
    now_lease_s: float,
    action: str = "erase.requested",
    more: Facts | None = None,
) -> tuple[int, int]:
    """Tombstone, eviction, destruction of the key, the erasure's row and its audit. generation: the tombstone's.

    Returns the revision of the eviction and the sequence of the audit row.
    """
    revision = await fleet_log.append(connection, Change.EVICT, voice, generation, now_lease_s=now_lease_s)
    reach("erase.logged")
    await destroy(connection, voice, generation, revision, now_s)
    reach("erase.destroyed")
    await insert_erasure(
        connection, keys, voice, asking, audit_id=audit_id, generation=generation, revision=revision, now_s=now_s
    )
    reach("erase.recorded")
    asked_of = [lease.node_id for lease in await leases.holders(connection)]
    facts = {**_said(keys, audit_id, voice, revision, asking), "replicas": asked_of, **(more or {})}
    sequence = await audit.append(connection, action, at_s=now_s, facts=facts)
    reach("erase.audited")
    return revision, sequence


async def insert_erasure(
    connection: AsyncConnection,
    keys: KeyRing,
    voice: VoiceAddress,
    asking: Asking,
    *,
    audit_id: str,
    generation: int,
    revision: int,
    now_s: float,
) -> None:
    """The erasure's row, open."""
    sealed = seal_reason(keys, asking.reason, audit_id) if asking.reason else None
    await connection.execute(
        insert(erasures).values(
            audit_id=audit_id,
            tenant_id=voice.tenant_id,
            voice_id=voice.voice_id,
            generation=generation,
            revision=revision,
            trigger_kind=asking.trigger,
            state="erasing",
            requested_at_s=now_s,
            nodes="[]",
            residual_node_ids="[]",
            blob_bytes_deleted=0,
            blobs_pending=True,
            source=asking.source,
            trigger_user=asking.trigger_user,
            reason_ciphertext=sealed,
            key_id=asking.key_id,
            replicas_evicted=0,
            journaled=False,
            is_open=True,
        )
    )


async def complete(
    connection: AsyncConnection,
    keys: KeyRing,
    erasure: Erasure,
    *,
    outcomes: Sequence[Outcome],
    relays: Sequence[Outcome],
    residual: Sequence[str],
    now_s: float,
) -> int:
    """Say `erased`, and what became of it node by node. Returns the sequence of the audit row."""
    evicted = sum(outcome.ok for outcome in outcomes)
    await connection.execute(
        update(erasures)
        .where(erasures.c.audit_id == erasure.audit_id)
        .values(
            state="erased",
            erased_at_s=now_s,
            nodes=json.dumps([[outcome.node_id, outcome.ok, outcome.error] for outcome in outcomes]),
            residual_node_ids=json.dumps(list(residual)),
            replicas_evicted=evicted,
        )
    )
    await connection.execute(
        update(voices)
        .where(
            voices.c.tenant_id == erasure.voice.tenant_id,
            voices.c.voice_id == erasure.voice.voice_id,
            voices.c.generation == erasure.generation,
        )
        .values(state="erased", updated_at_s=now_s)
    )
    facts = {
        **_said(keys, erasure.audit_id, erasure.voice, erasure.revision, erasure.asking),
        "requested_at_s": erasure.requested_at_s,
        "nodes": [{"node_id": outcome.node_id, "evicted": outcome.ok, "error": outcome.error} for outcome in outcomes],
        # Control planes through which results were leaving: they hold no voices, and withhold its name from here on.
        "relays": [{"node_id": relay.node_id, "withholds": relay.ok, "error": relay.error} for relay in relays],
        "replicas_evicted": evicted,
        "failures": [outcome.node_id for outcome in outcomes if not outcome.ok],
        "residual_node_ids": list(residual),
        "blob_bytes_deleted": erasure.blob_bytes_deleted,
        "blobs_pending": erasure.blobs_pending,
    }
    return await audit.append(connection, "erase.completed", at_s=now_s, facts=facts)


async def blobs_deleted(
    connection: AsyncConnection, keys: KeyRing, erasure: Erasure, num_bytes: int, now_s: float
) -> int | None:
    """The recordings are gone; a row of the audit when the completion's could not say so."""
    await connection.execute(
        update(erasures)
        .where(erasures.c.audit_id == erasure.audit_id)
        .values(blobs_pending=False, blob_bytes_deleted=erasures.c.blob_bytes_deleted + num_bytes)
    )
    if erasure.state == "erasing":
        return None
    facts = {
        **_said(keys, erasure.audit_id, erasure.voice, erasure.revision, erasure.asking),
        "blob_bytes_deleted": num_bytes,
    }
    return await audit.append(connection, "erase.blobs_deleted", at_s=now_s, facts=facts)


async def close(
    connection: AsyncConnection, keys: KeyRing, erasure: Erasure, still_residual: Sequence[str], now_s: float
) -> int | None:
    """Residual nodes were heard of; a row of the audit for them. Closed once nothing else is left to do either."""
    is_done = erasure.state == "erased" and erasure.journaled and not erasure.blobs_pending
    await connection.execute(
        update(erasures)
        .where(erasures.c.audit_id == erasure.audit_id)
        .values(residual_node_ids=json.dumps(list(still_residual)), is_open=bool(still_residual) or not is_done)
    )
    cleared = [node_id for node_id in erasure.residual_node_ids if node_id not in still_residual]
    if not cleared:
        return None
    facts = {
        **_said(keys, erasure.audit_id, erasure.voice, erasure.revision, erasure.asking),
        "cleared_node_ids": cleared,
        "residual_node_ids": list(still_residual),
    }
    return await audit.append(connection, "erase.residual_cleared", at_s=now_s, facts=facts)


def _said(keys: KeyRing, audit_id: str, voice: VoiceAddress, revision: int, asking: Asking) -> dict[str, object]:
    said: dict[str, object] = {
        "audit_id": audit_id,
        "subject": keys.subject(voice.tenant_id, voice.voice_id) if voice.voice_id else "",
        "tenant_id": voice.tenant_id,
        "revision": revision,
        "trigger": asking.trigger,
        "trigger_user": asking.trigger_user,
        "source": asking.source,
        "key_id": asking.key_id,
    }
    if asking.reason:
        said["reason_digest"] = reason_digest(keys, asking.reason)
    return said
