"""Strangers in a recording's result: a sealed token each, so that they may be enrolled later, with their consent.

In: a result with voiceprints, as a node gave it, before any name was taken out of it. Out: the same with tokens, and
with voiceprints only where they were asked for. What always holds: who was named, or is being erased, gets no token.
"""

from __future__ import annotations

from runtime.speaker_token import HeardSpeaker, SpeakerSeal
from speakerd.v1 import node_pb2


def seal_strangers(result: node_pb2.FileResult, seal: SpeakerSeal, *, tenant_id: str, voiceprints_asked: bool) -> None:
    """Put tokens in, and voiceprints out, in place."""
    for speaker in result.speakers:
        speaker.ClearField("token")
        if speaker.HasField("voiceprint") and not speaker.voice_id:
            made = speaker.voiceprint
            heard = HeardSpeaker(made.model, made.embedding, made.net_speech_ms or speaker.net_speech_ms)
            speaker.token = seal.seal(heard, tenant_id=tenant_id)
        if not voiceprints_asked:
            speaker.ClearField("voiceprint")
