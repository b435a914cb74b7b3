"""Keys that are not a voice's: the one that names subjects in the audit, and one a tenant for finding labels.

In: the ring of key-encryption keys. Out: 32 bytes each, kept wrapped in `wrapped_secrets`. A tenant's key goes with the
tenant; until then it lets a label or a person be found again by a keyed hash, without opening every voice.
"""

from __future__ import annotations

import os

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import Database, locked_head
from controlplane.database.schema import data_keys, voices, wrapped_secrets
from controlplane.keys import KEY_BYTES, KeyRing, VoiceAddress, blind_index
from runtime.clock import Clock

AUDIT = "audit"
PAGE_VOICES = 500


class TenantKeys:
    """Reads, makes and forgets tenants' keys.

    What is stored is asked for each time, and only its opening is spared: a key that was made in a transaction which
    came to nothing, or forgotten by another control plane, is not gone on with.
    """

    def __init__(self, keys: KeyRing, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock
        # By tenant: as it is stored, and in the clear.
        self._known: dict[str, tuple[bytes, bytes]] = {}

    def __repr__(self) -> str:
        return "TenantKeys(…)"

    async def find(self, connection: AsyncConnection, tenant_id: str) -> bytes | None:
        """A tenant's key, or None while there is nothing to be found under it."""
        name = labels_key(tenant_id)
        query = select(wrapped_secrets.c.wrapped).where(wrapped_secrets.c.name == name)
        wrapped = (await connection.execute(query)).scalar_one_or_none()
        if wrapped is None:
            self._known.pop(tenant_id, None)
            return None
        stored = bytes(wrapped)
        known = self._known.get(tenant_id)
        if known is None or known[0] != stored:
            known = self._known[tenant_id] = (stored, self._keys.open_secret(name, stored))
        return known[1]

    async def find_or_make(self, connection: AsyncConnection, tenant_id: str) -> bytes:
        """A tenant's key, within a transaction that holds the head: two that make it would make two."""
        known = await self.find(connection, tenant_id)
        if known is None:
            known = os.urandom(KEY_BYTES)
            await _store(connection, self._keys, labels_key(tenant_id), known, self._clock.wall_s())
        return known

    async def forget(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Destroy a tenant's key: what was indexed under it is found by nobody."""
        self._known.pop(tenant_id, None)
        await connection.execute(delete(wrapped_secrets).where(wrapped_secrets.c.name == labels_key(tenant_id)))

    async def label_index(self, connection: AsyncConnection, tenant_id: str, label: str) -> bytes:
        """What a label is found by; the tenant's key is made if need be, so only where the head is held."""
        return blind_index(await self.find_or_make(connection, tenant_id), "label", label)

    async def subject_index(self, connection: AsyncConnection, tenant_id: str, subject: str) -> bytes:
        """What a person is found by, likewise."""
        return blind_index(await self.find_or_make(connection, tenant_id), "subject", subject)


async def open_audit_key(database: Database, keys: KeyRing, clock: Clock) -> None:
    """Let subjects be named as ever, whatever key wraps now: their key is kept from the first start on."""
    async with database.write() as connection:
        await locked_head(connection)
        query = select(wrapped_secrets.c.wrapped).where(wrapped_secrets.c.name == AUDIT)
        wrapped = (await connection.execute(query)).scalar_one_or_none()
        if wrapped is None:
            await _store(connection, keys, AUDIT, keys.audit_key, clock.wall_s())
            return
    keys.name_subjects_with(keys.open_secret(AUDIT, bytes(wrapped)))


async def index_labels(database: Database, keys: KeyRing, tenant_keys: TenantKeys) -> int:
    """Index the labels of voices that are older than the index, and return how many; a page a transaction."""
    done = 0
    while True:
        async with database.write() as connection:
            await locked_head(connection)
            query = (
                select(voices.c.tenant_id, voices.c.voice_id, voices.c.label_ciphertext, data_keys.c.wrapped)
                .join(
                    data_keys,
                    (data_keys.c.tenant_id == voices.c.tenant_id) & (data_keys.c.voice_id == voices.c.voice_id),
                )
                .where(voices.c.label_index.is_(None), voices.c.label_ciphertext.is_not(None))
                .limit(PAGE_VOICES)
            )
            rows = (await connection.execute(query)).all()
            for row in rows:
                key = keys.open(VoiceAddress(row.tenant_id, row.voice_id), bytes(row.wrapped))
                label = key.decrypt(bytes(row.label_ciphertext), "label").decode()
                index = await tenant_keys.label_index(connection, row.tenant_id, label)
                await connection.execute(
                    voices.update()
                    .where(voices.c.tenant_id == row.tenant_id, voices.c.voice_id == row.voice_id)
                    .values(label_index=index)
                )
        done += len(rows)
        if len(rows) < PAGE_VOICES:
            return done


async def _store(connection: AsyncConnection, keys: KeyRing, name: str, secret: bytes, now_s: float) -> None:
    await connection.execute(
        insert(wrapped_secrets).values(
            name=name, wrapped=keys.wrap_secret(name, secret), created_at_s=now_s, kek_id=keys.kek_id
        )
    )


def labels_key(tenant_id: str) -> str:
    """What a tenant's key is called among the wrapped secrets."""
    return f"labels:{tenant_id}"
