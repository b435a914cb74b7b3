"""The client: enrol people, diarize recordings, open live streams, erase.

`Client` talks to a control plane with an API key, and streams straight to the node that it is given. What goes in is
files, bytes and names; what comes out is the contract's own messages (`speakerd.v1`). Every call raises SpeakerdError,
and nothing else, when it does not succeed. A standalone node has a client of its own: speakerd.node_client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from grpc import aio

from speakerd.channel import TlsTrust, credentials, open_channel
from speakerd.connections import Connections
from speakerd.errors import SpeakerdError, error_from_status
from speakerd.late_status import keep_status
from speakerd.live_stream import Event, LiveStream, Resumed, open_placed
from speakerd.node_client import NodeClient
from speakerd.stream_leg import Place, StreamOptions
from speakerd.uploads import (
    CHUNK_BYTES,
    Clip,
    FileOptions,
    OnProgress,
    answer,
    answer_again,
    clip_content,
    diarized,
    enrolment,
)
from speakerd.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    jobs_pb2_grpc,
    node_pb2,
    people_pb2,
    people_pb2_grpc,
    streams_pb2,
    streams_pb2_grpc,
)

__all__ = [
    "CHUNK_BYTES",
    "Client",
    "Clip",
    "Event",
    "FileOptions",
    "LiveStream",
    "NodeClient",
    "OnProgress",
    "Resumed",
    "SpeakerdError",
    "StreamOptions",
    "TlsTrust",
]

CALL_BOUND_S = 60.0
VERIFY_BOUND_S = 3600.0
PAGES_MAX = 10_000

AnswerT = TypeVar("AnswerT")


class Client:
    """A control plane, seen with one API key.

    address: "host:port" of its gRPC. api_key: "sk_...". tls: whose certificates to trust; None: plain text.
    """

    def __init__(self, address: str, api_key: str | None, *, tls: TlsTrust | None = None) -> None:
        self._address = address
        self._tls = tls
        self._metadata = credentials(api_key)
        self._channel = open_channel(address, tls)
        self._connections = Connections()
        self._people = people_pb2_grpc.PeopleStub(self._channel)
        self._audit = audit_pb2_grpc.AuditStub(self._channel)
        self._streams = streams_pb2_grpc.StreamsStub(self._channel)
        self._jobs = jobs_pb2_grpc.JobsStub(self._channel)

    def __repr__(self) -> str:
        return f"Client({self._address!r})"

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

    async def enroll(
        self,
        label: str,
        clips: Sequence[Clip],
        *,
        voice_id: str = "",
        consent: people_pb2.Consent | None = None,
        idempotency_key: str = "",
    ) -> people_pb2.EnrollVoiceResponse:
        """Enrol a person from one to ten recordings.

        label: what turns are labelled with. voice_id: an existing voice, to enrol it anew in place.
        Returns once the enrolment is durable; `voice.state` says whether nodes hold it already.
        """
        spec = people_pb2.VoiceSpec(voice_id=voice_id, label=label, consent=consent, idempotency_key=idempotency_key)
        return await self.enroll_as(spec, clips)

    async def enroll_as(
        self,
        spec: people_pb2.VoiceSpec,
        clips: Sequence[Clip],
        *,
        consent_clip: Clip | None = None,
        on_sent: Callable[[int, int], None] = lambda _sent, _all: None,
    ) -> people_pb2.EnrollVoiceResponse:
        """Enrol a person with all that can be said of them. consent_clip: the person speaking their consent.

        on_sent: told how many bytes have gone out, of how many; what follows the last is the listening.
        """
        sound = [await clip_content(clip) for clip in clips]
        spoken_consent = None if consent_clip is None else await clip_content(consent_clip)

        def call() -> Awaitable[people_pb2.EnrollVoiceResponse]:
            sent = enrolment(spec, sound, spoken_consent, on_sent)
            answered: Awaitable[people_pb2.EnrollVoiceResponse] = keep_status(
                self._people.EnrollVoice(sent, metadata=self._metadata, timeout=CALL_BOUND_S)
            )
            return answered

        # Without a key a second enrolment would be a second voice.
        return await (self._ask_again(call) if spec.idempotency_key else self._ask(call()))

    async def voices(self, *, label: str = "") -> list[people_pb2.Voice]:
        """All voices of the key's tenant, or those with a label."""
        found: list[people_pb2.Voice] = []
        page_token = ""
        for _ in range(PAGES_MAX):
            request = people_pb2.ListVoicesRequest(page_size=200, page_token=page_token, label=label)
            page = await self._ask_again(
                partial(self._people.ListVoices, request, metadata=self._metadata, timeout=CALL_BOUND_S)
            )
            found += page.voices
            page_token = page.next_page_token
            if not page_token:
                break
        return found

    async def voice(self, voice_id: str) -> people_pb2.Voice:
        """One voice."""
        request = people_pb2.GetVoiceRequest(voice_id=voice_id)
        return await self._ask_again(
            lambda: self._people.GetVoice(request, metadata=self._metadata, timeout=CALL_BOUND_S)
        )

    async def erase(
        self,
        voice_id: str,
        *,
        wait_s: float = 0.0,
        trigger: str = "",
        trigger_user: str = "",
        reason: str = "",
        source: str = "",
    ) -> people_pb2.Erasure:
        """Erase a voice; repeating it gives the same erasure. wait_s: how long to wait for the proof, at most 30 s.

        trigger: why, in the contract's words; trigger_user: who asks, an id; reason: why, in yours.
        """
        request = people_pb2.EraseVoiceRequest(
            voice_id=voice_id,
            trigger=trigger,
            trigger_user=trigger_user,
            reason=reason,
            source=source,
            wait_ms=round(wait_s * 1000),
        )
        return await self._ask_again(
            lambda: self._people.EraseVoice(request, metadata=self._metadata, timeout=CALL_BOUND_S + wait_s)
        )

    async def erase_all(
        self, tenant_id: str, *, trigger: str = "", trigger_user: str = "", reason: str = "", source: str = ""
    ) -> AsyncIterator[people_pb2.Erasure]:
        """Erase every voice of the key's tenant, whose id is written out; each erasure as it is asked for."""
        request = people_pb2.EraseAllVoicesRequest(
            tenant_id=tenant_id, trigger=trigger, trigger_user=trigger_user, reason=reason, source=source
        )
        try:
            async for erasure in self._people.EraseAllVoices(request, metadata=self._metadata):
                yield erasure
        except aio.AioRpcError as error:
            raise error_from_status(error, peer=self._address) from None

    async def erasure(self, audit_id: str) -> people_pb2.Erasure:
        """How an erasure stands."""
        request = people_pb2.GetErasureRequest(audit_id=audit_id)
        return await self._ask_again(
            lambda: self._people.GetErasure(request, metadata=self._metadata, timeout=CALL_BOUND_S)
        )

    async def erasures(self, *, limit: int = 50) -> list[people_pb2.Erasure]:
        """The tenant's erasures, newest first."""
        found: list[people_pb2.Erasure] = []
        page_token = ""
        while len(found) < limit:
            request = audit_pb2.ListErasuresRequest(page_size=min(200, limit - len(found)), page_token=page_token)
            page = await self._ask_again(
                partial(self._audit.ListErasures, request, metadata=self._metadata, timeout=CALL_BOUND_S)
            )
            found += page.erasures
            page_token = page.next_page_token
            if not page_token:
                break
        return found

    async def verify_audit(
        self, *, checkpoints: Sequence[bytes] = (), skip_inventory: bool = False
    ) -> audit_pb2.AuditVerdict:
        """Check the audit, its checkpoints and every erasure, and ask every node what it holds."""
        request = audit_pb2.VerifyAuditRequest(checkpoints=checkpoints, skip_inventory=skip_inventory)
        return await self._ask(self._audit.VerifyAudit(request, metadata=self._metadata, timeout=VERIFY_BOUND_S))

    async def assert_destroyed(self, node_id: str, *, trigger_user: str = "") -> audit_pb2.AssertDestroyedResponse:
        """Say that a machine is gone: erasures name it as residual no more."""
        request = audit_pb2.AssertDestroyedRequest(node_id=node_id, trigger_user=trigger_user)
        return await self._ask(self._audit.AssertDestroyed(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def diarize_file(
        self, recording: Clip, options: FileOptions | None = None, *, on_progress: OnProgress | None = None
    ) -> node_pb2.FileResult:
        """Diarize a recording while waiting, uploading it as it is read. on_progress is called as the node gets on."""
        return await diarized(
            self._jobs.DiarizeFile,
            recording,
            options or FileOptions(),
            on_progress,
            metadata=self._metadata,
            peer=self._address,
        )

    async def nodes(self) -> streams_pb2.ListNodesResponse:
        """The fleet as placement sees it. For keys with the scope platform:admin."""
        request = streams_pb2.ListNodesRequest()
        return await self._ask_again(
            lambda: self._streams.ListNodes(request, metadata=self._metadata, timeout=CALL_BOUND_S)
        )

    async def warmth(self, voice_id: str) -> people_pb2.WarmStatus:
        """Where a voice is warm, and why a node that could hold it does not."""
        request = people_pb2.GetWarmRequest(voice_id=voice_id)
        return await self._ask_again(
            lambda: self._people.GetWarm(request, metadata=self._metadata, timeout=CALL_BOUND_S)
        )

    async def warm(self, voice_id: str, node_ids: Sequence[str] = ()) -> people_pb2.WarmStatus:
        """Send a voice to nodes again: those named, or all; `outcomes` says what became of it, node by node."""
        request = people_pb2.WarmVoiceRequest(voice_id=voice_id, node_ids=node_ids)
        return await self._ask(self._people.WarmVoice(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def open_stream(self, options: StreamOptions | None = None) -> LiveStream:
        """Place a stream and open it on its node. A node that cannot take it after all is avoided, twice at most.

        The stream goes on by itself when its node is lost: see LiveStream.
        """
        return await open_placed(options or StreamOptions(), self._find_place, self._connections)

    async def _find_place(self, options: StreamOptions, avoid: Sequence[str], bound_s: float) -> Place:
        placed = await self._ask_again(
            lambda: self._streams.PlaceStream(
                streams_pb2.PlaceStreamRequest(
                    stream_id=options.stream_id,
                    voice_ids=options.voice_ids,
                    avoid_node_ids=avoid,
                    slots=options.slots,
                ),
                metadata=self._metadata,
                timeout=bound_s,
            )
        )
        return Place(
            placed.address,
            node_id=placed.node_id,
            stream_id=placed.stream_id,
            ticket=placed.ticket,
            tls=self._tls,
            tls_name=placed.tls_name,
        )

    async def _ask(self, call: Awaitable[AnswerT]) -> AnswerT:
        return await answer(call, peer=self._address)

    async def _ask_again(self, call: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        return await answer_again(call, peer=self._address)
