"""One job, from its claim to what it gave: the recording is fetched, decoded in the sandbox, and heard by a node.

In: a claim, and where to note progress. Out: a record, or an error by cause. What always holds: no byte of the
recording is interpreted in this process, none of it lies whole in memory, and nothing of it is written but as
ciphertext; when the run is cancelled, decoder and node stop at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

import numpy as np

from controlplane.fleet import Fleet
from controlplane.guarded_http import GuardedHttp
from controlplane.holdings import Print
from controlplane.job_record import JobRecord, without_names
from controlplane.job_rows import Claim
from controlplane.job_spec import JobKind, JobSpec, MediaUrl
from controlplane.job_view import FrameConfidences
from controlplane.leases import Lease
from controlplane.media_store import BYTES_MAX, MediaStore, OpenMedia
from controlplane.nodes import Nodes
from controlplane.policy import Principal, audiences_of
from controlplane.registry import Registry
from controlplane.tenant_seals import TenantSeals
from controlplane.voiceprint_blobs import open_print, seal_print
from runtime.errors import BadAudio, NotFound, Overloaded, SpeakerdError, TooLarge, Unavailable
from runtime.media import MediaLimits, SourceFormat, adecode, adecode_stream
from runtime.media.report import FloatArray
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples
from speakerd.v1 import common_pb2, node_pb2

RECORDING = MediaLimits(bytes_max=BYTES_MAX)
VOICEPRINT_BYTES_MAX = 100 << 20
NODE_SILENT_S = 60.0
"""A node says once a second how far it is; one that says nothing for so long is given up."""
FETCH_S_MAX = 3600.0
PLENTY = 1_000
"""Room of a node that does not say how much it has."""
GONE = "the recording is not in the media store any more: upload it again; recordings are kept for 24 h"
OTHER_MODEL = "{which}: of another model than the node that heard the recording, so it matched nobody"
SEVERAL = "more than one speaker was heard: the voiceprint is of the one who speaks most"


class NoNode(Unavailable):
    """Nobody could take it: no node serves, or all are full. Not the job's fault, nor anybody's."""


@dataclass(slots=True)
class Progress:
    """How far a run is, milliseconds; written by the run, read by whoever tells. media_id: once it was fetched."""

    processed_ms: int = 0
    duration_ms: int = 0
    media_id: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a run gave."""

    record: JobRecord
    duration_ms: int
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Heard:
    """A node's answers, put together."""

    result: node_pb2.FileResult = field(default_factory=node_pb2.FileResult)
    has_result: bool = False
    frame_ms: int = 0
    confidence: bytearray = field(default_factory=bytearray)


