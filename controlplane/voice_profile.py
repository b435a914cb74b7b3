"""The voice that a user calls their own: one a user, replaced in place, made of a sample that is not kept.

In: a user and a sample. Out: the user's profile, a voice of the core for that user's streams and recordings alone.
What always holds: the sample's bytes live in the request; a user has one profile or none, whichever requests race; a
voice that is erased, by whatever way, takes the profile with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import and_, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane.agreements import Consent
from controlplane.database.engine import Database
from controlplane.database.schema import voices
from controlplane.database.spaces_schema import voice_profiles
from controlplane.enrolment import Enrolment
from controlplane.enrolment_request import STRANGER, Request
from controlplane.erasure import Erasures
from controlplane.erasure_rows import GONE, Asking
from controlplane.holdings import LIVE_STATES
from controlplane.intake import CONTAINER, Clip, Intake, Sound
from controlplane.keys import DataKey, VoiceAddress
from controlplane.match_outcome import Match, match_of
from controlplane.nodes import Analysis
from controlplane.policy import Principal, VoiceFacts, VoiceScope
from controlplane.relay import Relay
from controlplane.scryon_settings import ScryonSettings
from runtime.clock import Clock
from runtime.errors import (
    BadAudio,
    Cause,
    Conflict,
    Denied,
    NotFound,
    SpeakerdError,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from runtime.media import PreflightLimits
from speakerd.v1 import common_pb2, node_pb2

TRIES_MAX = 3
CHUNK_BYTES = 1 << 20
ADMINISTRATOR = ""
"""Whose profile is the administrator's, where their key stands for no user. There is nobody else's scope for its voice
than the tenant's."""
PURPOSE = "voice profile: the user is recognised among the speakers of their own recordings"
# How long a sample may be is ours to say, with words of our own.
_ANY_LENGTH = {"duration_s_fail_below": 0.0, "duration_s_warn_below": 0.0, "duration_s_fail_above": 600.0}
_PROVIDER_FAULTS = (Cause.UNAVAILABLE, Cause.TIMEOUT, Cause.OVERLOADED, Cause.INTERNAL, Cause.STALE)


class SampleTooShort(BadAudio):
    """Less than the setting asks for."""


class SampleTooLong(BadAudio):
    """More than the setting allows."""


class ProviderFailed(Unavailable):
    """No node could analyse the sample."""


class NoProfile(NotFound):
    """There is no profile to compare with."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's profile.

    created_at_s: when its sample came, Unix time. sample_s: its length, and voice_id: the voice that it became, both
    right after it came.
    """

    consent_version: str
    created_at_s: float
    sample_s: float | None = None
    voice_id: str = ""


