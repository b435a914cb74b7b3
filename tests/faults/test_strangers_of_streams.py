"""A stranger of a live stream is enrolled from its token, with consent; who was named there has none, erased or not."""

from __future__ import annotations

import asyncio

import numpy as np

from speakerd.channel import credentials, open_channel
from speakerd.client import StreamOptions
from speakerd.v1 import people_pb2, people_pb2_grpc
from tests.faults.processes import Processes, pcm, tones, until, voice
from tests.faults.streaming import Told, stream
from tests.faults.test_continuity import fleet, wav

CONSENT = people_pb2.Consent(full_name="Guest Fullname", purpose="meetings", text="I agree")


async def test_a_stranger_of_a_stream_becomes_a_voice_and_who_was_erased_during_it_does_not(
    daemons: Processes,
) -> None:
    async with fleet(daemons, "n1", "n2") as made, made.client() as client:
        ids = [
            (await client.enroll(f"Person {number}", [wav(tones(4, *voice(number)))])).voice.voice_id
            for number in range(2)
        ]
        sound = pcm(np.tile(np.concatenate([tones(4, *voice(number)) for number in (0, 1, 5)]), 20))
        told, done = Told(), asyncio.Event()
        running = asyncio.create_task(
            stream(client, sound, StreamOptions(latency_ms=500), pace=4.0, told=told, until=done)
        )
        heard = lambda: {turn.label for turn in told.turns}  # noqa: E731
        await until(lambda: {"Person 0", "Person 1"} <= heard() and any("spk_" in one for one in heard()), 60)
        erasure = await client.erase(ids[0], wait_s=25)
        assert erasure.state == people_pb2.Erasure.STATE_ERASED
        # It moves: what a node remembers of names goes with the stream.
        carrying = told.nodes[-1]
        await made.nodes[carrying].kill()
        await until(lambda: told.resumed, 60)
        said = len(told.turns)
        await until(lambda: len(told.turns) > said + 30, 60)
        done.set()
        await running
        assert told.closed is not None
        by_label = {speaker.label: speaker for speaker in told.closed.speakers}
        assert "Person 1" in by_label and "Person 0" not in by_label
        assert by_label["Person 1"].token == b""
        strangers = [speaker for speaker in told.closed.speakers if not speaker.voice_id]
        # One of them is who was erased, and is nobody to be enrolled.
        with_token = [speaker for speaker in strangers if speaker.token]
        assert len(strangers) >= 2 and len(with_token) == len(strangers) - 1
        guest = max(with_token, key=lambda speaker: speaker.net_speech_ms)
        assert all(not speaker.HasField("voiceprint") for speaker in told.closed.speakers)

        key = (made.data / "admin.key").read_text().strip()
        async with open_channel(made.plane.grpc) as channel:
            promoted = await people_pb2_grpc.PeopleStub(channel).PromoteSpeaker(
                people_pb2.PromoteSpeakerRequest(
                    token=guest.token, spec=people_pb2.VoiceSpec(label="Guest", consent=CONSENT)
                ),
                metadata=credentials(key),
                timeout=30,
            )
        assert promoted.voice.state == people_pb2.Voice.STATE_READY
        again = await stream(client, pcm(tones(12, *voice(5))), StreamOptions(latency_ms=500), pace=0)
        assert "Guest" in {turn.label for turn in again.turns}
