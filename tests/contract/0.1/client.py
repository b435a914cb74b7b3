"""A client of release 0.1: enrols, streams, diarizes, asks for a job, erases. Run with the release's stubs on the path.

ADDRESS KEY RECORDING (16-bit PCM at 16 kHz, one voice). Prints what it found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc

from speakerd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    common_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    people_pb2,
    people_pb2_grpc,
    streams_pb2,
    streams_pb2_grpc,
)

CHUNK = 32_000


async def main(address: str, key: str, recording: Path) -> None:
    sound = recording.read_bytes()
    shown = (("authorization", f"Bearer {key}"),)
    pcm = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE, sample_rate_hz=16_000, channels=1)
    found: dict[str, object] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        people = people_pb2_grpc.PeopleStub(channel)
        streams = streams_pb2_grpc.StreamsStub(channel)
        jobs = jobs_pb2_grpc.JobsStub(channel)

        async def enrolment():
            yield people_pb2.EnrollVoiceRequest(spec=people_pb2.VoiceSpec(label="Ada"))
            yield people_pb2.EnrollVoiceRequest(chunk=people_pb2.ClipChunk(clip=0, format=pcm, data=sound))

        voice = (await people.EnrollVoice(enrolment(), metadata=shown)).voice
        for _ in range(300):
            if voice.state == people_pb2.Voice.STATE_READY:
                break
            await asyncio.sleep(0.1)
            voice = await people.GetVoice(people_pb2.GetVoiceRequest(voice_id=voice.voice_id), metadata=shown)
        found["state"] = people_pb2.Voice.State.Name(voice.state)
        listed = await people.ListVoices(people_pb2.ListVoicesRequest(), metadata=shown)
        found["listed"] = [one.label for one in listed.voices]

        nodes = await streams.ListNodes(streams_pb2.ListNodesRequest(), metadata=shown)
        found["nodes"] = len(nodes.nodes)
        placed = await streams.PlaceStream(streams_pb2.PlaceStreamRequest(), metadata=shown)

        async def talk():
            yield node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(ticket=placed.ticket, stream_id=placed.stream_id))
            for at in range(0, len(sound), CHUNK):
                yield node_pb2.DiarizeRequest(audio=sound[at : at + CHUNK])
            yield node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish())

        async with grpc.aio.insecure_channel(placed.address) as straight:
            kinds = set()
            async for answer in node_pb2_grpc.NodeStub(straight).Diarize(talk()):
                kinds.add(answer.WhichOneof("message"))
                if answer.HasField("closed"):
                    found["streamed"] = [speaker.label for speaker in answer.closed.speakers]
            found["stream"] = sorted(str(kind) for kind in kinds)

        async def file():
            yield node_pb2.DiarizeFileRequest(open=node_pb2.FileOpen(format=pcm))
            for at in range(0, len(sound), CHUNK):
                yield node_pb2.DiarizeFileRequest(audio=sound[at : at + CHUNK])

        async for answer in jobs.DiarizeFile(file(), metadata=shown):
            if answer.HasField("result"):
                found["file"] = sorted({turn.label for turn in answer.result.turns})

        async def upload():
            yield jobs_pb2.UploadMediaRequest(key="contract/ada")
            yield jobs_pb2.UploadMediaRequest(data=wav(sound))

        await jobs.UploadMedia(upload(), metadata=shown)
        request = jobs_pb2.CreateJobRequest(
            kind=jobs_pb2.CreateJobRequest.KIND_DIARIZE, media_key="contract/ada", options=node_pb2.FileOpen()
        )
        made = await jobs.CreateJob(request, metadata=shown)
        async for job in jobs.WatchJob(jobs_pb2.GetJobRequest(job_id=made.job_id), metadata=shown):
            found["job"] = jobs_pb2.Job.State.Name(job.state)
            if job.state in (jobs_pb2.Job.STATE_SUCCEEDED, jobs_pb2.Job.STATE_FAILED, jobs_pb2.Job.STATE_CANCELED):
                break

        erased = await people.EraseVoice(
            people_pb2.EraseVoiceRequest(voice_id=voice.voice_id, wait_ms=20_000), metadata=shown
        )
        found["erasure"] = people_pb2.Erasure.State.Name(erased.state)
        audit = await audit_pb2_grpc.AuditStub(channel).VerifyAudit(audit_pb2.VerifyAuditRequest(), metadata=shown)
        found["audit"] = audit.ok
        tenants = await admin_pb2_grpc.AdminStub(channel).ListTenants(admin_pb2.ListTenantsRequest(), metadata=shown)
        found["tenants"] = len(tenants.tenants)
    print(json.dumps(found))


def wav(sound: bytes) -> bytes:
    rate = (16_000).to_bytes(4, "little")
    head = b"WAVEfmt \x10\0\0\0\x01\0\x01\0" + rate + (32_000).to_bytes(4, "little") + b"\x02\0\x10\0data"
    return b"RIFF" + (36 + len(sound)).to_bytes(4, "little") + head + len(sound).to_bytes(4, "little") + sound


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
