"""A voiceprint's rows: what it is made of, and how it is shown. Reads alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.spaces_schema import space_audios, space_members, space_verifications
from controlplane.intake import Clip
from controlplane.space_access import Space
from controlplane.space_ground import MemberView, Reference, SpaceGround, VoiceprintView
from controlplane.space_rows import alias_of, open_keys

FROZEN = "the voiceprint is computed: audios are neither added nor removed any more, and it is computed once"
KEPT_MS_MAX = 120_000
"""How much of a voiceprint's sound is kept for making those of other models, as of any other voice."""


@dataclass(frozen=True, slots=True)
class Path:
    """How a voiceprint is referred to."""

    owner: str
    space: str
    identity: str
    voiceprint: str


@dataclass(frozen=True, slots=True)
class Found:
    """A voiceprint, where it lies."""

    space: Space
    identity: Row[Any]
    row: Row[Any]

    @property
    def is_computed(self) -> bool:
        """Whether it is frozen."""
        return self.row.computed_at_s is not None


async def voiceprint_view(
    connection: AsyncConnection, ground: SpaceGround, row: Row[Any], identity: Reference
) -> VoiceprintView:
    """A row of `space_voiceprints` as callers see it."""
    members = await members_of(connection, row)
    sealed = [member.audio_id for member in members if member.alias_ciphertext is not None]
    if row.alias_ciphertext is not None:
        sealed.append(row.voiceprint_id)
    keys = await open_keys(connection, ground.keys, row.tenant_id, sealed) if sealed else {}
    verifications = (
        select(func.count())
        .select_from(space_verifications)
        .where(
            space_verifications.c.tenant_id == row.tenant_id,
            space_verifications.c.voiceprint_id == row.voiceprint_id,
        )
    )
    state = "computed" if row.computed_at_s is not None else "notComputable"
    if row.computed_at_s is None and len(members) >= int(row.min_audios):
        state = "computable"
    shown = tuple(
        MemberView(
            Reference(
                member.audio_id,
                member.handle,
                alias_of(keys[member.audio_id], member.alias_ciphertext) if member.audio_id in keys else None,
            ),
            int(member.duration_ms),
            int(member.voice_ms),
            bool(member.left_out),
        )
        for member in members
    )
    return VoiceprintView(
        voiceprint_id=row.voiceprint_id,
        handle=row.handle,
        alias=alias_of(keys[row.voiceprint_id], row.alias_ciphertext) if row.voiceprint_id in keys else None,
        state=state,
        model_handle=row.model_handle,
        model_version=row.model_version,
        identity=identity,
        min_audios=int(row.min_audios),
        total_ms=sum(member.duration_ms for member in shown),
        voice_ms=int(row.net_speech_ms or 0) or sum(member.voice_ms for member in shown),
        members=shown,
        num_verifications=int((await connection.execute(verifications)).scalar_one()),
        created_at_s=row.created_at_s,
        computed_at_s=row.computed_at_s,
    )


async def members_of(connection: AsyncConnection, row: Row[Any]) -> list[Any]:
    """A voiceprint's audios in the order that they were added: rows of `space_audios` with what each gave."""
    query = (
        select(
            space_audios.c.tenant_id,
            space_audios.c.audio_id,
            space_audios.c.handle,
            space_audios.c.alias_ciphertext,
            space_audios.c.blob_key,
            space_audios.c.blob_bytes,
            space_members.c.position,
            space_members.c.duration_ms,
            space_members.c.voice_ms,
            space_members.c.left_out,
        )
        .join(
            space_audios,
            and_(
                space_audios.c.tenant_id == space_members.c.tenant_id,
                space_audios.c.audio_id == space_members.c.audio_id,
            ),
        )
        .where(space_members.c.tenant_id == row.tenant_id, space_members.c.voiceprint_id == row.voiceprint_id)
        .order_by(space_members.c.position)
    )
    return list((await connection.execute(query)).all())


def kept_clips(clips: Sequence[Clip], members: Sequence[Any]) -> list[Clip]:
    """The first clips, as many as are kept of a voice; one at least. members: rows that say how long each is."""
    kept: list[Clip] = []
    total_ms = 0
    for clip, member in zip(clips, members, strict=True):
        total_ms += int(member.duration_ms)
        if kept and total_ms > KEPT_MS_MAX:
            break
        kept.append(clip)
    return kept
