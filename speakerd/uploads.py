"""Recordings on their way to a daemon, piece by piece, and the result on its way back.

In: paths or bytes, and what is to be done with them. Out: the contract's requests, and what came of them. What always
holds: a file of whatever length never lies whole in memory, nor is it read faster than it is taken; one that cannot be
read is told of before anything was sent; whatever else goes wrong comes out as SpeakerdError.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

from grpc import aio

from speakerd.errors import SpeakerdError, error_from_status, was_lost
from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2, people_pb2

Clip: TypeAlias = Path | bytes
"""A recording: the path of a file, or the bytes of one."""

OnProgress: TypeAlias = Callable[[node_pb2.FileProgress], None]

CHUNK_BYTES = 256 * 1024
CLIP_BYTES_MAX = 32 << 20
AGAIN_S = 0.2

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How a recording is to be diarized. Zero and empty mean the contract's defaults.

    embeddings: give each speaker's voiceprint. on_confidence: called with pieces of the confidence of each frame, in
    order, before the result.
    """

    mode: node_pb2.FileOpen.Mode.ValueType = node_pb2.FileOpen.MODE_UNSPECIFIED
    num_speakers: int = 0
    min_speakers: int = 0
    max_speakers: int = 0
    voice_ids: tuple[str, ...] = ()
    embeddings: bool = False
    on_confidence: Callable[[node_pb2.FileConfidence], None] | None = None


async def answer(call: Awaitable[AnswerT], *, peer: str) -> AnswerT:
    """What a call answers. Raises SpeakerdError. peer: whom it went to."""
    try:
        return await call
    except aio.AioRpcError as error:
        raise error_from_status(error, peer=peer) from None
    except aio.UsageError:
        raise SpeakerdError("stale", "the client was closed: open another") from None


async def answer_again(make: Callable[[], Awaitable[AnswerT]], *, peer: str) -> AnswerT:
    """The same for a call that may be made twice: once more where its daemon went away under it, as one that restarts.

    Of several daemons behind one name another one answers then.
    """
    try:
        return await make()
    except aio.AioRpcError as error:
        if not was_lost(error):
            raise error_from_status(error, peer=peer) from None
    except aio.UsageError:
        raise SpeakerdError("stale", "the client was closed: open another") from None
    await asyncio.sleep(AGAIN_S)
    return await answer(make(), peer=peer)


async def clip_content(clip: Clip) -> bytes:
    """A short recording whole. Raises SpeakerdError over CLIP_BYTES_MAX, before more than that was read."""
    async with opened(clip) as recording:
        content = await recording.read(CLIP_BYTES_MAX + 1)
    if len(content) > CLIP_BYTES_MAX:
        raise SpeakerdError("too_large", f"a recording is over {CLIP_BYTES_MAX >> 20} MiB: 5 to 30 s are enough")
    return content


async def diarized(
    method: Any,
    recording: Clip,
    options: FileOptions,
    on_progress: OnProgress | None,
    *,
    metadata: Sequence[tuple[str, str]],
    peer: str,
) -> node_pb2.FileResult:
    """Upload a recording to one of the contract's DiarizeFile methods, as fast as it is taken, and wait for the result.

    Raises SpeakerdError.
    """
    async with opened(recording) as file:
        call = keep_status(method(_file_requests(file, options), metadata=metadata))
        try:
            return await _file_result(call, options, on_progress, peer=peer)
        except (SpeakerdError, asyncio.CancelledError):
            # gRPC cancels a call whose requests fail to come: the reason for that is the one to tell.
            if file.failure is not None:
                raise file.failure from None
            raise
        finally:
            call.cancel()


class OpenRecording:
    """A recording that is being read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.failure: SpeakerdError | None = None

    def __repr__(self) -> str:
        return f"OpenRecording({self._name})"

    async def read(self, num_bytes: int) -> bytes:
        """So many bytes, fewer at the end. Raises SpeakerdError where they cannot be read."""
        try:
            return await asyncio.to_thread(self._file.read, num_bytes)
        except OSError as error:
            self.failure = _unreadable(self._name, error)
            raise self.failure from None

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, in pieces for one message each; one that is empty, if it is."""
        piece = await self.read(CHUNK_BYTES)
        while True:
            yield piece
            piece = await self.read(CHUNK_BYTES)
            if not piece:
                return


@asynccontextmanager
async def opened(clip: Clip) -> AsyncIterator[OpenRecording]:
    """A recording, opened for reading. Raises SpeakerdError where it cannot be."""
    if isinstance(clip, bytes):
        yield OpenRecording(io.BytesIO(clip), "a recording")
        return
    try:
        file = await asyncio.to_thread(clip.open, "rb")
    except OSError as error:
        raise _unreadable(str(clip), error) from None
    try:
        yield OpenRecording(file, str(clip))
    finally:
        await asyncio.to_thread(file.close)


async def enrolment(
    spec: people_pb2.VoiceSpec,
    clips: Sequence[bytes],
    consent: bytes | None,
    on_sent: Callable[[int, int], None] = lambda _sent, _all: None,
) -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
    """The requests of an enrolment. on_sent: told how many bytes have gone out, of how many."""
    yield people_pb2.EnrollVoiceRequest(spec=spec)
    container = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER)
    spoken = [*((clip, False) for clip in clips), *([(consent, True)] if consent is not None else [])]
    sent, whole = 0, sum(len(clip) for clip, _ in spoken)
    for number, (clip, is_consent) in enumerate(spoken):
        for at in range(0, max(len(clip), 1), CHUNK_BYTES):
            chunk = people_pb2.ClipChunk(
                clip=number, format=container, data=clip[at : at + CHUNK_BYTES], is_consent=is_consent
            )
            yield people_pb2.EnrollVoiceRequest(chunk=chunk)
            sent += len(chunk.data)
            on_sent(sent, whole)


async def _file_requests(file: OpenRecording, options: FileOptions) -> AsyncIterator[node_pb2.DiarizeFileRequest]:
    yield node_pb2.DiarizeFileRequest(
        open=node_pb2.FileOpen(
            format=common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER),
            mode=options.mode,
            num_speakers=options.num_speakers,
            min_speakers=options.min_speakers,
            max_speakers=options.max_speakers,
            voice_ids=options.voice_ids,
            embeddings=options.embeddings,
            frame_confidence=options.on_confidence is not None,
        )
    )
    async for piece in file.pieces():
        yield node_pb2.DiarizeFileRequest(audio=piece)


async def _file_result(
    call: Any, options: FileOptions, on_progress: OnProgress | None, *, peer: str
) -> node_pb2.FileResult:
    result: node_pb2.FileResult | None = None
    try:
        async for response in call:
            match response.WhichOneof("message"):
                case "result":
                    if result is None:
                        result = node_pb2.FileResult()
                    result.MergeFrom(response.result)
                case "progress" if on_progress is not None:
                    on_progress(response.progress)
                case "confidence" if options.on_confidence is not None:
                    options.on_confidence(response.confidence)
    except aio.AioRpcError as error:
        raise error_from_status(error, peer=peer) from None
    if result is None:
        raise SpeakerdError("internal", f"{peer} ended the call without a result: see its log")
    return result


def _unreadable(name: str, error: OSError) -> SpeakerdError:
    return SpeakerdError("invalid", f"cannot read {name}: {(error.strerror or 'failed').lower()}")
