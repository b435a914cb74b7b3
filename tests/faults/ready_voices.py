"""Voices that a fleet holds, however long a busy machine takes over it."""

from __future__ import annotations

from speakerd.client import Client
from speakerd.v1 import people_pb2
from tests.faults.processes import tones, until, voice
from tests.faults.test_continuity import wav

READY_WITHIN_S = 60.0


async def enrol(client: Client, label: str, number: int) -> people_pb2.Voice:
    """Enrol the person of these tones; returns once nodes hold the voice."""
    made = (await client.enroll(label, [wav(tones(4, *voice(number)))])).voice
    await held(client, made.voice_id)
    return made


async def held(client: Client, voice_id: str) -> None:
    """Return once nodes hold a voice."""

    async def is_ready() -> bool:
        return (await client.voice(voice_id)).state == people_pb2.Voice.STATE_READY

    await until(is_ready, READY_WITHIN_S)
