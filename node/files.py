"""Recordings: a slot each, their windows at low priority beside live streams, one result at the end.

In: a peer's messages. Out: progress once a second, then who spoke when, with names. What always holds: sound is read
only as fast as the device has room for it, and not kept; a recording is bounded in length, and so is what is kept of
its windows; nobody's windows are analysed who has gone away; names are looked up as the result is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from models.analysis import FloatArray
from models.diarize import Diarization, FileCollector, SpeakerTurn, speaker_bounds
from models.online import SessionSpeaker
from models.seams import SlotKind
from node import events
from node.batcher import Batcher
from node.decoders import Decoders
from node.engine import Engine
from node.file_naming import FileNaming
from node.intake import Intake
from node.metrics import NodeMetrics
from node.naming import Name
from node.session import WRITE_BOUND_S, first_error
from node.slots import SlotTable
from node.source import Source
from node.standing import Standing
from node.streams import OPEN_BOUND_S
from node.voice_store import VoiceStore
from runtime.clock import Clock
from runtime.errors import InvalidRequest, SpeakerdError, TimedOut, Unavailable
from runtime.logs import get_logger
from runtime.units import samples_from_seconds

FILE_S_MAX = 24 * 3600.0
"""What is kept of a recording grows with its length (some 20 MB an hour), so that is bounded."""
PROGRESS_S = 1.0


class FilePeer(Protocol):
    """The other end of a file."""

    async def receive(self) -> events.FileRequest | bytes | None:
        """The next message; None when the other end sends no more."""
        ...

    async def send(self, event: events.FileProgress | events.FileResult) -> None:
        """Tell the other end."""
        ...


class FileRuns:
    """All recordings that a node works on."""

    def __init__(
        self,
        *,
        engine: Engine,
        batcher: Batcher,
        store: VoiceStore,
        standing: Standing,
        slots: SlotTable,
        decoders: Decoders,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._naming = FileNaming(store, standing, engine.naming)
        self._standing = standing
        self._slots = slots
        self._decoders = decoders
        self._metrics = metrics
        self._clock = clock
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        metrics.files_limit.set(slots.count)

    def __repr__(self) -> str:
        return f"FileRuns({self._slots!r})"

    async def serve(self, peer: FilePeer) -> None:
        """Diarize one recording, from its opening to its result."""
        try:
            request = await self._admit(peer)
            slot = self._slots.take()
        except SpeakerdError as error:
            self._metrics.rejected.labels(error.cause.value).inc()
            raise
        self._metrics.files_active.inc()
        get_logger().info("file.opened", job_id=request.job_id or None, tenant_id=request.tenant_id)
        end = "closed"
        try:
            with self._decoders.place(request.sound):
                kind = SlotKind.FAST_FILE if request.fast else SlotKind.FILE
                source = await self._batcher.open(slot, kind=kind)
                await self._run(request, peer, source, self._engine.collector(kind))
        except SpeakerdError as error:
            end = error.cause.value
            raise
        except BaseException as error:
            end = "cancelled" if isinstance(error, asyncio.CancelledError) else "internal"
            raise
        finally:
            self._slots.release(slot)
            self._batcher.close(slot)
            self._metrics.files_active.dec()
            get_logger().info("file.ended", job_id=request.job_id or None, reason=end)
            self._changed.set()

    async def drained(self, deadline_s: float) -> None:
        """Wait up to deadline_s seconds for recordings to end; those that have not are ended as UNAVAILABLE."""
        try:
            async with asyncio.timeout(deadline_s):
                while self._slots.num_taken:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            get_logger().info("files.cut", files=self._slots.num_taken)
            self._stopping.set()

    async def _admit(self, peer: FilePeer) -> events.FileRequest:
        try:
            async with asyncio.timeout(OPEN_BOUND_S):
                request = await peer.receive()
        except TimeoutError:
            raise TimedOut(f"nothing came for {OPEN_BOUND_S:g} s: send `open` first") from None
        if not isinstance(request, events.FileRequest):
            raise InvalidRequest("the first message of a recording has to be `open`")
        if not request.tenant_id and self._standing.lease is not None:
            raise InvalidRequest("tenant_id: say whose voices are to be matched")
        speaker_bounds(request.num_speakers, request.min_speakers, request.max_speakers)
        dim = self._engine.device.grid.embedding_dim
        sent = () if request.identify is None else request.identify.sent
        if any(one.embedding is not None and len(one.embedding) != dim for one in sent):
            raise InvalidRequest(f"identify.voiceprints: an embedding of this model has {dim} numbers")
        self._standing.require_serving()
        return request

    async def _run(self, request: events.FileRequest, peer: FilePeer, source: Source, file: FileCollector) -> None:
        intake = Intake(
            peer,
            source,
            request.sound,
            piece_samples=source.grid.hop_samples,
            samples_max=samples_from_seconds(FILE_S_MAX),
        )
        collected = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                stopping = tasks.create_task(self._until_stopping(), name="file-stop")
                tasks.create_task(intake.run(), name="file-read")
                tasks.create_task(self._tell(peer, request, source, intake, collected), name="file-progress")
                found = await self._diarization(request, source, intake, file)
                collected.set()
                stopping.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        # Names are decided when nothing is left to wait for: an erasure in the meantime is not overtaken.
        await _send(peer, await self._named(found, request, intake.received_samples))

    async def _until_stopping(self) -> None:
        await self._stopping.wait()
        raise Unavailable("this node is stopping: send the recording to another", retry_after_s=1.0)

    async def _tell(
        self, peer: FilePeer, request: events.FileRequest, source: Source, intake: Intake, collected: asyncio.Event
    ) -> None:
        """Progress once a second, also while the device is busy with others, and while the windows are clustered."""
        while not collected.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_S):
                    await collected.wait()
                    return
            processed = min(source.analysed, intake.received_samples)
            await _send(peer, events.FileProgress(processed, request.duration_samples))

    async def _diarization(
        self, request: events.FileRequest, source: Source, intake: Intake, file: FileCollector
    ) -> Diarization:
        while analyses := await source.take():
            file.add(analyses)
        bounds = speaker_bounds(request.num_speakers, request.min_speakers, request.max_speakers)
        parts = await asyncio.to_thread(file.parts, bounds)
        cosines = await self._naming.cosines(parts, request)
        return await asyncio.to_thread(file.finish, intake.received_samples, bounds, cosines)

    async def _named(self, found: Diarization, request: events.FileRequest, duration: int) -> events.FileResult:
        """The result with the names that may be said now."""
        speakers = [
            SessionSpeaker(index, heard.embedding, heard.net_speech_samples)
            for index, heard in enumerate(found.speakers)
        ]
        decided = await self._naming.decide(speakers, request)
        self._metrics.matched(decided.matches.values())
        names = decided.names
        speech: dict[int, int] = {}
        for turn in found.turns:
            speech[turn.speaker] = speech.get(turn.speaker, 0) + turn.end_samples - turn.start_samples
        return events.FileResult(
            turns=_pieces(found.turns, names),
            exclusive_turns=_pieces(found.exclusive, names),
            speakers=tuple(
                events.SpeakerSummary(
                    speaker.index,
                    names[speaker.index],
                    speech.get(speaker.index, 0),
                    speaker.clean_samples,
                    decided.matches[speaker.index],
                    found.speakers[speaker.index].confidence,
                    self._voiceprint(speaker.centroid) if request.embeddings else None,
                )
                for speaker in speakers
            ),
            duration_samples=duration,
            warnings=() if found.turns else ("no speech was heard in the recording",),
            confidence=found.confidence if request.frame_confidence else None,
            identities=decided.identities,
        )

    def _voiceprint(self, embedding: FloatArray) -> events.SpeakerPrint | None:
        if not embedding.any():
            return None
        return events.SpeakerPrint(self._engine.model, embedding.astype("<f4").tobytes())


def _pieces(turns: Sequence[SpeakerTurn], names: dict[int, Name | None]) -> tuple[events.TurnPiece, ...]:
    return tuple(
        events.TurnPiece(
            turn.start_samples,
            turn.end_samples,
            turn.speaker,
            names[turn.speaker],
            final=True,
            sequence=number,
            confidence=turn.confidence,
        )
        for number, turn in enumerate(turns, start=1)
    )


async def _send(peer: FilePeer, event: events.FileProgress | events.FileResult) -> None:
    try:
        async with asyncio.timeout(WRITE_BOUND_S):
            await peer.send(event)
    except TimeoutError:
        raise TimedOut(f"results were not read for {WRITE_BOUND_S:g} s: read while you send") from None
