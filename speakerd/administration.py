"""The client for those who look after voices, tenants and keys: what a transcription service does not need itself.

Every method raises SpeakerdError. One object is one connection; use it as an async context manager.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from speakerd.channel import TlsTrust, credentials, open_channel
from speakerd.errors import error_from_status
from speakerd.v1 import admin_pb2, admin_pb2_grpc, people_pb2, people_pb2_grpc

CALL_BOUND_S = 120.0
EXPORT_BOUND_S = 600.0

AnswerT = TypeVar("AnswerT")


class Administration:
    """A control plane, seen with an administrator's API key. tenant_id "" is always the key's own."""

    def __init__(self, address: str, api_key: str | None, *, tls: TlsTrust | None = None) -> None:
        self._address = address
        self._metadata = credentials(api_key)
        self._channel = open_channel(address, tls)
        self._admin = admin_pb2_grpc.AdminStub(self._channel)
        self._people = people_pb2_grpc.PeopleStub(self._channel)

    def __repr__(self) -> str:
        return f"Administration({self._address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def create_tenant(self, tenant_id: str, quotas: admin_pb2.Quotas | None = None) -> admin_pb2.Tenant:
        """A new tenant."""
        request = admin_pb2.CreateTenantRequest(tenant_id=tenant_id, quotas=quotas)
        return await self._ask(self._admin.CreateTenant(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def tenants(self) -> list[admin_pb2.Tenant]:
        """All that the key administers."""
        request = admin_pb2.ListTenantsRequest()
        answer = await self._ask(self._admin.ListTenants(request, metadata=self._metadata, timeout=CALL_BOUND_S))
        return list(answer.tenants)

    async def delete_tenant(self, tenant_id: str) -> list[str]:
        """Close a tenant and erase its voices; the audit ids of the erasures."""
        request = admin_pb2.DeleteTenantRequest(tenant_id=tenant_id)
        answer = await self._ask(self._admin.DeleteTenant(request, metadata=self._metadata, timeout=CALL_BOUND_S))
        return list(answer.audit_ids)

    async def set_quotas(self, tenant_id: str, quotas: admin_pb2.Quotas) -> admin_pb2.Tenant:
        """Other limits, in place of those of before."""
        request = admin_pb2.SetQuotasRequest(tenant_id=tenant_id, quotas=quotas)
        return await self._ask(self._admin.SetQuotas(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def create_user(self, user_id: str, *, tenant_id: str = "") -> admin_pb2.User:
        """A new user."""
        request = admin_pb2.CreateUserRequest(tenant_id=tenant_id, user_id=user_id)
        return await self._ask(self._admin.CreateUser(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def users(self, *, tenant_id: str = "") -> list[admin_pb2.User]:
        """A tenant's users."""
        request = admin_pb2.ListUsersRequest(tenant_id=tenant_id)
        answer = await self._ask(self._admin.ListUsers(request, metadata=self._metadata, timeout=CALL_BOUND_S))
        return list(answer.users)

    async def delete_user(self, user_id: str, *, tenant_id: str = "") -> list[str]:
        """Close a user and erase the voices that are the user's alone; the audit ids of the erasures."""
        request = admin_pb2.DeleteUserRequest(tenant_id=tenant_id, user_id=user_id)
        answer = await self._ask(self._admin.DeleteUser(request, metadata=self._metadata, timeout=CALL_BOUND_S))
        return list(answer.audit_ids)

    async def create_key(self, request: admin_pb2.CreateKeyRequest) -> admin_pb2.CreateKeyResponse:
        """A key; the answer is the only time that its secret is seen."""
        return await self._ask(self._admin.CreateKey(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def keys(self, *, tenant_id: str = "") -> list[admin_pb2.Key]:
        """A tenant's keys."""
        request = admin_pb2.ListKeysRequest(tenant_id=tenant_id)
        answer = await self._ask(self._admin.ListKeys(request, metadata=self._metadata, timeout=CALL_BOUND_S))
        return list(answer.keys)

    async def rotate_key(self, key_id: str, *, overlap_s: int | None = None) -> admin_pb2.CreateKeyResponse:
        """A key in the place of another, which goes on for overlap_s (None: a day)."""
        request = admin_pb2.RotateKeyRequest(key_id=key_id, overlap_s=overlap_s)
        return await self._ask(self._admin.RotateKey(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def revoke_key(self, key_id: str) -> admin_pb2.Key:
        """End a key."""
        request = admin_pb2.RevokeKeyRequest(key_id=key_id)
        return await self._ask(self._admin.RevokeKey(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def rotate_kek(self) -> admin_pb2.RotateKekResponse:
        """Wrap every voice's key with a new key-encryption key."""
        request = admin_pb2.RotateKekRequest()
        return await self._ask(self._admin.RotateKek(request, metadata=self._metadata, timeout=EXPORT_BOUND_S))

    async def update_voice(self, voice_id: str, *, label: str) -> people_pb2.Voice:
        """Call a voice something else."""
        request = people_pb2.UpdateVoiceRequest(voice_id=voice_id, label=label)
        return await self._ask(self._people.UpdateVoice(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def share_voice(self, voice_id: str) -> people_pb2.Voice:
        """Give a user's voice to the tenant."""
        request = people_pb2.ShareVoiceRequest(voice_id=voice_id)
        return await self._ask(self._people.ShareVoice(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def withdraw_consent(
        self, voice_id: str, *, opt_out: bool = False, erase: bool = False, wait_s: float = 0.0
    ) -> people_pb2.WithdrawConsentResponse:
        """Freeze a voice, or erase it. opt_out: the person is refused from now on, until they agree anew."""
        request = people_pb2.WithdrawConsentRequest(
            voice_id=voice_id, opt_out=opt_out, erase=erase, wait_ms=round(wait_s * 1000)
        )
        timeout = CALL_BOUND_S + wait_s
        return await self._ask(self._people.WithdrawConsent(request, metadata=self._metadata, timeout=timeout))

    async def give_consent(self, voice_id: str, consent: people_pb2.Consent) -> people_pb2.Voice:
        """Keep a new consent; a frozen voice is used again."""
        request = people_pb2.GiveConsentRequest(voice_id=voice_id, consent=consent)
        return await self._ask(self._people.GiveConsent(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def promote_speaker(self, token: bytes, spec: people_pb2.VoiceSpec) -> people_pb2.EnrollVoiceResponse:
        """Enrol a speaker of a stream or recording that has ended. token: of Speaker.token."""
        request = people_pb2.PromoteSpeakerRequest(token=token, spec=spec)
        return await self._ask(self._people.PromoteSpeaker(request, metadata=self._metadata, timeout=CALL_BOUND_S))

    async def export_voice(self, voice_id: str) -> AsyncIterator[bytes]:
        """All that is held on a person: the bytes of a zip file, in pieces."""
        request = people_pb2.ExportVoiceRequest(voice_id=voice_id)
        call = self._people.ExportVoice(request, metadata=self._metadata, timeout=EXPORT_BOUND_S)
        try:
            async for piece in call:
                yield piece.data
        except aio.AioRpcError as error:
            raise error_from_status(error, peer=self._address) from None
        finally:
            call.cancel()

    async def _ask(self, call: Awaitable[AnswerT]) -> AnswerT:
        try:
            return await call
        except aio.AioRpcError as error:
            raise error_from_status(error, peer=self._address) from None


def timestamp(seconds: float) -> Timestamp:
    """Unix seconds as a Timestamp."""
    whole = int(seconds // 1)
    return Timestamp(seconds=whole, nanos=round((seconds - whole) * 1e9) % 1_000_000_000)
