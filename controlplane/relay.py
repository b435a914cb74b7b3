"""A recording's way through the control plane: decoded here in the sandbox, analysed on a node.

In: the requests of Jobs.DiarizeFile as they arrive. Out: the node's answers. What always holds: no container
reaches a node, a recording never lies whole in memory, voices outside the caller's tenant cannot be asked for, and a
voice whose erasure was asked for leaves under no name.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import numpy as np

from controlplane.arrivals import arriving
from controlplane.fleet import Fleet
from controlplane.intake import CONTAINER
from controlplane.nodes import Nodes
from controlplane.places import Places
from controlplane.policy import Principal, Right, audiences_of
from controlplane.relay_guard import RelayGuard
from controlplane.relay_names import strip_result, voices_in
from controlplane.strangers import seal_strangers
from controlplane.voices import Voices
from runtime.errors import BadAudio, InvalidRequest, Overloaded, Unavailable
from runtime.media import adecode_stream
from runtime.speaker_token import SpeakerSeal
from runtime.units import SAMPLE_RATE_HZ
from speakerd.v1 import common_pb2, node_pb2

RUNNING_MAX = 4 * max(1, os.cpu_count() or 1)
CHUNK_BYTES_MAX = 1 << 20
VOICE_IDS_MAX = 1_000
JobsMax = Callable[[str], Awaitable[int | None]]
"""How many recordings a tenant may have under way; None: as many as it likes."""
FIRST_MESSAGE_S = 30.0


class Relay:
    """Files on their way to nodes."""

    def __init__(
        self,
        fleet: Fleet,
        nodes: Nodes,
        library: Voices,
        guard: RelayGuard,
        *,
        seal: SpeakerSeal | None = None,
        jobs_max: JobsMax | None = None,
    ) -> None:
        self._fleet = fleet
        self._nodes = nodes
        self._library = library
        self._guard = guard
        self._seal = seal
        self._jobs_max = jobs_max
        self._places = Places("recordings", RUNNING_MAX, retry_after_s=5.0)
        self._turn = 0

    def __repr__(self) -> str:
        return f"Relay(running={self._places.num_taken})"

    async def diarize_file(
        self, principal: Principal, requests: AsyncIterator[node_pb2.DiarizeFileRequest]
    ) -> AsyncIterator[node_pb2.DiarizeFileResponse]:
        """Progress, then one result. Raises BadAudio, UnsupportedMedia, TooLarge, NotFound, Overloaded, Unavailable."""
        with self._places.taken(principal.tenant_id):
            await self._require_room(principal.tenant_id)
            opening = await _opening(requests)
            for voice_id in opening.voice_ids:
                await self._library.find(principal, voice_id, Right.USE)
            serving = await self._fleet.serving()
            if not serving:
                raise Unavailable("no node is serving: start one, or try again", retry_after_s=1.0)
            # Nodes refuse files by themselves when they are full; taking turns spreads them well enough.
            self._turn += 1
            lease = serving[self._turn % len(serving)]
            chunks = _chunks(requests)
            is_container = opening.format.encoding == CONTAINER or not opening.HasField("format")
            forwarded = node_pb2.FileOpen()
            forwarded.CopyFrom(opening)
            forwarded.tenant_id = principal.tenant_id
            forwarded.embeddings = opening.embeddings or self._seal is not None
            # Jobs identify: whose voiceprints they are compared with is checked there.
            forwarded.ClearField("identify")
            forwarded.ClearField("job_id")
            del forwarded.audiences[:]
            forwarded.audiences.extend(audiences_of(principal))
            if is_container:
                forwarded.format.CopyFrom(
                    common_pb2.AudioFormat(
                        encoding=common_pb2.ENCODING_PCM_F32LE, sample_rate_hz=SAMPLE_RATE_HZ, channels=1
                    )
                )
            sound = _decoded(chunks) if is_container else chunks
            async with (
                self._guard.relaying() as relaying,
                aclosing(self._nodes.diarize_file(lease.address, forwarded, sound)) as answers,
            ):
                async for answer in answers:
                    if answer.HasField("result"):
                        if self._seal is not None:
                            seal_strangers(
                                answer.result,
                                self._seal,
                                tenant_id=principal.tenant_id,
                                voiceprints_asked=opening.embeddings,
                            )
                        await self._withhold_erased(principal, answer.result)
                        # Last, and without an await before it is written: whatever happened meanwhile counts.
                        relaying.result(answer.result)
                    yield answer

    async def _require_room(self, tenant_id: str) -> None:
        most = None if self._jobs_max is None else await self._jobs_max(tenant_id)
        if most is not None and self._places.taken_by(tenant_id) > most:
            raise Overloaded(
                f"the tenant's quota of {most} recordings at once is used up; try again", retry_after_s=5.0
            )

    async def _withhold_erased(self, principal: Principal, result: node_pb2.FileResult) -> None:
        """Take out who is being erased: a node that froze between its own check and its answer thaws with old names."""
        named = voices_in(result)
        living = await self._library.living(principal, named) if named else set()
        strip_result(result, living.__contains__)


async def _opening(requests: AsyncIterator[node_pb2.DiarizeFileRequest]) -> node_pb2.FileOpen:
    try:
        first = await asyncio.wait_for(anext(requests), FIRST_MESSAGE_S)
    except (StopAsyncIteration, TimeoutError):
        raise InvalidRequest("the first message is `open`; the file's chunks follow") from None
    if not first.HasField("open"):
        raise InvalidRequest("the first message is `open`; the file's chunks follow")
    if len(first.open.voice_ids) > VOICE_IDS_MAX:
        raise InvalidRequest(f"voice_ids: at most {VOICE_IDS_MAX}; empty means all")
    return first.open


async def _chunks(requests: AsyncIterator[node_pb2.DiarizeFileRequest]) -> AsyncIterator[bytes]:
    """The file's bytes. Raises BadAudio when there are none."""
    total_bytes = 0
    async for message in arriving(requests):
        if message.HasField("open"):
            raise InvalidRequest("`open` comes once, first")
        data = message.audio
        if len(data) > CHUNK_BYTES_MAX:
            raise InvalidRequest("a chunk is at most 1 MiB: send more of them")
        total_bytes += len(data)
        yield data
    if total_bytes == 0:
        raise BadAudio("the recording is empty (0 bytes): send the file's content")


async def _decoded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(adecode_stream(chunks)) as blocks:
        async for block in blocks:
            yield np.ascontiguousarray(block, dtype="<f4").tobytes()