class JobRunner:
    """Runs jobs."""

    def __init__(
        self,
        *,
        media: MediaStore,
        http: GuardedHttp,
        fleet: Fleet,
        nodes: Nodes,
        registry: Registry,
        voiceprint_s_max: float,
    ) -> None:
        self._media = media
        self._http = http
        self._fleet = fleet
        self._nodes = nodes
        self._registry = registry
        self._voiceprint_s_max = voiceprint_s_max
        self._turn = 0
        self._under_way: Counter[str] = Counter()

    def __repr__(self) -> str:
        return "JobRunner()"

    @property
    def num_under_way(self) -> int:
        """Recordings that nodes hear for us."""
        return self._under_way.total()

    async def room(self) -> int | None:
        """How many more recordings nodes would take, as far as is known; None while no node is serving."""
        serving = await self._fleet.serving()
        rooms = await self._rooms()
        return sum(rooms.get(lease.address, PLENTY) for lease in serving) if serving else None

    async def _rooms(self) -> dict[str, int]:
        """Free places by address, of nodes that say how many they have. What is under way may not be told of yet."""
        return {
            view.address: max(0, view.files_max - max(view.files, self._under_way[view.address]))
            for view in await self._registry.known(fresh=False)
            if view.files_max
        }

    async def run(self, claimed: Claim, spec: JobSpec, seals: TenantSeals, progress: Progress) -> Done:
        """What the job gave. Raises SpeakerdError by cause; NoNode where it should only wait."""
        principal = Principal(claimed.tenant_id, claimed.key_id, frozenset(), claimed.user_id)
        serving = await self._fleet.serving()
        if not serving:
            raise NoNode("no node is serving")
        if progress.media_id is None:
            assert isinstance(spec.source, MediaUrl), "a job without a url is made with its recording"
            progress.media_id = await self._fetch(principal, spec.source.url)
        if spec.kind is JobKind.VOICEPRINT:
            return await self._voiceprint(claimed.tenant_id, seals, progress, serving)
        prints = [
            open_print(seals, sent.blob, field=f"voiceprints.{index}.voiceprint")
            for index, sent in enumerate(spec.voiceprints)
        ]
        refused: SpeakerdError = NoNode("no node has room")
        rooms = await self._rooms()
        for lease in self._in_order(serving, prints):
            # Before the recording is unpacked for a node that would not take it.
            if rooms.get(lease.address, PLENTY) <= 0:
                continue
            self._under_way[lease.address] += 1
            try:
                heard = await self._heard(lease, principal, spec, prints, progress, job_id=claimed.job_id)
            except Overloaded as error:
                refused = NoNode(str(error))
                continue
            finally:
                self._under_way[lease.address] -= 1
            return _done(heard, spec, prints, lease.model)
        raise refused

    async def _fetch(self, principal: Principal, url: str) -> str:
        try:
            async with asyncio.timeout(FETCH_S_MAX), self._http.stream(url, bytes_max=BYTES_MAX) as (chunks, said):
                return await self._media.keep(principal, chunks, said)
        except TimeoutError:
            raise BadAudio(f"the url did not give its content within {FETCH_S_MAX:g} s") from None

    async def _voiceprint(self, tenant_id: str, seals: TenantSeals, progress: Progress, serving: list[Lease]) -> Done:
        media = await self._open(tenant_id, progress)
        if media.size_bytes > VOICEPRINT_BYTES_MAX:
            raise TooLarge(f"a recording for a voiceprint is at most {VOICEPRINT_BYTES_MAX >> 20} MiB")
        # A second more: what is a little too long is told so in our words.
        limits = MediaLimits(
            bytes_max=VOICEPRINT_BYTES_MAX, seconds_max=self._voiceprint_s_max + 1, cpu_s_max=60, wait_s_max=120
        )
        async with aclosing(media.chunks):
            sound = await adecode(media.chunks, limits=limits)
        if sound.duration_s > self._voiceprint_s_max:
            raise TooLarge(
                f"a recording for a voiceprint is at most {self._voiceprint_s_max:g} s of one speaker: cut it"
            )
        lease = self._in_order(serving, [])[0]
        try:
            heard = await self._nodes.analyze(lease.address, [sound.samples.astype("<f4").tobytes()])
        except Overloaded as error:
            raise NoNode(str(error)) from None
        if not heard.voiceprint.embedding or not heard.num_speakers:
            raise BadAudio("no speech was heard in the recording: send one in which one person speaks")
        duration_ms = heard.duration_ms
        result = node_pb2.FileResult(duration_ms=duration_ms, warnings=heard.warnings)
        if heard.num_speakers > 1:
            result.warnings.append(SEVERAL)
        return Done(JobRecord(result, voiceprint=seal_print(seals, heard.voiceprint)), duration_ms)

    async def _heard(
        self,
        lease: Lease,
        principal: Principal,
        spec: JobSpec,
        prints: list[Print],
        progress: Progress,
        *,
        job_id: str,
    ) -> _Heard:
        """What one node makes of the recording."""
        media = await self._open(principal.tenant_id, progress)
        source: list[SourceFormat] = []
        async with (
            aclosing(media.chunks),
            aclosing(adecode_stream(media.chunks, limits=RECORDING, on_source=source.append)) as blocks,
        ):
            # The first block tells how long it is, which the node is told before any sound.
            first = await anext(blocks, None)
            if first is None:
                raise BadAudio("there is no sound in the recording")
            progress.duration_ms = round(source[0].declared_s * 1000) if source else 0
            opening = _opening(principal, spec, prints, progress.duration_ms)
            opening.job_id = job_id
            heard = _Heard()
            sound = _pcm(first, blocks, progress)
            async with aclosing(self._nodes.diarize_file(lease.address, opening, sound)) as answers:
                while (answer := await _next(answers)) is not None:
                    _take(answer, heard, progress)
        if not heard.has_result:
            raise Unavailable("the node ended without a result")
        return heard

    async def _open(self, tenant_id: str, progress: Progress) -> OpenMedia:
        assert progress.media_id is not None
        try:
            return await self._media.open_id(tenant_id, progress.media_id)
        except NotFound:
            raise NotFound(GONE) from None

    def _in_order(self, serving: list[Lease], prints: list[Print]) -> list[Lease]:
        """Nodes to try: those whose model most of the voiceprints are of first, and each in its turn."""
        self._turn += 1
        turned = serving[self._turn % len(serving) :] + serving[: self._turn % len(serving)]
        return sorted(turned, key=lambda lease: -sum(one.model == lease.model for one in prints))


