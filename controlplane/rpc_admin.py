"""speakerd.v1.Admin on the wire: translates, makes one call, translates back."""

from __future__ import annotations

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from controlplane.accounts import Key, NewKey, Tenant, User
from controlplane.administration import Administration
from controlplane.identity import Identity
from controlplane.kek_rotation import KekRotation
from controlplane.people_wire import seconds_of, timestamp
from controlplane.policy import Principal
from controlplane.quotas import Quotas
from controlplane.scopes import ADMIN
from runtime.grpc_server import bearer
from speakerd.v1 import admin_pb2, admin_pb2_grpc

Context = aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServicer):
    """The wire side of administration."""

    def __init__(self, identity: Identity, administration: Administration, rotation: KekRotation) -> None:
        self._identity = identity
        self._administration = administration
        self._rotation = rotation

    async def CreateTenant(self, request: admin_pb2.CreateTenantRequest, context: Context) -> admin_pb2.Tenant:  # noqa: N802
        """A new tenant."""
        principal = await self._caller(context)
        return _tenant(
            await self._administration.create_tenant(principal, request.tenant_id, _quotas_of(request.quotas))
        )

    async def ListTenants(  # noqa: N802
        self, request: admin_pb2.ListTenantsRequest, context: Context
    ) -> admin_pb2.ListTenantsResponse:
        """All that the caller administers."""
        found = await self._administration.list_tenants(await self._caller(context))
        return admin_pb2.ListTenantsResponse(tenants=[_tenant(tenant) for tenant in found])

    async def DeleteTenant(  # noqa: N802
        self, request: admin_pb2.DeleteTenantRequest, context: Context
    ) -> admin_pb2.DeleteTenantResponse:
        """Close a tenant and erase its voices."""
        principal = await self._caller(context)
        audit_ids = await self._administration.delete_tenant(principal, request.tenant_id)
        return admin_pb2.DeleteTenantResponse(audit_ids=audit_ids)

    async def SetQuotas(self, request: admin_pb2.SetQuotasRequest, context: Context) -> admin_pb2.Tenant:  # noqa: N802
        """Other limits."""
        principal = await self._caller(context)
        return _tenant(await self._administration.set_quotas(principal, request.tenant_id, _quotas_of(request.quotas)))

    async def CreateUser(self, request: admin_pb2.CreateUserRequest, context: Context) -> admin_pb2.User:  # noqa: N802
        """A new user."""
        principal = await self._caller(context)
        return _user(await self._administration.create_user(principal, request.tenant_id, request.user_id))

    async def ListUsers(self, request: admin_pb2.ListUsersRequest, context: Context) -> admin_pb2.ListUsersResponse:  # noqa: N802
        """A tenant's users."""
        found = await self._administration.list_users(await self._caller(context), request.tenant_id)
        return admin_pb2.ListUsersResponse(users=[_user(user) for user in found])

    async def DeleteUser(self, request: admin_pb2.DeleteUserRequest, context: Context) -> admin_pb2.DeleteUserResponse:  # noqa: N802
        """Close a user and erase their voices."""
        principal = await self._caller(context)
        audit_ids = await self._administration.delete_user(principal, request.tenant_id, request.user_id)
        return admin_pb2.DeleteUserResponse(audit_ids=audit_ids)

    async def CreateKey(self, request: admin_pb2.CreateKeyRequest, context: Context) -> admin_pb2.CreateKeyResponse:  # noqa: N802
        """A key, and its secret this once."""
        principal = await self._caller(context)
        wanted = NewKey(
            scopes=frozenset(request.scopes),
            user_id=request.user_id or None,
            purpose=request.purpose,
            expires_at_s=seconds_of(request.expires_at) if request.HasField("expires_at") else None,
        )
        key, secret = await self._administration.create_key(principal, request.tenant_id, wanted)
        return admin_pb2.CreateKeyResponse(key=_key(key), secret=secret)

    async def ListKeys(self, request: admin_pb2.ListKeysRequest, context: Context) -> admin_pb2.ListKeysResponse:  # noqa: N802
        """A tenant's keys."""
        found = await self._administration.list_keys(await self._caller(context), request.tenant_id)
        return admin_pb2.ListKeysResponse(keys=[_key(key) for key in found])

    async def RotateKey(self, request: admin_pb2.RotateKeyRequest, context: Context) -> admin_pb2.CreateKeyResponse:  # noqa: N802
        """A new key in the place of an old one."""
        principal = await self._caller(context)
        overlap_s = float(request.overlap_s) if request.HasField("overlap_s") else None
        key, secret = await self._administration.rotate_key(principal, request.key_id, overlap_s)
        return admin_pb2.CreateKeyResponse(key=_key(key), secret=secret)

    async def RevokeKey(self, request: admin_pb2.RevokeKeyRequest, context: Context) -> admin_pb2.Key:  # noqa: N802
        """End a key."""
        return _key(await self._administration.revoke_key(await self._caller(context), request.key_id))

    async def RotateKek(self, request: admin_pb2.RotateKekRequest, context: Context) -> admin_pb2.RotateKekResponse:  # noqa: N802
        """Wrap all keys anew."""
        done = await self._rotation.rotate(await self._caller(context))
        return admin_pb2.RotateKekResponse(
            kek_id=done.kek_id, num_rewrapped=done.num_rewrapped, old_key_dropped=done.old_key_dropped
        )

    async def _caller(self, context: Context) -> Principal:
        return await self._identity.principal(bearer(context), ADMIN)


def _quotas_of(said: admin_pb2.Quotas) -> Quotas:
    return Quotas(
        voices_max=said.voices_max or None,
        streams_max=said.streams_max or None,
        jobs_max=said.jobs_max or None,
        storage_bytes_max=said.storage_bytes_max or None,
    )


def _tenant(tenant: Tenant) -> admin_pb2.Tenant:
    quotas = tenant.quotas
    return admin_pb2.Tenant(
        tenant_id=tenant.tenant_id,
        created_at=timestamp(tenant.created_at_s),
        closed_at=_maybe(tenant.closed_at_s),
        quotas=admin_pb2.Quotas(
            voices_max=quotas.voices_max or 0,
            streams_max=quotas.streams_max or 0,
            jobs_max=quotas.jobs_max or 0,
            storage_bytes_max=quotas.storage_bytes_max or 0,
        ),
        voices=tenant.used.voices,
        storage_bytes=tenant.used.storage_bytes,
    )


def _user(user: User) -> admin_pb2.User:
    return admin_pb2.User(
        tenant_id=user.tenant_id,
        user_id=user.user_id,
        created_at=timestamp(user.created_at_s),
        closed_at=_maybe(user.closed_at_s),
    )


def _key(key: Key) -> admin_pb2.Key:
    return admin_pb2.Key(
        key_id=key.key_id,
        tenant_id=key.tenant_id,
        user_id=key.user_id or "",
        scopes=key.scopes,
        purpose=key.purpose,
        created_at=timestamp(key.created_at_s),
        expires_at=_maybe(key.expires_at_s),
        last_used_at=_maybe(key.last_used_at_s),
        revoked_at=_maybe(key.revoked_at_s),
        replaced_by=key.replaced_by or "",
    )


def _maybe(seconds: float | None) -> Timestamp | None:
    return None if seconds is None else timestamp(seconds)
