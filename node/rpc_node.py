"""The servicer of speakerd.v1.Node: translates, makes one call, and translates back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from grpc import aio

from models.enrolment import same_voice
from models.seams import VoiceSample
from node import wire
from node.access import Access
from node.collisions import nearest_voice
from node.engine import Engine
from node.enrolment import ClipAnalysis, HeardVoice, SentClip, combined, require_enrollable
from node.fault_points import reach
from node.files import FileRuns
from node.fleet_log import Enrolment, Eviction, FleetLog, Position
from node.load import LoadGauge
from node.metrics import NodeMetrics
from node.standing import Standing
from node.streams import LiveStreams
from node.voice_store import VoiceStore, require_fit
from runtime.errors import InvalidRequest, SpeakerdError
from runtime.pcm import said_rate_and_channels
from runtime.units import ms_from_samples, samples_from_ms
from speakerd import __version__
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc

INVENTORY_CHUNK = 10_000
NET_SPEECH_UNKNOWN_MS = 10_000
AGAINST_MAX = 50


class NodeService(node_pb2_grpc.NodeServicer):
    """One node's RPCs. drain: begins a drain of so many seconds (None: the node's setting); how many streams run."""

    def __init__(
        self,
        *,
        node_id: str,
        engine: Engine,
        access: Access,
        standing: Standing,
        store: VoiceStore,
        log: FleetLog,
        clips: ClipAnalysis,
        streams: LiveStreams,
        files: FileRuns,
        load: LoadGauge,
        drain: Callable[[float | None], int],
        metrics: NodeMetrics,
    ) -> None:
        self._node_id = node_id
        self._engine = engine
        self._access = access
        self._standing = standing
        self._store = store
        self._log = log
        self._clips = clips
        self._streams = streams
        self._files = files
        self._load = load
        self._drain = drain
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"NodeService({self._node_id}, {self._standing!r})"

    async def Enroll(self, request: node_pb2.EnrollRequest, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Hold a voice."""
        self._access.require_fleet(self._access.caller(context))
        try:
            reach("enroll.received")
            change, heard = await self._enrolment(request)
            generation = await self._log.enroll(change, _position(request))
            reach("enroll.applied")
        except SpeakerdError as error:
            self._metrics.enroll.labels(error.cause.value).inc()
            raise
        self._metrics.enroll.labels("ok").inc()
        return node_pb2.EnrollResponse(
            generation=generation,
            cursor=self._log.cursor,
            incarnation=self._log.incarnation,
            analysis=wire.voice_analysis(heard) if heard else None,
        )

    async def Evict(self, request: node_pb2.EvictRequest, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Forget a voice."""
        self._access.require_fleet(self._access.caller(context))
        reach("evict.received")
        tenant_id, voice_id = _voice(request.voice)
        change = Eviction(tenant_id, voice_id, request.voice.generation, request.audit_id)
        was_held = await self._log.evict(change, _position(request))
        reach("evict.applied")
        return node_pb2.EvictResponse(was_held=was_held, cursor=self._log.cursor, incarnation=self._log.incarnation)

    async def Analyze(self, request: node_pb2.AnalyzeRequest, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """What clips of one person hold, whether the consent is theirs, and whom they are too close to."""
        self._access.require_fleet(self._access.caller(context))
        reach("analyze.received")
        against = self._known(request.against)
        sent = [_clip(clip) for clip in (request.clip, *request.more_clips)]
        if request.HasField("consent"):
            sent.append(_clip(request.consent))
        heard = await self._clips.hear_all(sent)
        reach("analyze.heard")
        consent = heard.pop() if request.HasField("consent") else None
        naming = self._engine.naming
        whole, together = combined(heard, naming)
        collision = None
        if request.tenant_id and whole.sample.net_speech_samples:
            tenant_id = wire.identifier(request.tenant_id, "tenant_id")
            collision = await nearest_voice(
                self._store,
                wire.audiences(request.audiences, tenant_id) or (tenant_id,),
                whole.sample,
                naming,
                except_voice_id=request.except_voice_id,
            )
        return wire.analysis(
            self._engine.model,
            whole,
            heard,
            together,
            consent=None
            if consent is None
            else (consent, same_voice(consent.sample, whole.sample, self._engine.naming)),
            collision=collision,
            against=[same_voice(whole.sample, known, naming) for known in against],
        )

    async def Diarize(self, request_iterator: Any, context: aio.ServicerContext[Any, Any]) -> None:  # type: ignore[override]  # noqa: N802
        """A live stream."""
        await self._streams.serve(wire.GrpcPeer(context), self._access.caller(context))

    async def serve_public(self, context: aio.ServicerContext[Any, Any]) -> None:
        """A live stream that came to the streams' own port."""
        await self._streams.serve(wire.GrpcPeer(context), self._access.caller(context, is_public=True))

    async def DiarizeFile(self, request_iterator: Any, context: aio.ServicerContext[Any, Any]) -> None:  # type: ignore[override]  # noqa: N802
        """A recording."""
        self._access.require_fleet(self._access.caller(context))
        await self._files.serve(wire.GrpcFilePeer(context, self._engine.model))

    async def Inventory(  # noqa: N802
        self, request: node_pb2.InventoryRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[node_pb2.InventoryResponse]:
        """Every voice held."""
        self._access.require_fleet(self._access.caller(context))
        tenant_id = request.tenant_id or ("default" if self._standing.lease is None else None)
        held = self._store.voices(tenant_id)
        for at in range(0, max(1, len(held)), INVENTORY_CHUNK):
            yield node_pb2.InventoryResponse(
                voices=[
                    common_pb2.VoiceRef(tenant_id=voice.tenant_id, voice_id=voice.voice_id, generation=voice.generation)
                    for voice in held[at : at + INVENTORY_CHUNK]
                ],
                cursor=self._log.cursor,
                incarnation=self._log.incarnation,
            )

    async def Describe(self, request: node_pb2.DescribeRequest, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """What this node is."""
        self._access.require_fleet(self._access.caller(context))
        grid, lease = self._engine.device.grid, self._standing.lease
        return node_pb2.DescribeResponse(
            node_id=self._node_id,
            incarnation=self._log.incarnation,
            state=wire.node_state(self._standing.state),
            standalone=lease is None,
            version=__version__,
            bundle=self._engine.bundle,
            model=self._engine.model,
            embedding_dim=grid.embedding_dim,
            device=self._engine.device_name,
            load=wire.node_load(self._load.now()),
            window_ms=ms_from_samples(grid.window_samples),
            step_ms=ms_from_samples(grid.hop_samples),
            lease_ms=round(lease.remaining_s() * 1000) if lease else 0,
        )

    async def Drain(self, request: node_pb2.DrainRequest, context: aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802
        """Refuse new streams from now on."""
        self._access.require_fleet(self._access.caller(context))
        return node_pb2.DrainResponse(streams=self._drain(request.deadline_ms / 1000 if request.deadline_ms else None))

    def _known(self, voiceprints: Sequence[common_pb2.Voiceprint]) -> list[VoiceSample]:
        if len(voiceprints) > AGAINST_MAX:
            raise InvalidRequest(f"against: at most {AGAINST_MAX} voiceprints")
        samples = []
        for voiceprint in voiceprints:
            embedding = wire.embedding(voiceprint, self._engine.model)
            require_fit(embedding, self._engine.device.grid.embedding_dim)
            net_speech_samples = samples_from_ms(voiceprint.net_speech_ms or NET_SPEECH_UNKNOWN_MS)
            samples.append(VoiceSample(embedding, net_speech_samples, 1, cohesion=1.0))
        return samples

    async def _enrolment(self, request: node_pb2.EnrollRequest) -> tuple[Enrolment, HeardVoice | None]:
        tenant_id, voice_id = _voice(request.voice)
        label = wire.label(request.label, default=voice_id)
        heard = None
        match request.WhichOneof("source"):
            case "voiceprint":
                embedding = wire.embedding(request.voiceprint, self._engine.model)
                net_speech_samples = samples_from_ms(request.voiceprint.net_speech_ms or NET_SPEECH_UNKNOWN_MS)
            case "clip":
                heard = await self._clips.hear(_clip(request.clip))
                require_enrollable(heard)
                embedding, net_speech_samples = heard.sample.embedding, heard.sample.net_speech_samples
            case _:
                raise InvalidRequest("send a `clip` of the person speaking, or a `voiceprint`")
        generation = request.voice.generation
        made = Enrolment(
            tenant_id, voice_id, generation, label, embedding, net_speech_samples, audience=request.audience
        )
        return made, heard


def _clip(clip: common_pb2.AudioClip) -> SentClip:
    """A clip as it came."""
    rate_hz, channels = said_rate_and_channels(clip.format)
    return SentClip(clip.data, clip.format.encoding, rate_hz, channels)


class PublicStreams:
    """What the streams' own port offers."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def Diarize(self, request_iterator: Any, context: aio.ServicerContext[Any, Any]) -> None:  # noqa: N802
        """A live stream."""
        await self._service.serve_public(context)


def _voice(voice: common_pb2.VoiceRef) -> tuple[str, str]:
    """Tenant and voice."""
    tenant_id = wire.identifier(voice.tenant_id, "voice.tenant_id", default="default")
    return tenant_id, wire.identifier(voice.voice_id, "voice.voice_id")


def _position(request: node_pb2.EnrollRequest | node_pb2.EvictRequest) -> Position | None:
    if not request.HasField("position"):
        return None
    return Position(request.position.incarnation, request.position.revision, request.position.as_of)