class VoiceProfiles:
    """The use cases."""

    def __init__(
        self,
        *,
        database: Database,
        intake: Intake,
        enrolment: Enrolment,
        erasures: Erasures,
        relay: Relay,
        settings: ScryonSettings,
        preflight_limits: PreflightLimits,
        clock: Clock,
    ) -> None:
        self._database = database
        self._intake = intake
        self._enrolment = enrolment
        self._erasures = erasures
        self._relay = relay
        self._settings = settings
        self._limits = preflight_limits.model_copy(update=_ANY_LENGTH)
        self._clock = clock

    def __repr__(self) -> str:
        return "VoiceProfiles()"

    async def replace(self, principal: Principal, sample: bytes) -> Profile:
        """Make the caller's profile of a sample, in place of the one there was.

        Raises SampleTooShort, SampleTooLong, TooLarge, UnsupportedMedia, BadAudio, ProviderFailed, and Denied for a
        key that stands for no user.
        """
        user_id = _user_of(principal)
        sound = await self._listened(sample)
        analysis = await self._heard(sound)
        sample_s = sound.preflight.duration_ms / 1000
        for _ in range(TRIES_MAX):
            row = await self._row(principal.tenant_id, user_id)
            try:
                return await self._store(principal, user_id, row, analysis, sample_s)
            except _Raced:
                continue
        raise Conflict("the profile is being made by another request: repeat it in a moment")

    async def status(self, principal: Principal) -> Profile | None:
        """The caller's profile, or None. Raises Denied."""
        row = await self._row(principal.tenant_id, _user_of(principal))
        if row is None or row.state not in LIVE_STATES:
            return None
        return Profile(row.consent_version, row.created_at_s)

    async def delete(self, principal: Principal) -> None:
        """Erase the caller's profile. There being none is no error. Raises Denied, Unavailable."""
        row = await self._row(principal.tenant_id, _user_of(principal))
        if row is None or row.state in GONE:
            return
        voice = VoiceAddress(principal.tenant_id, row.voice_id)
        await self._erasures.erase_voice(voice, Asking(key_id=principal.key_id))

    async def match(self, principal: Principal, chunks: AsyncIterator[bytes], *, strict: bool) -> Match:
        """Whether the caller is among the speakers of a recording. strict: by the high threshold, else the medium one.

        Raises NoProfile, and what Relay.diarize_file raises.
        """
        row = await self._row(principal.tenant_id, _user_of(principal))
        if row is None or row.state not in LIVE_STATES:
            raise NoProfile("there is no voice profile to compare with: make one first")
        threshold = self._settings.scryon_voice_match_high if strict else self._settings.scryon_voice_match_medium
        opening = node_pb2.FileOpen(
            format=common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER), voice_ids=[row.voice_id]
        )
        probabilities: dict[str, float] = {}
        async for answer in self._relay.diarize_file(principal, _messages(opening, chunks)):
            for speaker in answer.result.speakers:
                # What the speaker is likeliest to be, whether or not it was enough to be named; stripped of all that
                # was erased in the meantime.
                is_own = speaker.match.best_voice_id == row.voice_id
                probabilities[speaker.speaker] = min(1.0, speaker.match.best_probability) if is_own else 0.0
        return match_of(probabilities, threshold)

    async def _listened(self, sample: bytes) -> Sound:
        most_bytes = self._settings.scryon_voice_sample_max_size_mb * (1 << 20)
        if len(sample) > most_bytes:
            raise TooLarge(f"the sample is larger than {self._settings.scryon_voice_sample_max_size_mb:g} MiB")
        if sample and not _is_taken(sample):
            raise UnsupportedMedia("send the sample as wav, mp3 or m4a")
        too_long = SampleTooLong(
            f"the sample is longer than {self._settings.scryon_voice_sample_max_seconds:g} s: cut it down"
        )
        try:
            sound = await self._intake.listen([Clip(sample, CONTAINER)], self._limits)
        except TooLarge:
            raise too_long from None
        seconds = sound.preflight.duration_ms / 1000
        if seconds < self._settings.scryon_voice_sample_min_seconds:
            raise SampleTooShort(
                f"the sample is {seconds:.1f} s long: at least "
                f"{self._settings.scryon_voice_sample_min_seconds:g} s are needed"
            )
        if seconds > self._settings.scryon_voice_sample_max_seconds:
            raise too_long
        return sound

    async def _heard(self, sound: Sound) -> Analysis:
        try:
            analysis = await self._intake.analyze(sound)
        except SpeakerdError as error:
            if error.cause in _PROVIDER_FAULTS:
                raise ProviderFailed("the sample could not be analysed; try again", retry_after_s=5.0) from None
            raise
        if analysis is None:
            raise ProviderFailed("no node is online to analyse the sample; try again", retry_after_s=5.0)
        self._intake.judge(analysis)
        return analysis

    async def _store(
        self, principal: Principal, user_id: str, row: Any, analysis: Analysis, sample_s: float
    ) -> Profile:
        version = self._settings.scryon_voice_consent_version
        profile = Profile(version, self._clock.wall_s(), sample_s)
        is_there = row is not None and row.state not in GONE
        place: VoiceFacts | VoiceAddress
        if row is not None and is_there:
            place = VoiceAddress(principal.tenant_id, row.voice_id)
        else:
            scope = VoiceScope.TENANT if user_id == ADMINISTRATOR else VoiceScope.USER
            place = VoiceFacts(principal.tenant_id, scope, user_id or None)

        made: list[str] = []

        async def also(connection: AsyncConnection, voice: VoiceAddress, _key: DataKey) -> None:
            await _write(connection, voice, user_id, profile)
            made.append(voice.voice_id)

        request = Request(
            voice_id="",
            label=_label_of(user_id),
            consent=Consent(
                full_name=_label_of(user_id),
                purpose=PURPOSE,
                text=f"consent version {version}, accepted in the client before the sample was sent",
                version=version,
                given_at_s=profile.created_at_s,
            ),
            idempotency_key="",
            # None: the recording is not kept.
            clips=(),
            scope=VoiceScope.USER,
            subject=_label_of(user_id),
        )
        try:
            await self._enrolment.keep(principal, request, analysis, place=place, also=also)
        except (Conflict, NotFound) as error:
            # Replaced or deleted by another request since it was looked at: look again. An opt-out stays one.
            now = await self._row(principal.tenant_id, user_id)
            if (now is None) != (row is None) or (now is not None and row is not None and now != row):
                raise _Raced from error
            raise
        return replace(profile, voice_id=made[-1])

    async def _row(self, tenant_id: str, user_id: str) -> Any:
        query = (
            select(
                voice_profiles.c.voice_id,
                voice_profiles.c.consent_version,
                voice_profiles.c.created_at_s,
                voices.c.state,
                voices.c.generation,
            )
            .join(
                voices,
                and_(voices.c.tenant_id == voice_profiles.c.tenant_id, voices.c.voice_id == voice_profiles.c.voice_id),
            )
            .where(voice_profiles.c.tenant_id == tenant_id, voice_profiles.c.user_id == user_id)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).one_or_none()


