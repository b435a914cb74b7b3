"""Computing a voiceprint: what a node hears in its audios becomes the identity's voice, and is frozen.

In: a voiceprint with enough audios. Out: nothing, or an error. What always holds: the voice in the fleet, the sealed
voiceprint and the usage record are one transaction; what was computed is of the audios that the voiceprint has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import Consent
from controlplane.database.schema import voices
from controlplane.database.spaces_schema import space_members, space_voiceprints
from controlplane.enrolment_request import Request
from controlplane.erasure_rows import GONE
from controlplane.keys import DataKey, VoiceAddress
from controlplane.nodes import Analysis
from controlplane.policy import Principal, VoiceFacts
from controlplane.space_access import NO_SUCH_VOICEPRINT
from controlplane.space_audios import Audios
from controlplane.space_ground import SpaceGround
from controlplane.space_records import Use, record
from controlplane.space_rows import open_keys, said_of
from controlplane.space_tombstones import facts_of_identity
from controlplane.space_voiceprint_rows import FROZEN, Found, kept_clips, members_of
from runtime.errors import Conflict, NotFound, Unavailable

FROZEN_VOICE = "frozen"


class Computing:
    """The use case."""

    def __init__(self, ground: SpaceGround, audios: Audios) -> None:
        self._ground = ground
        self._audios = audios

    def __repr__(self) -> str:
        return "Computing()"

    async def compute(self, principal: Principal, found: Found) -> None:
        """Compute a voiceprint that is not computed. Raises as Voiceprints.compute."""
        async with self._ground.database.read() as connection:
            members = await members_of(connection, found.row)
            if len(members) < int(found.row.min_audios):
                raise Conflict(
                    f"the voiceprint has {len(members)} of the {found.row.min_audios} audios that it needs: add more"
                )
            alias, consent = await self._said(connection, found.identity)
            state = await _state_of(connection, found.identity)
        if state == FROZEN_VOICE:
            raise Conflict("consent to the identity's voice was withdrawn: make a new identity with a new consent")
        clips = [await self._audios.clip(member) for member in members]
        sound = await self._audios.sound(clips)
        analysis = await self._ground.intake.analyze(sound)
        if analysis is None:
            raise Unavailable("no node is online to compute the voiceprint; try again", retry_after_s=5.0)
        self._ground.intake.judge(analysis)
        voice = VoiceAddress(found.space.tenant_id, found.identity.voice_id)
        place: VoiceFacts | VoiceAddress = voice
        if state is None:
            place = facts_of_identity(voice.tenant_id, found.space.owner_user_id)

        async def also(connection: AsyncConnection, _voice: VoiceAddress, _key: DataKey) -> None:
            await self._freeze(connection, principal, found, members, analysis)

        request = Request(
            voice_id="",
            label=alias or found.identity.handle,
            consent=consent,
            idempotency_key="",
            clips=kept_clips(clips, members),
        )
        try:
            await self._ground.enrolment.keep(
                principal, request, analysis, place=place, voice_id=voice.voice_id, also=also
            )
        except IntegrityError:
            raise Conflict("another voiceprint of the identity is being computed: try again in a moment") from None

    async def _said(self, connection: AsyncConnection, identity: Row[Any]) -> tuple[str, Consent]:
        keys = await open_keys(connection, self._ground.keys, identity.tenant_id, [identity.identity_id])
        said = said_of(keys[identity.identity_id], identity.said_ciphertext)
        return said.alias, said.consent

    async def _freeze(
        self,
        connection: AsyncConnection,
        principal: Principal,
        found: Found,
        members: Sequence[Any],
        analysis: Analysis,
    ) -> None:
        tenant_id, voiceprint_id, now_s = found.space.tenant_id, found.row.voiceprint_id, self._ground.clock.wall_s()
        # An audio that came or went since they were read: what was computed is of others than it would say.
        if [member.audio_id for member in await members_of(connection, found.row)] != [
            member.audio_id for member in members
        ]:
            raise Conflict("the voiceprint's audios changed as it was computed: try again")
        keys = await open_keys(connection, self._ground.keys, tenant_id, [voiceprint_id])
        made = analysis.voiceprint
        changed = await connection.execute(
            update(space_voiceprints)
            .where(
                space_voiceprints.c.tenant_id == tenant_id,
                space_voiceprints.c.voiceprint_id == voiceprint_id,
                space_voiceprints.c.computed_at_s.is_(None),
            )
            .values(
                computed_at_s=now_s,
                engine_model=made.model,
                net_speech_ms=made.net_speech_ms,
                ciphertext=keys[voiceprint_id].encrypt(made.embedding, "voiceprint", made.model),
            )
        )
        if changed.rowcount != 1:
            raise Conflict(FROZEN)
        for member, clip in zip(members, analysis.clips, strict=False):
            await connection.execute(
                update(space_members)
                .where(
                    space_members.c.tenant_id == tenant_id,
                    space_members.c.voiceprint_id == voiceprint_id,
                    space_members.c.audio_id == member.audio_id,
                )
                .values(left_out=clip.left_out, voice_ms=clip.net_speech_ms)
            )
        use = Use(
            kind="voiceprint",
            space=found.space,
            identity_id=found.identity.identity_id,
            voiceprint_id=voiceprint_id,
            model=f"{found.row.model_handle}/{found.row.model_version}",
            num_audios=len(members),
            duration_ms=sum(int(member.duration_ms) for member in members),
            voice_ms=made.net_speech_ms,
        )
        await record(connection, use, at_s=now_s, key_id=principal.key_id)


async def _state_of(connection: AsyncConnection, identity: Row[Any]) -> str | None:
    """The state of an identity's voice, None while it has none. Raises NotFound for one that is being erased."""
    query = select(voices.c.state).where(
        voices.c.tenant_id == identity.tenant_id, voices.c.voice_id == identity.voice_id
    )
    state: str | None = (await connection.execute(query)).scalar_one_or_none()
    if state in GONE:
        raise NotFound(NO_SUCH_VOICEPRINT)
    return state
