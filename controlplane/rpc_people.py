"""speakerd.v1.People on the wire: translates, makes one call, translates back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc import aio

from controlplane.arriving_clips import collected
from controlplane.erasure_rows import Asking
from controlplane.identity import Identity
from controlplane.people import People
from controlplane.people_wire import (
    asking_of,
    consent_of,
    details_of,
    enrolled_on_the_wire,
    erasure_on_the_wire,
    filter_of,
    request_of,
    usage_on_the_wire,
    voice_on_the_wire,
    warmth_on_the_wire,
)
from controlplane.places import Places
from controlplane.policy import Principal, Right
from controlplane.scopes import (
    ADMIN,
    JOBS_WRITE,
    USAGE_WRITE,
    VOICES_ERASE,
    VOICES_READ,
    VOICES_SHARE,
    VOICES_WRITE,
)
from runtime.errors import InvalidRequest, SpeakerdError
from runtime.grpc_server import bearer
from speakerd.v1 import node_pb2, people_pb2, people_pb2_grpc

UPLOADS_MAX = 32
"""Enrolments at once: the clips of each lie in memory, up to TOTAL_BYTES_MAX."""

NODE_IDS_MAX = 1_000
"""Nodes that a call may name."""

Context = aio.ServicerContext[Any, Any]


class PeopleServicer(people_pb2_grpc.PeopleServicer):
    """The wire side of voices."""

    def __init__(self, identity: Identity, people: People) -> None:
        self._identity = identity
        self._people = people
        self._uploads = Places("enrolments", UPLOADS_MAX, retry_after_s=2.0)

    async def EnrollVoice(  # noqa: N802
        self, request_iterator: AsyncIterator[people_pb2.EnrollVoiceRequest], context: Context
    ) -> people_pb2.EnrollVoiceResponse:
        """Collect the clips, then enrol."""
        principal = await self._caller(context, VOICES_WRITE)
        with self._uploads.taken(principal.tenant_id):
            request = await collected(request_iterator)
            return enrolled_on_the_wire(await self._people.enrolment.enrol(principal, request))

    async def GetVoice(self, request: people_pb2.GetVoiceRequest, context: Context) -> people_pb2.Voice:  # noqa: N802
        """One voice."""
        principal = await self._caller(context, VOICES_READ)
        return voice_on_the_wire(await self._people.library.seen(principal, request.voice_id))

    async def ListVoices(  # noqa: N802
        self, request: people_pb2.ListVoicesRequest, context: Context
    ) -> people_pb2.ListVoicesResponse:
        """A page of voices."""
        principal = await self._caller(context, VOICES_READ)
        found, token = await self._people.library.list(
            principal, page_size=request.page_size, page_token=request.page_token, wanted=filter_of(request)
        )
        return people_pb2.ListVoicesResponse(
            voices=[voice_on_the_wire(voice) for voice in found], next_page_token=token
        )

    async def GetWarm(self, request: people_pb2.GetWarmRequest, context: Context) -> people_pb2.WarmStatus:  # noqa: N802
        """Where a voice is warm."""
        principal = await self._caller(context, VOICES_READ)
        voice = await self._people.library.find(principal, request.voice_id, Right.SEE)
        return warmth_on_the_wire(await self._people.library.warmth(voice))

    async def WarmVoice(self, request: people_pb2.WarmVoiceRequest, context: Context) -> people_pb2.WarmStatus:  # noqa: N802
        """Send a voice to nodes again."""
        principal = await self._caller(context, VOICES_WRITE)
        if len(request.node_ids) > NODE_IDS_MAX:
            raise InvalidRequest(f"node_ids: at most {NODE_IDS_MAX}; empty means all that serve")
        voice = await self._people.library.find(principal, request.voice_id, Right.SEE)
        return warmth_on_the_wire(await self._people.library.warm(voice, tuple(request.node_ids)))

    async def EraseVoice(self, request: people_pb2.EraseVoiceRequest, context: Context) -> people_pb2.Erasure:  # noqa: N802
        """Erase a voice."""
        principal = await self._caller(context, VOICES_ERASE)
        erasure = await self._people.erasures.erase(
            principal, request.voice_id, asking=asking_of(request), wait_s_max=request.wait_ms / 1000
        )
        return erasure_on_the_wire(erasure)

    async def EraseAllVoices(  # noqa: N802
        self, request: people_pb2.EraseAllVoicesRequest, context: Context
    ) -> AsyncIterator[people_pb2.Erasure]:
        """Erase every voice of the caller's tenant."""
        principal = await self._caller(context, VOICES_ERASE)
        async for erasure in self._people.erasures.erase_all(principal, request.tenant_id, asking_of(request)):
            yield erasure_on_the_wire(erasure)

    async def UpdateVoice(self, request: people_pb2.UpdateVoiceRequest, context: Context) -> people_pb2.Voice:  # noqa: N802
        """Change label or details."""
        principal = await self._caller(context, VOICES_WRITE)
        voice = await self._people.changes.update(
            principal,
            request.voice_id,
            label=request.label if request.HasField("label") else None,
            details=details_of(request.details) if request.HasField("details") else None,
        )
        return voice_on_the_wire(voice)

    async def ShareVoice(self, request: people_pb2.ShareVoiceRequest, context: Context) -> people_pb2.Voice:  # noqa: N802
        """Give a user's voice to the tenant."""
        principal = await self._caller(context, VOICES_SHARE)
        return voice_on_the_wire(await self._people.changes.share(principal, request.voice_id))

    async def WithdrawConsent(  # noqa: N802
        self, request: people_pb2.WithdrawConsentRequest, context: Context
    ) -> people_pb2.WithdrawConsentResponse:
        """Freeze a voice, or erase it."""
        principal = await self._caller(context, VOICES_ERASE if request.erase else VOICES_WRITE)
        voice = await self._people.changes.withdraw(principal, request.voice_id, opt_out=request.opt_out)
        if not request.erase:
            return people_pb2.WithdrawConsentResponse(voice=voice_on_the_wire(voice))
        erasure = await self._people.erasures.erase(
            principal, request.voice_id, asking=Asking(), wait_s_max=request.wait_ms / 1000
        )
        voice = await self._people.library.seen(principal, request.voice_id)
        return people_pb2.WithdrawConsentResponse(voice=voice_on_the_wire(voice), erasure=erasure_on_the_wire(erasure))

    async def GiveConsent(self, request: people_pb2.GiveConsentRequest, context: Context) -> people_pb2.Voice:  # noqa: N802
        """A new consent."""
        principal = await self._caller(context, VOICES_WRITE)
        consent = consent_of(request.consent)
        return voice_on_the_wire(await self._people.changes.give_consent(principal, request.voice_id, consent))

    async def ExportVoice(  # noqa: N802
        self, request: people_pb2.ExportVoiceRequest, context: Context
    ) -> AsyncIterator[people_pb2.ExportVoiceResponse]:
        """All that is held on a person."""
        principal = await self._caller(context, ADMIN)
        async for piece in self._people.export.voice(principal, request.voice_id):
            yield people_pb2.ExportVoiceResponse(data=piece)

    async def PromoteSpeaker(  # noqa: N802
        self, request: people_pb2.PromoteSpeakerRequest, context: Context
    ) -> people_pb2.EnrollVoiceResponse:
        """Enrol a speaker who was heard."""
        principal = await self._caller(context, VOICES_WRITE)
        asked = request_of(request.spec, ())
        return enrolled_on_the_wire(await self._people.promotion.promote(principal, request.token, asked))

    async def RecordUsage(  # noqa: N802
        self, request: people_pb2.RecordUsageRequest, context: Context
    ) -> people_pb2.RecordUsageResponse:
        """Count a use."""
        principal = await self._caller(context, USAGE_WRITE)
        await self._people.usage.record(principal, request.voice_id, request.unit, request.quantity)
        return people_pb2.RecordUsageResponse()

    async def ListUsage(self, request: people_pb2.ListUsageRequest, context: Context) -> people_pb2.ListUsageResponse:  # noqa: N802
        """What was counted."""
        principal = await self._caller(context, ADMIN)
        found, token = await self._people.usage.list(
            principal, page_size=request.page_size, page_token=request.page_token
        )
        return people_pb2.ListUsageResponse(
            records=[usage_on_the_wire(record) for record in found], next_page_token=token
        )

    async def GetErasure(self, request: people_pb2.GetErasureRequest, context: Context) -> people_pb2.Erasure:  # noqa: N802
        """How an erasure stands."""
        principal = await self._caller(context, VOICES_READ)
        return erasure_on_the_wire(await self._people.erasures.get(principal, request.audit_id))

    async def ReportMatches(  # noqa: N802
        self, request_iterator: AsyncIterator[people_pb2.ReportMatchesRequest], context: Context
    ) -> people_pb2.ReportMatchesResponse:
        """The speakers of a recording, and why each was named or not."""
        principal = await self._caller(context, JOBS_WRITE)

        async def requests() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
            async for message in request_iterator:
                if message.HasField("open"):
                    yield node_pb2.DiarizeFileRequest(open=message.open)
                else:
                    yield node_pb2.DiarizeFileRequest(audio=message.audio)

        async for answer in self._people.relay.diarize_file(principal, requests()):
            if answer.HasField("result"):
                return people_pb2.ReportMatchesResponse(speakers=answer.result.speakers)
        raise SpeakerdError("the node ended without a result")

    async def _caller(self, context: Context, scope: str) -> Principal:
        return await self._identity.principal(bearer(context), scope)
