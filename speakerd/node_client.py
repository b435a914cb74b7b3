"""The client of one standalone node: enrol, diarize, stream and evict without a control plane.

In: files, bytes and names. Out: the contract's own messages (`speakerd.v1`). Every call raises SpeakerdError, and
nothing else, when it does not succeed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from speakerd.channel import TlsTrust, credentials, open_channel
from speakerd.connections import Connections
from speakerd.live_stream import LiveStream, open_placed
from speakerd.stream_leg import Place, StreamOptions
from speakerd.uploads import Clip, FileOptions, OnProgress, answer, clip_content, diarized
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc

CALL_BOUND_S = 60.0
RESUME_S_MAX = 10.0
"""A broken connection is back within seconds; a node that is not has restarted, and reads no checkpoint of before."""

AnswerT = TypeVar("AnswerT")


class NodeClient:
    """One standalone node, straight. address: "host:port" of its gRPC. tls: whose certificates to trust."""

    def __init__(self, address: str, key: str | None = None, *, tls: TlsTrust | None = None) -> None:
        self._address = address
        self._place = Place(address, key=key, tls=tls)
        self._metadata = credentials(key)
        self._channel = open_channel(address, tls)
        self._connections = Connections()
        self._node = node_pb2_grpc.NodeStub(self._channel)

    def __repr__(self) -> str:
        return f"NodeClient({self._address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up. Streams are closed by themselves, before."""
        await self._connections.close()
        await self._channel.close()

    async def describe(self) -> node_pb2.DescribeResponse:
        """What the node is and how loaded."""
        return await self._ask(
            self._node.Describe(node_pb2.DescribeRequest(), metadata=self._metadata, timeout=CALL_BOUND_S)
        )

    async def enroll(self, voice_id: str, clip: Clip, *, label: str = "") -> node_pb2.EnrollResponse:
        """Hold a voice, heard in a recording. label: what turns say; empty: the voice id."""
        request = node_pb2.EnrollRequest(
            voice=common_pb2.VoiceRef(voice_id=voice_id),
            label=label,
            clip=common_pb2.AudioClip(
                format=common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER), data=await clip_content(clip)
            ),
        )
        return await self._ask(self._node.Enroll(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def evict(self, voice_id: str) -> node_pb2.EvictResponse:
        """Forget a voice."""
        request = node_pb2.EvictRequest(voice=common_pb2.VoiceRef(voice_id=voice_id))
        return await self._ask(self._node.Evict(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def diarize_file(
        self, recording: Clip, options: FileOptions | None = None, *, on_progress: OnProgress | None = None
    ) -> node_pb2.FileResult:
        """Diarize a recording while waiting. A file is uploaded as it is read."""
        return await diarized(
            self._node.DiarizeFile,
            recording,
            options or FileOptions(),
            on_progress,
            metadata=self._metadata,
            peer=self._address,
        )

    async def open_stream(self, options: StreamOptions | None = None) -> LiveStream:
        """Open a live stream on this node. It outlives its connection, for RESUME_S_MAX at most, but not the node."""
        options = options or StreamOptions()
        return await open_placed(
            replace(options, resume_s=min(options.resume_s, RESUME_S_MAX)),
            self._here,
            self._connections,
            is_only_node=True,
        )

    async def _here(self, options: StreamOptions, avoid: Sequence[str], bound_s: float) -> Place:
        return replace(self._place, stream_id=options.stream_id)

    async def _ask(self, call: Awaitable[AnswerT]) -> AnswerT:
        return await answer(call, peer=self._address)
