"""From a speaker who was heard to a voice that is enrolled, with the person's consent.

In: a speaker's token, as a stream or a recording gave it to its owner, and what the person agreed to. Out: a voice like
any other, but for its recordings, of which there are none. Until then nothing of the speaker is stored.
"""

from __future__ import annotations

from controlplane.enrolment import Enrolled, Enrolment
from controlplane.enrolment_request import Request
from controlplane.holdings import Print
from controlplane.nodes import Analysis
from controlplane.policy import Principal, VoiceScope
from runtime.errors import BadAudio, InvalidRequest
from runtime.speaker_token import SpeakerSeal

NET_SPEECH_MS_MIN = 3_000
"""Less was heard of a speaker than a voice should stand on."""


class Promotion:
    """The use case."""

    def __init__(self, enrolment: Enrolment, seal: SpeakerSeal) -> None:
        self._enrolment = enrolment
        self._seal = seal

    def __repr__(self) -> str:
        return "Promotion()"

    async def promote(self, principal: Principal, token: bytes, request: Request) -> Enrolled:
        """Enrol. Raises InvalidRequest, BadAudio for a speaker of whom too little was heard, Conflict, Overloaded."""
        if request.voice_id or request.add_clips:
            raise InvalidRequest("voice_id: a speaker who was heard becomes a new voice")
        if request.scope is VoiceScope.GLOBAL:
            raise InvalidRequest("scope: a speaker who was heard becomes a voice of the user or the tenant")
        if request.idempotency_key:
            raise InvalidRequest("idempotency_key: not here; a token may be used again, and makes another voice")
        heard = self._seal.open(token, tenant_id=principal.tenant_id)
        if heard.net_speech_ms < NET_SPEECH_MS_MIN:
            raise BadAudio(
                f"only {heard.net_speech_ms / 1000:.1f} s of clean speech were heard of this speaker: "
                f"{NET_SPEECH_MS_MIN / 1000:g} s are needed; enrol from a recording"
            )
        analysis = Analysis(
            voiceprint=Print(heard.model, heard.embedding, heard.net_speech_ms),
            duration_ms=heard.net_speech_ms,
            net_speech_ms=heard.net_speech_ms,
            num_speakers=1,
            cohesion=0.0,
            warnings=(),
        )
        return await self._enrolment.promote(principal, request, analysis)