class _Raced(Exception):
    """The profile is not as it was when it was looked at."""


async def _write(connection: AsyncConnection, voice: VoiceAddress, user_id: str, profile: Profile) -> None:
    mine = (voice_profiles.c.tenant_id == voice.tenant_id, voice_profiles.c.user_id == user_id)
    other = await connection.execute(
        select(voice_profiles.c.voice_id).where(*mine, voice_profiles.c.voice_id != voice.voice_id)
    )
    if other.one_or_none() is not None:
        raise Conflict("the profile was made by another request in the meantime")
    await connection.execute(delete(voice_profiles).where(*mine))
    await connection.execute(
        insert(voice_profiles).values(
            tenant_id=voice.tenant_id,
            user_id=user_id,
            voice_id=voice.voice_id,
            consent_version=profile.consent_version,
            created_at_s=profile.created_at_s,
        )
    )


async def _messages(
    opening: node_pb2.FileOpen, chunks: AsyncIterator[bytes]
) -> AsyncIterator[node_pb2.DiarizeFileRequest]:
    yield node_pb2.DiarizeFileRequest(open=opening)
    async for chunk in chunks:
        for start in range(0, len(chunk), CHUNK_BYTES):
            yield node_pb2.DiarizeFileRequest(audio=chunk[start : start + CHUNK_BYTES])


def _user_of(principal: Principal) -> str:
    if principal.user_id is not None:
        return principal.user_id
    # Whoever works with an administrator's key is a person as well. A service's key is refused: it calls for many
    # people, each of whom would replace the one before.
    if principal.is_admin:
        return ADMINISTRATOR
    raise Denied("this API key stands for no user, who alone has a voice profile: use a user's key")


def _label_of(user_id: str) -> str:
    """What the user's turns are labelled with. An id is no name; those that strangers are called by are no labels."""
    if user_id == ADMINISTRATOR:
        return "administrator"
    return f"user {user_id}" if STRANGER.fullmatch(user_id) else user_id


def _is_taken(data: bytes) -> bool:
    """Whether a file may be wav, mp3 or m4a, by how it begins; the decoder decides whether it is."""
    others = (b"fLaC", b"OggS", b"\x1a\x45\xdf\xa3", b"FORM", b".snd", b"caff")
    return not data.startswith(others)
