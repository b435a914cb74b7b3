"""Jobs on real speech, with the builtin engine: voiceprints are made, and the right people identified."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerd.v1 import jobs_pb2
from tests.controlplane.conftest import World, until, wav
from tests.controlplane.job_driving import run, upload
from tests.faults.processes import node_arguments, processes

RATE_HZ = 16_000
ASKED_S = 25.0
SUCCEEDED = jobs_pb2.Job.STATE_SUCCEEDED


def utterances(folder: Path) -> list[np.ndarray]:
    """The recordings of one person, in order."""
    read = [soundfile.read(path, dtype="float32") for path in sorted(folder.iterdir())]
    assert {rate for _, rate in read} == {RATE_HZ}
    return [samples for samples, _ in read]


@pytest.mark.deep
@pytest.mark.timeout(600)
async def test_people_are_identified_by_voiceprints_and_by_enrolment_and_a_guest_is_nobody(
    world: World, audio: Path, tmp_path: Path
) -> None:
    people = {folder.name: utterances(folder) for folder in sorted((audio / "librispeech/members").iterdir())[:3]}
    guest = utterances(sorted((audio / "librispeech/guests").iterdir())[3])[0]
    first, second, absent = people
    pause = np.zeros(RATE_HZ // 2, np.float32)
    said = [(first, people[first][5]), (second, people[second][5]), ("", guest), (first, people[first][6])]
    said.append((second, people[second][6]))
    talk = np.concatenate([piece for _, samples in said for piece in (samples, pause)])
    plane = await world.plane()
    client = await world.client(plane)
    async with processes(tmp_path) as daemons:
        await daemons.start("node", *node_arguments("node-1", plane.grpc_address, world.data, device="cpu"))

        async def serves() -> bool:
            return bool(await plane.core.fleet.serving())

        await until(serves, 60)
        await upload(client, "talk", wav(talk))
        sent = []
        for label, spoken in people.items():
            clip = np.concatenate(spoken[:4])[: round(ASKED_S * RATE_HZ)]
            await upload(client, f"voices/{label}", wav(clip))
            made = await run(client, "voiceprint", media_key=f"voices/{label}")
            assert made.state == SUCCEEDED, made.error
            sent.append(jobs_pb2.JobVoiceprint(label=f"person {label}", voiceprint=made.voiceprint))
        job = await run(
            client,
            "identify",
            media_key="talk",
            voiceprints=sent,
            matching=jobs_pb2.JobMatching(threshold=50),
        )
        assert job.state == SUCCEEDED, job.error

        def spoken_by(at_ms: int) -> str:
            start = 0
            for who, samples in said:
                if start <= at_ms * 16 < start + len(samples):
                    return f"person {who}" if who else ""
                start += len(samples) + len(pause)
            return ""

        right = wrong = 0
        for turn in job.result.turns:
            label = turn.label if turn.label.startswith("person") else ""
            for at_ms in range(turn.start_ms, turn.end_ms, 50):
                right, wrong = right + (label == spoken_by(at_ms)), wrong + (label != spoken_by(at_ms))
        assert wrong < 0.1 * right, (right, wrong)
        assert {turn.label for turn in job.result.turns} >= {f"person {first}", f"person {second}"}
        assert f"person {absent}" not in {turn.label for turn in job.result.turns}
        for identity in job.result.identities:
            assert {candidate.label for candidate in identity.candidates} == {f"person {label}" for label in people}
        # And without voiceprints, against those who are enrolled.
        clip = np.concatenate(people[second][:4])[: round(ASKED_S * RATE_HZ)]
        voice = await client.enrol("Second", data=wav(clip), container=True)
        enrolled = await run(
            client, "identify", media_key="talk", matching=jobs_pb2.JobMatching(everybody=True, threshold=50)
        )
        named = {turn.voice_id for turn in enrolled.result.turns if turn.label == "Second"}
        assert named == {voice.voice.voice_id}
        matched = {one.speaker for one in enrolled.result.identities if one.HasField("match")}
        assert len(matched) == 1
