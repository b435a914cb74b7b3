"""Calls to nodes: commands of the fleet log, analysis of clips, files. The only place where the control plane dials.

What comes back are the answers' values, or errors by cause: an unreachable or frozen node is Unavailable within the
bound of the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

import grpc
from grpc import aio

from controlplane.fleet_log import Change
from controlplane.holdings import Holding, Print
from controlplane.keys import VoiceAddress
from controlplane.leases import Lease
from runtime.errors import BadAudio, InvalidRequest, NotFound, Overloaded, SpeakerdError, Stale, TimedOut, Unavailable
from runtime.grpc_server import open_channel
from runtime.pcm import PcmEncoding
from runtime.tls import Tls, split_address
from runtime.units import SAMPLE_RATE_HZ
from speakerd.late_status import keep_status
from speakerd.v1 import common_pb2, node_pb2, node_pb2_grpc

CHANNELS_MAX = 1_000
PROBE_TIMEOUT_S = 1.0
LEAVING_S = 3_600.0
INVENTORY_TIMEOUT_S = 60.0

_ERRORS: dict[grpc.StatusCode, type[SpeakerdError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadAudio,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Stale,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}


@dataclass(frozen=True, slots=True)
class Ack:
    """A node's answer to a command: how far it is, under which incarnation."""

    incarnation: int
    cursor: int


@dataclass(frozen=True, slots=True)
class HeardClip:
    """One clip of an enrolment. voiceprint: None without speech. probability: of being of the person of the others."""

    voiceprint: Print | None
    net_speech_ms: int
    probability: float
    left_out: bool


@dataclass(frozen=True, slots=True)
class HeardConsent:
    """The recording of a consent. probability: of being spoken by the voice of the clips."""

    net_speech_ms: int
    num_speakers: int
    probability: float


@dataclass(frozen=True, slots=True)
class Collision:
    """The nearest voice in scope, and the probability that it is the same person."""

    voice_id: str
    probability: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a node hears in an enrolment's clips. Times are milliseconds; cohesion is a cosine.

    consent, collision: None where there is none, or none was asked for. against: for each voiceprint that was asked
    about, the probability that the person heard is its own.
    """

    voiceprint: Print
    duration_ms: int
    net_speech_ms: int
    num_speakers: int
    cohesion: float
    warnings: tuple[str, ...]
    clips: tuple[HeardClip, ...] = ()
    consent: HeardConsent | None = None
    collision: Collision | None = None
    against: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class CollisionScope:
    """Whose voices a new one is compared with. audiences: empty for all of the tenant's."""

    tenant_id: str
    audiences: tuple[str, ...] = ()
    except_voice_id: str = ""


