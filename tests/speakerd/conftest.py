"""A control plane and a node that do what they are told, for testing the client and the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from grpc import aio

from runtime.errors import SpeakerdError
from runtime.grpc_server import bearer, new_server
from speakerd.v1 import (
    common_pb2,
    jobs_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    people_pb2,
    people_pb2_grpc,
    streams_pb2,
    streams_pb2_grpc,
)


@dataclass
class Script:
    """What the fakes answer, and what they were asked."""

    address: str = ""
    keys: list[str | None] = field(default_factory=list)
    raises: SpeakerdError | None = None
    opens: list[node_pb2.StreamOpen] = field(default_factory=list)
    open_failures: list[SpeakerdError] = field(default_factory=list)
    placements: list[streams_pb2.PlaceStreamRequest] = field(default_factory=list)
    audio: bytearray = field(default_factory=bytearray)
    fail_after_bytes: int | None = None
    events: list[node_pb2.DiarizeResponse] = field(default_factory=list)
    voices: dict[str, people_pb2.Voice] = field(default_factory=dict)
    clips: dict[int, bytearray] = field(default_factory=dict)
    spec: people_pb2.VoiceSpec | None = None
    file: bytearray = field(default_factory=bytearray)


class People(people_pb2_grpc.PeopleServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def EnrollVoice(self, request_iterator: Any, context: Any) -> people_pb2.EnrollVoiceResponse:
        self.script.keys.append(bearer(context))
        async for request in request_iterator:
            if request.HasField("spec"):
                self.script.spec = request.spec
            else:
                self.script.clips.setdefault(request.chunk.clip, bytearray()).extend(request.chunk.data)
        if self.script.raises:
            raise self.script.raises
        assert self.script.spec is not None
        voice = people_pb2.Voice(
            voice_id=self.script.spec.voice_id or f"v{len(self.script.voices)}",
            label=self.script.spec.label,
            state=people_pb2.Voice.STATE_READY,
        )
        self.script.voices[voice.voice_id] = voice
        return people_pb2.EnrollVoiceResponse(voice=voice, enrolled_on=["node-0"])

    async def ListVoices(self, request: Any, context: Any) -> people_pb2.ListVoicesResponse:
        self.script.keys.append(bearer(context))
        if self.script.raises:
            raise self.script.raises
        found = [voice for voice in self.script.voices.values() if request.label in ("", voice.label)]
        at = int(request.page_token or 0)
        return people_pb2.ListVoicesResponse(
            voices=found[at : at + 2], next_page_token=str(at + 2) if len(found) > at + 2 else ""
        )

    async def GetVoice(self, request: Any, context: Any) -> people_pb2.Voice:
        from runtime.errors import NotFound

        if request.voice_id not in self.script.voices:
            raise NotFound("no such voice")
        return self.script.voices[request.voice_id]

    async def EraseVoice(self, request: Any, context: Any) -> people_pb2.Erasure:
        del self.script.voices[request.voice_id]
        state = people_pb2.Erasure.STATE_ERASED if request.wait_ms else people_pb2.Erasure.STATE_ERASING
        return people_pb2.Erasure(audit_id="audit-1", voice_id=request.voice_id, state=state)

    async def GetErasure(self, request: Any, context: Any) -> people_pb2.Erasure:
        return people_pb2.Erasure(audit_id=request.audit_id, state=people_pb2.Erasure.STATE_ERASED)

    async def GetWarm(self, request: Any, context: Any) -> people_pb2.WarmStatus:
        return people_pb2.WarmStatus()

    async def WarmVoice(self, request: Any, context: Any) -> people_pb2.WarmStatus:
        return people_pb2.WarmStatus()

    async def ReportMatches(self, request_iterator: Any, context: Any) -> people_pb2.ReportMatchesResponse:
        return people_pb2.ReportMatchesResponse()


class Streams(streams_pb2_grpc.StreamsServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    async def PlaceStream(self, request: Any, context: Any) -> streams_pb2.PlaceStreamResponse:
        self.script.keys.append(bearer(context))
        self.script.placements.append(request)
        if self.script.raises:
            raise self.script.raises
        number = len(self.script.placements)
        return streams_pb2.PlaceStreamResponse(
            stream_id="s", node_id=f"node-{number}", address=self.script.address, ticket=f"ticket-{number}"
        )


class Node(node_pb2_grpc.NodeServicer):
    """Echoes what it is told to, once sound has come."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def Diarize(self, request_iterator: Any, context: Any) -> AsyncIterator[node_pb2.DiarizeResponse]:
        script = self.script
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            if kind == "open":
                script.opens.append(request.open)
                if script.open_failures:
                    raise script.open_failures.pop(0)
                yield node_pb2.DiarizeResponse(opened=node_pb2.StreamOpened(stream_id="s", node_id="node-1"))
            elif kind == "audio":
                script.audio += request.audio
                if script.fail_after_bytes is not None and len(script.audio) >= script.fail_after_bytes:
                    assert script.raises is not None
                    raise script.raises
            else:
                for event in script.events:
                    yield event
                yield node_pb2.DiarizeResponse(closed=node_pb2.StreamClosed(duration_ms=len(script.audio) // 32))
                return

    async def DiarizeFile(self, request_iterator: Any, context: Any) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        async for request in request_iterator:
            self.script.file += request.audio
        if self.script.raises:
            raise self.script.raises
        yield node_pb2.DiarizeFileResponse(progress=node_pb2.FileProgress(processed_ms=500, duration_ms=1000))
        turn = common_pb2.Turn(start_ms=0, end_ms=1000, speaker="spk_0", label="alice", voice_id="v0")
        yield node_pb2.DiarizeFileResponse(
            result=node_pb2.FileResult(turns=[turn], exclusive_turns=[turn], duration_ms=1000)
        )

    async def Enroll(self, request: Any, context: Any) -> node_pb2.EnrollResponse:
        self.script.clips[0] = bytearray(request.clip.data)
        return node_pb2.EnrollResponse(generation=1)

    async def Evict(self, request: Any, context: Any) -> node_pb2.EvictResponse:
        return node_pb2.EvictResponse(was_held=True)

    async def Analyze(self, request: Any, context: Any) -> node_pb2.AnalyzeResponse:
        return node_pb2.AnalyzeResponse()

    async def Inventory(self, request: Any, context: Any) -> AsyncIterator[node_pb2.InventoryResponse]:
        yield node_pb2.InventoryResponse()

    async def Describe(self, request: Any, context: Any) -> node_pb2.DescribeResponse:
        return node_pb2.DescribeResponse(node_id="node-1", standalone=True)

    async def Drain(self, request: Any, context: Any) -> node_pb2.DrainResponse:
        return node_pb2.DrainResponse()


class Jobs(jobs_pb2_grpc.JobsServicer):
    def __init__(self, node: Node) -> None:
        self.node = node

    async def DiarizeFile(self, request_iterator: Any, context: Any) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        async for response in self.node.DiarizeFile(request_iterator, context):
            yield response

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(name)

    async def UploadMedia(self, request_iterator: Any, context: Any) -> Any: ...
    async def CreateJob(self, request: Any, context: Any) -> Any: ...
    async def GetJob(self, request: Any, context: Any) -> Any: ...
    async def ListJobs(self, request: Any, context: Any) -> Any: ...
    async def CancelJob(self, request: Any, context: Any) -> Any: ...
    async def WatchJob(self, request: Any, context: Any) -> Any: ...


async def serve(script: Script) -> aio.Server:
    """Control plane and node in one server, at script.address."""
    server = new_server()
    node = Node(script)
    people_pb2_grpc.add_PeopleServicer_to_server(People(script), server)
    streams_pb2_grpc.add_StreamsServicer_to_server(Streams(script), server)
    node_pb2_grpc.add_NodeServicer_to_server(node, server)
    jobs_pb2_grpc.add_JobsServicer_to_server(Jobs(node), server)
    script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    return server


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """The fakes, served on this test's event loop."""
    made = Script()
    server = await serve(made)
    try:
        yield made
    finally:
        await server.stop(None)