async def _next(answers: AsyncIterator[node_pb2.DiarizeFileResponse]) -> node_pb2.DiarizeFileResponse | None:
    try:
        async with asyncio.timeout(NODE_SILENT_S):
            return await anext(answers, None)
    except TimeoutError:
        raise Unavailable("the node went silent") from None


def _take(answer: node_pb2.DiarizeFileResponse, heard: _Heard, progress: Progress) -> None:
    match answer.WhichOneof("message"):
        case "progress":
            progress.processed_ms = answer.progress.processed_ms
        case "confidence":
            heard.frame_ms = answer.confidence.frame_ms
            heard.confidence += answer.confidence.values
        case "result":
            # Of a long recording it comes in pieces.
            heard.has_result = True
            heard.result.MergeFrom(answer.result)


async def _pcm(first: FloatArray, blocks: AsyncIterator[FloatArray], progress: Progress) -> AsyncIterator[bytes]:
    samples = 0
    async for block in _chained(first, blocks):
        samples += len(block)
        progress.duration_ms = max(progress.duration_ms, round(seconds_from_samples(samples) * 1000))
        yield np.ascontiguousarray(block, dtype="<f4").tobytes()


async def _chained(first: FloatArray, blocks: AsyncIterator[FloatArray]) -> AsyncIterator[FloatArray]:
    yield first
    async for block in blocks:
        yield block


def _opening(principal: Principal, spec: JobSpec, prints: list[Print], duration_ms: int) -> node_pb2.FileOpen:
    opening = node_pb2.FileOpen(
        tenant_id=principal.tenant_id,
        format=common_pb2.AudioFormat(
            encoding=common_pb2.ENCODING_PCM_F32LE, sample_rate_hz=SAMPLE_RATE_HZ, channels=1
        ),
        duration_ms=duration_ms,
        num_speakers=spec.num_speakers or 0,
        min_speakers=spec.min_speakers or 0,
        max_speakers=spec.max_speakers or 0,
        voice_ids=spec.voice_ids,
        mode=node_pb2.FileOpen.MODE_FAST if spec.fast else node_pb2.FileOpen.MODE_UNSPECIFIED,
        frame_confidence=spec.confidence,
        audiences=audiences_of(principal),
    )
    if spec.kind is JobKind.IDENTIFY:
        del opening.voice_ids[:]
        opening.voice_ids.extend(() if spec.matching.everybody else spec.matching.speakers)
        opening.identify.CopyFrom(
            node_pb2.FileIdentify(
                voiceprints=[
                    common_pb2.Voiceprint(model=one.model, embedding=one.embedding, net_speech_ms=one.net_speech_ms)
                    for one in prints
                ],
                enrolled=spec.matching.is_enrolled,
                exclusive=spec.matching.exclusive,
                threshold=spec.matching.threshold,
            )
        )
    return opening


def _done(heard: _Heard, spec: JobSpec, prints: list[Print], model: str) -> Done:
    result = heard.result
    without_names(result, names=spec.names or spec.kind is JobKind.IDENTIFY)
    other = [f"voiceprints.{index}.voiceprint" for index, one in enumerate(prints) if one.model != model]
    warnings = (OTHER_MODEL.format(which=", ".join(other)),) if other else ()
    result.warnings.extend(warnings)
    confidence = FrameConfidences(heard.frame_ms, bytes(heard.confidence)) if heard.confidence else None
    return Done(JobRecord(result, confidence), result.duration_ms, warnings)