class Nodes:
    """Channels to nodes by address, and what is asked over them. tls: then a certificate stands for the fleet's key."""

    def __init__(
        self, fleet_key: str, *, push_timeout_s: float, analyze_timeout_s: float, tls: Tls | None = None
    ) -> None:
        self._metadata = () if tls else (("authorization", f"Bearer {fleet_key}"),)
        self._tls = tls
        self._tls_version = 0
        self._left: set[asyncio.Task[None]] = set()
        self._push_timeout_s = push_timeout_s
        self._analyze_timeout_s = analyze_timeout_s
        self._channels: dict[str, aio.Channel] = {}

    def __repr__(self) -> str:
        return f"Nodes({len(self._channels)} channels)"

    def stub(self, address: str) -> node_pb2_grpc.NodeStub:
        """A stub for an address, as leases have it: with the name that the certificate there has to show."""
        self._leave_channels_of_old_files()
        channel = self._channels.pop(address, None)
        if channel is None:
            name, where = split_address(address)
            channel = open_channel(where, self._tls, name=name)
        self._channels[address] = channel
        return node_pb2_grpc.NodeStub(channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The credentials that nodes take from us."""
        return self._metadata

    async def push(self, lease: Lease, item: Holding) -> Ack:
        """Send a change to a node. Raises Stale, Unavailable, TimedOut."""
        position = node_pb2.LogPosition(incarnation=lease.incarnation, revision=item.revision, as_of=item.as_of)
        voice = common_pb2.VoiceRef(
            tenant_id=item.voice.tenant_id, voice_id=item.voice.voice_id, generation=item.generation
        )
        stub = self.stub(lease.address)
        try:
            if item.change is Change.EVICT:
                evicted = await stub.Evict(
                    node_pb2.EvictRequest(voice=voice, position=position, audit_id=item.audit_id),
                    timeout=self._push_timeout_s,
                    metadata=self._metadata,
                )
                return Ack(evicted.incarnation, evicted.cursor)
            assert item.voiceprint is not None
            enrolled = await stub.Enroll(
                node_pb2.EnrollRequest(
                    voice=voice,
                    label=item.label or "",
                    voiceprint=common_pb2.Voiceprint(
                        model=item.voiceprint.model,
                        embedding=item.voiceprint.embedding,
                        net_speech_ms=item.voiceprint.net_speech_ms,
                    ),
                    position=position,
                    audience=item.audience,
                ),
                timeout=self._push_timeout_s,
                metadata=self._metadata,
            )
            return Ack(enrolled.incarnation, enrolled.cursor)
        except aio.AioRpcError as error:
            raise translated(error) from None

    async def analyze(
        self,
        address: str,
        clips_f32: Sequence[bytes],
        *,
        consent_f32: bytes | None = None,
        scope: CollisionScope | None = None,
        against: Sequence[Print] = (),
    ) -> Analysis:
        """What a node hears in clips of 16 kHz mono float32. Raises BadAudio, Overloaded, Unavailable, TimedOut."""
        first, *more = [_sound(samples) for samples in clips_f32]
        request = node_pb2.AnalyzeRequest(
            clip=first,
            more_clips=more,
            consent=None if consent_f32 is None else _sound(consent_f32),
            tenant_id=scope.tenant_id if scope else "",
            audiences=scope.audiences if scope else (),
            except_voice_id=scope.except_voice_id if scope else "",
            against=[
                common_pb2.Voiceprint(model=known.model, embedding=known.embedding, net_speech_ms=known.net_speech_ms)
                for known in against
            ],
        )
        try:
            answer = await self.stub(address).Analyze(request, timeout=self._analyze_timeout_s, metadata=self._metadata)
        except aio.AioRpcError as error:
            raise translated(error) from None
        return _analysis(answer)

    async def incarnation_at(self, address: str) -> int | None:
        """Which incarnation lives at an address: None when nobody does, -1 when there is no answer in time."""
        try:
            answer = await self.stub(address).Describe(
                node_pb2.DescribeRequest(), timeout=PROBE_TIMEOUT_S, metadata=self._metadata
            )
        except aio.AioRpcError as error:
            return None if error.code() is grpc.StatusCode.UNAVAILABLE else -1
        return int(answer.incarnation)

    async def inventory(self, address: str) -> AsyncIterator[VoiceAddress]:
        """Every voice that a node holds. Raises Unavailable, TimedOut."""
        call = self.stub(address).Inventory(
            node_pb2.InventoryRequest(), timeout=INVENTORY_TIMEOUT_S, metadata=self._metadata
        )
        try:
            async for page in call:
                for voice in page.voices:
                    yield VoiceAddress(voice.tenant_id, voice.voice_id)
        except aio.AioRpcError as error:
            raise translated(error) from None
        finally:
            call.cancel()

    async def held(self, address: str) -> tuple[int, dict[VoiceAddress, int]]:
        """A node's cursor, and the generation of every voice that it holds. Raises Unavailable, TimedOut."""
        cursor = 0
        held: dict[VoiceAddress, int] = {}
        try:
            async for page in self.stub(address).Inventory(
                node_pb2.InventoryRequest(), timeout=INVENTORY_TIMEOUT_S, metadata=self._metadata
            ):
                cursor = page.cursor
                held |= {VoiceAddress(one.tenant_id, one.voice_id): int(one.generation) for one in page.voices}
        except aio.AioRpcError as error:
            raise translated(error) from None
        return cursor, held

    async def diarize_file(
        self, address: str, opening: node_pb2.FileOpen, sound: AsyncIterator[bytes]
    ) -> AsyncGenerator[node_pb2.DiarizeFileResponse, None]:
        """Relay a file to a node: sound goes up while answers come down. Errors of `sound` end it as they are."""
        call = keep_status(self.stub(address).DiarizeFile(metadata=self._metadata))
        failed: list[BaseException] = []

        async def feed() -> None:
            try:
                await call.write(node_pb2.DiarizeFileRequest(open=opening))
                async for chunk in sound:
                    await call.write(node_pb2.DiarizeFileRequest(audio=chunk))
                await call.done_writing()
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reading side learns why
            except Exception as error:  # noqa: BLE001 - handed to the reading side, which raises it
                failed.append(error)
                call.cancel()

        feeding = asyncio.create_task(feed(), name="relay.feed")
        try:
            async for answer in call:
                yield answer
        except aio.AioRpcError as error:
            if failed:
                raise failed[0] from None
            raise translated(error) from None
        except asyncio.CancelledError:
            # Our own cancel of the call arrives as a cancellation too; only one that came from outside goes on.
            if failed:
                raise failed[0] from None
            raise
        finally:
            call.cancel()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        if failed:
            raise failed[0]

    async def keep_only(self, addresses: set[str]) -> None:
        """Close the channels to addresses where nobody is any more."""
        gone = [address for address in self._channels if address not in addresses]
        if len(self._channels) > CHANNELS_MAX:
            for address in gone:
                await self._channels.pop(address).close()

    async def close(self) -> None:
        """Close all channels."""
        for leaving in self._left:
            leaving.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _leave_channels_of_old_files(self) -> None:
        if self._tls is None or self._tls.version == self._tls_version:
            return
        self._tls_version = self._tls.version
        for channel in self._channels.values():
            # What runs over it, as a file does, may end there.
            leaving = asyncio.create_task(channel.close(LEAVING_S), name="channel-close")
            self._left.add(leaving)
            leaving.add_done_callback(self._left.discard)
        self._channels.clear()


def translated(error: aio.AioRpcError) -> SpeakerdError:
    """A node's refusal as an error by cause. Its text was written for clients, and goes on."""
    code = error.code()
    kind = _ERRORS.get(code)
    if code is grpc.StatusCode.UNAVAILABLE or kind is Unavailable:
        return Unavailable("the node is away; try again", retry_after_s=1.0)
    if kind is TimedOut:
        return TimedOut("the node did not answer in time; try again", retry_after_s=1.0)
    if kind is None:
        return SpeakerdError(f"a node refused with {code.name}")
    if kind is BadAudio and _cause(error) == "invalid":
        return InvalidRequest(error.details() or "a node found the request malformed")
    return kind(error.details() or "a node refused the request")


def _cause(error: aio.AioRpcError) -> str:
    for name, value in error.trailing_metadata() or ():
        if name == "speakerd-error-bin" and isinstance(value, bytes):
            return common_pb2.ErrorInfo.FromString(value).cause
    return ""


def _sound(samples_f32: bytes) -> common_pb2.AudioClip:
    form = common_pb2.AudioFormat(
        encoding=common_pb2.Encoding.ValueType(PcmEncoding.F32LE), sample_rate_hz=SAMPLE_RATE_HZ, channels=1
    )
    return common_pb2.AudioClip(format=form, data=samples_f32)


def _analysis(answer: node_pb2.AnalyzeResponse) -> Analysis:
    heard, consent = answer.analysis, answer.consent
    return Analysis(
        voiceprint=_print(answer.voiceprint, heard),
        duration_ms=heard.duration_ms,
        net_speech_ms=heard.net_speech_ms,
        num_speakers=heard.num_speakers,
        cohesion=heard.cohesion,
        warnings=tuple(heard.warnings),
        clips=tuple(
            HeardClip(
                _print(clip.voiceprint, clip.analysis) if clip.HasField("voiceprint") else None,
                clip.analysis.net_speech_ms,
                clip.probability,
                clip.left_out,
            )
            for clip in answer.clips
        ),
        consent=HeardConsent(consent.analysis.net_speech_ms, consent.analysis.num_speakers, consent.probability)
        if answer.HasField("consent")
        else None,
        collision=Collision(answer.collision.voice_id, answer.collision.probability)
        if answer.HasField("collision")
        else None,
        against=tuple(answer.against_probabilities),
    )


def _print(voiceprint: common_pb2.Voiceprint, heard: node_pb2.VoiceAnalysis) -> Print:
    return Print(voiceprint.model, voiceprint.embedding, voiceprint.net_speech_ms or heard.net_speech_ms)
