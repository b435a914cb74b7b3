"""Whether an audio is of the person of a voiceprint: one score, the calibrated probability that serves all dialects.

In: a space, an audio, a voiceprint that was computed. Out: a view with 0 < score < 1. What always holds: a voice that
is erased, or whose consent was withdrawn, is compared with nothing; the score comes from a node, and nothing else of
the comparison leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.database.engine import locked_head
from controlplane.database.schema import data_keys, voiceprints, voices
from controlplane.database.spaces_schema import (
    space_audios,
    space_identities,
    space_members,
    space_verifications,
    space_voiceprints,
)
from controlplane.holdings import LIVE_STATES, Print
from controlplane.keys import VoiceAddress
from controlplane.nodes import Analysis
from controlplane.policy import Principal
from controlplane.space_access import NO_SUCH_VOICEPRINT, Space, find_audio, find_space
from controlplane.space_audios import Audios, audio_reference
from controlplane.space_ground import Reference, SpaceGround, VerificationView
from controlplane.space_identities import identity_reference
from controlplane.space_models import AudioUnfit, model_of, require_comparable
from controlplane.space_records import Use, record
from controlplane.space_rows import new_id, open_keys
from controlplane.space_voiceprint_rows import Found, Path, kept_clips
from controlplane.space_voiceprints import Voiceprints
from runtime.errors import Conflict, Denied, NotFound, Unavailable

SCORE_MIN = 1e-6
"""A score lies within (0, 1): a probability is never certain, however it was rounded."""
VERIFICATION = "verification"


@dataclass(frozen=True, slots=True)
class NewVerification:
    """What is to be compared; references, all within the space."""

    audio: str
    identity: str
    voiceprint: str


class Verifications:
    """The use cases."""

    def __init__(self, ground: SpaceGround, audios: Audios, prints: Voiceprints) -> None:
        self._ground = ground
        self._audios = audios
        self._prints = prints

    def __repr__(self) -> str:
        return "Verifications()"

    async def verify(self, principal: Principal, owner: str, space: str, new: NewVerification) -> VerificationView:
        """Compare. Raises NotFound, Denied, Conflict, AudioUnfit, Unavailable while no node is online."""
        ground = self._ground
        found = await self._prints.find(principal, Path(owner, space, new.identity, new.voiceprint))
        if not found.space.may_match:
            raise Denied("whoever looks after another user's space matches against nobody in it")
        if not found.is_computed:
            raise Conflict("the voiceprint is not computed: compute it first")
        async with ground.database.read() as connection:
            row = await find_audio(connection, found.space, new.audio)
            await _require_live(connection, found)
            known = await self._known(connection, found)
        model = model_of(found.row.model_handle, found.row.model_version)
        heard = await self._audios.hear(found.space, row)
        require_comparable(model, heard)
        probability = await self._probability(found, row, known)
        score = min(max(probability, SCORE_MIN), 1.0 - SCORE_MIN)
        verification_id, now_s = new_id(), ground.clock.wall_s()
        async with ground.database.write() as connection:
            await locked_head(connection)
            # Whoever was erased, or withdrew, while a node listened is told of to nobody.
            await find_space(connection, principal, owner, space)
            await _require_live(connection, found)
            await find_audio(connection, found.space, row.audio_id)
            await connection.execute(
                insert(space_verifications).values(
                    tenant_id=found.space.tenant_id,
                    verification_id=verification_id,
                    space_id=found.space.space_id,
                    identity_id=found.identity.identity_id,
                    voiceprint_id=found.row.voiceprint_id,
                    audio_id=row.audio_id,
                    score=score,
                    created_at_s=now_s,
                )
            )
            use = Use(
                kind=VERIFICATION,
                space=found.space,
                identity_id=found.identity.identity_id,
                voiceprint_id=found.row.voiceprint_id,
                model=f"{model.handle}/{model.version}",
                num_audios=1,
                duration_ms=heard.duration_ms,
                voice_ms=heard.voice_ms,
            )
            await record(connection, use, at_s=now_s, key_id=principal.key_id)
        async with ground.database.read() as connection:
            return await self._view(connection, found.space, verification_id)

    async def get(self, principal: Principal, owner: str, space: str, verification: str) -> VerificationView:
        """A verification. Raises NotFound."""
        async with self._ground.database.read() as connection:
            found = await find_space(connection, principal, owner, space)
            return await self._view(connection, found, verification)

    async def _known(self, connection: AsyncConnection, found: Found) -> list[Print]:
        """The voiceprint, as it was computed; of a voice that was enrolled elsewhere, those of all models."""
        row, tenant_id = found.row, found.space.tenant_id
        if row.ciphertext is not None:
            keys = await open_keys(connection, self._ground.keys, tenant_id, [row.voiceprint_id])
            embedding = keys[row.voiceprint_id].decrypt(bytes(row.ciphertext), "voiceprint", row.engine_model)
            return [Print(row.engine_model, embedding, int(row.net_speech_ms))]
        voice = VoiceAddress(tenant_id, found.identity.voice_id)
        query = (
            select(voiceprints, data_keys.c.wrapped)
            .join(
                data_keys,
                (data_keys.c.tenant_id == voiceprints.c.tenant_id) & (data_keys.c.voice_id == voiceprints.c.voice_id),
            )
            .where(voiceprints.c.tenant_id == tenant_id, voiceprints.c.voice_id == voice.voice_id)
        )
        known = []
        for made in (await connection.execute(query)).all():
            key = self._ground.keys.open(voice, bytes(made.wrapped))
            embedding = key.decrypt(bytes(made.ciphertext), "voiceprint", int(made.generation), made.model)
            known.append(Print(made.model, embedding, int(made.net_speech_ms)))
        return known

    async def _probability(self, found: Found, audio: Row[Any], known: list[Print]) -> float:
        clip = await self._audios.clip(audio)
        sound = await self._audios.sound([clip])
        for voiceprint in known:
            analysis = await self._ground.intake.analyze(sound, voiceprint.model, against=[voiceprint])
            if analysis is not None:
                _require_one_voice(analysis)
                return analysis.against[0]
        # Nodes of another model alone are online: they listen to what the voiceprint was made of.
        async with self._ground.database.read() as connection:
            query = (
                select(space_audios)
                .join(
                    space_members,
                    (space_members.c.tenant_id == space_audios.c.tenant_id)
                    & (space_members.c.audio_id == space_audios.c.audio_id),
                )
                .where(
                    space_members.c.tenant_id == found.space.tenant_id,
                    space_members.c.voiceprint_id == found.row.voiceprint_id,
                    space_members.c.left_out.is_(False),
                    space_audios.c.blob_key.is_not(None),
                )
                .order_by(space_members.c.position)
            )
            members = (await connection.execute(query)).all()
        if members:
            clips = kept_clips([await self._audios.clip(member) for member in members], members)
            asked = await self._audios.clip(audio, is_consent=True)
            analysis = await self._ground.intake.analyze(await self._audios.sound([*clips, asked]))
            if analysis is not None and analysis.consent is not None:
                return analysis.consent.probability
        raise Unavailable("no node that can compare is online; try again", retry_after_s=5.0)

    async def _view(self, connection: AsyncConnection, space: Space, verification: str) -> VerificationView:
        query = select(space_verifications).where(
            space_verifications.c.tenant_id == space.tenant_id,
            space_verifications.c.space_id == space.space_id,
            space_verifications.c.verification_id == verification,
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound("no such verification")
        identity = await _row(connection, space_identities, "identity_id", row.tenant_id, row.identity_id)
        voiceprint = await _row(connection, space_voiceprints, "voiceprint_id", row.tenant_id, row.voiceprint_id)
        audio = await _row(connection, space_audios, "audio_id", row.tenant_id, row.audio_id)
        return VerificationView(
            verification_id=row.verification_id,
            score=row.score,
            model_handle=voiceprint.model_handle,
            model_version=voiceprint.model_version,
            audio=audio_reference(audio),
            identity=await identity_reference(connection, self._ground, identity),
            voiceprint=Reference(voiceprint.voiceprint_id, voiceprint.handle, None),
            created_at_s=row.created_at_s,
            sealed_by=identity.voice_id if identity.said_ciphertext is None else identity.identity_id,
        )


async def _row(connection: AsyncConnection, table: Any, column: str, tenant_id: str, thing_id: str) -> Row[Any]:
    query = select(table).where(table.c.tenant_id == tenant_id, table.c[column] == thing_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound("no such verification")
    return row


async def _require_live(connection: AsyncConnection, found: Found) -> None:
    query = select(voices.c.state).where(
        voices.c.tenant_id == found.space.tenant_id, voices.c.voice_id == found.identity.voice_id
    )
    state = (await connection.execute(query)).scalar_one_or_none()
    if state == "frozen":
        raise Conflict("consent to this voice was withdrawn: it is compared with nothing")
    if state not in LIVE_STATES:
        raise NotFound(NO_SUCH_VOICEPRINT)


def _require_one_voice(analysis: Analysis) -> None:
    if not analysis.net_speech_ms:
        raise AudioUnfit("no voice is heard in it")
