"""Targets: the contract's messages as node and control plane read them, and what is sealed or signed."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError, Message

from controlplane import jobs_wire, people_wire
from controlplane.enrolment_request import request_digest, validate
from controlplane.holdings import Print
from controlplane.job_spec import check
from controlplane.media_tokens import PUT, MediaTokens
from controlplane.policy import Principal
from controlplane.tenant_seals import TenantSeals
from controlplane.voiceprint_blobs import open_print, seal_print
from models.snapshot import pack_state, unpack_state
from node import rpc_node, wire
from node.checkpoint import CheckpointSeal, StreamState
from node.fleet_wire import ControlPlane, unpack
from node.voice_store import require_fit
from runtime.clock import SystemClock
from runtime.errors import SpeakerdError
from runtime.pcm import PcmDecoder
from runtime.speaker_token import HeardSpeaker, SpeakerSeal
from runtime.tickets import Ticket, sign_ticket, verify_ticket
from speakerd.v1 import common_pb2, fleet_pb2, jobs_pb2, node_pb2, people_pb2
from tests.fuzz.target import Target, plain, refused

MODEL = "null-1"
DIM = 8
VECTOR = np.arange(1, DIM + 1, dtype="<f4")
VOICEPRINT = common_pb2.Voiceprint(model=MODEL, embedding=VECTOR.tobytes(), net_speech_ms=9_000)
FORMAT = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE, sample_rate_hz=16_000, channels=1)
CLIP = common_pb2.AudioClip(data=bytes(640), format=FORMAT)


def _enrol(request: node_pb2.EnrollRequest) -> None:
    rpc_node._voice(request.voice)
    rpc_node._position(request)
    wire.label(request.label, default="v")
    if request.WhichOneof("source") == "voiceprint":
        require_fit(wire.embedding(request.voiceprint, MODEL), DIM)


def _analyze(request: node_pb2.AnalyzeRequest) -> None:
    for voiceprint in request.against:
        require_fit(wire.embedding(voiceprint, MODEL), DIM)
    wire.audiences(request.audiences, wire.identifier(request.tenant_id, "tenant_id", default="default"))
    for clip in (request.clip, *request.more_clips, request.consent):
        sent = rpc_node._clip(clip)
        decoder = PcmDecoder.from_wire(sent.encoding, sent.sample_rate_hz, sent.channels)
        decoder.feed(sent.data)
        decoder.flush()


def _entry(message: fleet_pb2.LogEntry) -> object:
    return ControlPlane._entry(SimpleNamespace(_identity=SimpleNamespace(model=MODEL)), message)  # type: ignore[arg-type]


def _spec(message: people_pb2.VoiceSpec) -> None:
    request = people_wire.request_of(message, ())
    validate(request)
    request_digest(request)


READERS: tuple[tuple[Message, Callable[[Any], object]], ...] = (
    (
        node_pb2.StreamOpen(
            stream_id="s-1",
            tenant_id="a",
            ticket="t",
            format=FORMAT,
            latency_ms=1000,
            voice_ids=["v_1"],
            checkpoint=b"c",
        ),
        wire.stream_request,
    ),
    (
        node_pb2.FileOpen(
            tenant_id="a",
            format=FORMAT,
            duration_ms=9_000,
            num_speakers=2,
            voice_ids=["v_1"],
            audiences=["a", "a/u"],
            identify=node_pb2.FileIdentify(voiceprints=[VOICEPRINT], threshold=50.0, enrolled=True),
        ),
        lambda message: wire.file_request(message, MODEL),
    ),
    (
        node_pb2.EnrollRequest(
            voice=common_pb2.VoiceRef(tenant_id="a", voice_id="v_1", generation=2), label="Ada", voiceprint=VOICEPRINT
        ),
        _enrol,
    ),
    (
        node_pb2.AnalyzeRequest(clip=CLIP, more_clips=[CLIP], tenant_id="a", audiences=["a"], against=[VOICEPRINT]),
        _analyze,
    ),
    (
        fleet_pb2.SnapshotPage(
            model=MODEL,
            embeddings=VECTOR.tobytes(),
            generations=[3],
            net_speech_ms=[9_000],
            names=zlib.compress(
                fleet_pb2.SnapshotNames(
                    voice_ids=["v_1"], labels=["Ada"], tenants=[0], for_audiences=[0], tenant_ids=["a"], audiences=["a"]
                ).SerializeToString()
            ),
        ),
        lambda message: unpack(message, MODEL),
    ),
    (
        fleet_pb2.LogEntry(
            revision=7,
            voice=common_pb2.VoiceRef(tenant_id="a", voice_id="v_1", generation=3),
            enroll=fleet_pb2.LogEnroll(label="Ada", voiceprint=VOICEPRINT, audience="a"),
        ),
        _entry,
    ),
    (
        jobs_pb2.CreateJobRequest(
            kind=jobs_pb2.CreateJobRequest.KIND_IDENTIFY,
            media_key="calls/one.wav",
            voiceprints=[jobs_pb2.JobVoiceprint(label="Ada", voiceprint=b"sealed")],
            idempotency_key="k",
        ),
        lambda message: check(jobs_wire.job_spec(message)),
    ),
    (jobs_pb2.ListJobsRequest(page_size=5, page_token="x", state=jobs_pb2.Job.STATE_FAILED), jobs_wire.listing),
    (
        people_pb2.VoiceSpec(
            voice_id="v_1",
            label="Ada",
            consent=people_pb2.Consent(full_name="Ada L", purpose="p", text="I agree", given_at={"seconds": 1}),
            licence=people_pb2.Licence(
                licensor="L", terms="t", kind=people_pb2.Licence.KIND_TIME_BOUND, expires_at={"seconds": 2_000_000_000}
            ),
            details=people_pb2.VoiceDetails(language="de", languages=["de"], style_tags=["calm"]),
            subject="s",
        ),
        _spec,
    ),
    (people_pb2.ListVoicesRequest(label="Ada", state=people_pb2.Voice.STATE_READY), people_wire.filter_of),
    (people_pb2.EraseVoiceRequest(voice_id="v_1", trigger="t", reason="r"), people_wire.asking_of),
    (FORMAT, wire.sound_format),
)


def read_message(data: bytes) -> None:
    """The first byte says which message follows."""
    if not data:
        return
    example, reader = READERS[data[0] % len(READERS)]
    try:
        message = type(example).FromString(data[1:])
    except DecodeError:
        return
    try:
        reader(message)
    except SpeakerdError as error:
        refused(error)


def _messages() -> Iterable[bytes]:
    return [bytes((index,)) + example.SerializeToString() for index, (example, _) in enumerate(READERS)]


class Sealed:
    """What is sealed or signed here: only what was made by us opens, and it opens as it was made."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.checkpoints = CheckpointSeal(model=MODEL, clock=clock)
        self.checkpoints.use((bytes(32),))
        self.speakers = SpeakerSeal("fleet", clock)
        self.tokens = MediaTokens(bytes(32), clock)
        self.seals = TenantSeals("a", bytes(32))
        key = Ed25519PrivateKey.from_private_bytes(bytes(32))
        self.public = key.public_key().public_bytes_raw()
        self.ticket = Ticket("a", "s-1", "node-1", 4_000_000_000, "t" * 16, 3, ("a", "a/u"))
        self.print = Print(MODEL, VECTOR.tobytes(), 9_000)
        self.heard = HeardSpeaker(MODEL, VECTOR.tobytes(), 9_000)
        self.principal = Principal("a", "key", frozenset(), "u")
        self.state = StreamState(analysed_samples=16_000, speech={0: 5}, numbers={0: 0}, named=[0])
        arrays = {"vectors": VECTOR.astype(np.float32).reshape(2, 4)}
        self.inner = self.state.to_bytes(pack_state(3, {"a": 1}, arrays))
        self.seeds = [
            b"\0" + self.checkpoints.seal(self.inner, tenant_id="a", stream_id="s-1"),
            b"\1" + self.speakers.seal(self.heard, tenant_id="a"),
            b"\2" + seal_print(self.seals, self.print).encode(),
            b"\3" + self.tokens.seal(PUT, self.principal, "one.wav", 4_000_000_000.0).encode(),
            b"\4" + sign_ticket(self.ticket, key).encode(),
            *(
                b"\4" + base64.urlsafe_b64encode(json.dumps(odd).encode()).rstrip(b"=") + b".AAAA"
                for odd in ("x", [], 1)
            ),
            b"\5" + self.inner,
            b"\6" + pack_state(3, {"a": 1}, arrays),
        ]

    def read(self, data: bytes) -> None:
        """The first byte says what the rest claims to be."""
        if not data:
            return
        kind, rest = data[0] % 7, data[1:]
        text = rest.decode("utf-8", "replace")
        try:
            match kind:
                case 0:
                    assert self.checkpoints.unseal(rest, tenant_id="a", stream_id="s-1") == self.inner
                case 1:
                    assert self.speakers.open(rest, tenant_id="a") == self.heard
                case 2:
                    assert open_print(self.seals, text, field="voiceprint") == self.print
                case 3:
                    assert self.tokens.open(PUT, text) == (self.principal, "one.wav")
                case 4:
                    assert verify_ticket(text, [self.public], node_id="node-1", now_s=1.0) == self.ticket
                case 5:
                    StreamState.from_bytes(rest)
                case _:
                    unpack_state(rest, 3, bytes_max=1 << 20)
        except SpeakerdError as error:
            refused(error)


_SEALED = Sealed()

TARGETS = (
    Target("wire", plain(read_message), _messages, replays=3_000),
    Target("sealed", plain(_SEALED.read), lambda: _SEALED.seeds, replays=6_000),
)
