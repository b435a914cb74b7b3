"""`speakerd tenants`, `users`, `keys`: who may call. A key's secret is printed once, as it is made."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from speakerd.administration import Administration, timestamp
from speakerd.cli.connection import DataOption, KeyOption, ServerOption, find_connection
from speakerd.cli.output import JsonFlag, Output
from speakerd.v1 import admin_pb2

tenants_commands = typer.Typer(no_args_is_help=True, help="Tenants, for administrators of the platform.")
users_commands = typer.Typer(no_args_is_help=True, help="Users of a tenant, for whom keys stand.")
keys_commands = typer.Typer(no_args_is_help=True, help="API keys, and the key that all voices are sealed under.")

ResultT = TypeVar("ResultT")
_DURATION = re.compile(r"(\d+)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

TenantOption = Annotated[str, typer.Option("--tenant", metavar="ID", help="Another tenant than the key's own.")]
VoicesMaxOption = Annotated[int, typer.Option(help="Most voices; 0: no limit.", min=0)]
StreamsMaxOption = Annotated[int, typer.Option(help="Most streams at once; 0: no limit.", min=0)]
JobsMaxOption = Annotated[int, typer.Option(help="Most recordings at once; 0: no limit.", min=0)]
StorageMaxOption = Annotated[int, typer.Option(help="Most bytes of recordings kept; 0: no limit.", min=0)]


@tenants_commands.command("create")
def create_tenant(
    tenant_id: Annotated[str, typer.Argument(metavar="ID", help="Letters, digits and _ . : -, at most 64.")],
    *,
    voices_max: VoicesMaxOption = 0,
    streams_max: StreamsMaxOption = 0,
    jobs_max: JobsMaxOption = 0,
    storage_bytes_max: StorageMaxOption = 0,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a tenant. Give it a first key with `speakerd keys create --tenant ID --scope admin`."""
    out = Output(as_json=as_json)
    quotas = admin_pb2.Quotas(
        voices_max=voices_max, streams_max=streams_max, jobs_max=jobs_max, storage_bytes_max=storage_bytes_max
    )
    made = _with(server, key, data, lambda admin: admin.create_tenant(tenant_id, quotas))
    out.result(_tenant(made))
    out.say(f"made the tenant {made.tenant_id}", style="green")


@tenants_commands.command("list")
def list_tenants(
    server: ServerOption = None, key: KeyOption = None, data: DataOption = None, as_json: JsonFlag = False
) -> None:
    """List tenants, with what they have and may have."""
    out = Output(as_json=as_json)
    found = _with(server, key, data, lambda admin: admin.tenants())
    out.result({"tenants": [_tenant(tenant) for tenant in found]})
    out.table(
        ("tenant", "voices", "recordings", "made", "closed"),
        (
            (
                tenant.tenant_id,
                _of(tenant.voices, tenant.quotas.voices_max),
                _of(tenant.storage_bytes, tenant.quotas.storage_bytes_max),
                _when(tenant, "created_at"),
                _when(tenant, "closed_at"),
            )
            for tenant in found
        ),
    )


@tenants_commands.command("quotas")
def set_quotas(
    tenant_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    voices_max: VoicesMaxOption = 0,
    streams_max: StreamsMaxOption = 0,
    jobs_max: JobsMaxOption = 0,
    storage_bytes_max: StorageMaxOption = 0,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Set a tenant's quotas, in place of those of before."""
    out = Output(as_json=as_json)
    quotas = admin_pb2.Quotas(
        voices_max=voices_max, streams_max=streams_max, jobs_max=jobs_max, storage_bytes_max=storage_bytes_max
    )
    made = _with(server, key, data, lambda admin: admin.set_quotas(tenant_id, quotas))
    out.result(_tenant(made))
    out.say(f"set the quotas of {made.tenant_id}", style="green")


@tenants_commands.command("delete")
def delete_tenant(
    tenant_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Close a tenant: its keys open nothing any more, and every voice of it is erased."""
    out = Output(as_json=as_json)
    if not sure:
        typer.confirm(f"erase every voice of {tenant_id}?", abort=True, err=True)
    audit_ids = _with(server, key, data, lambda admin: admin.delete_tenant(tenant_id))
    out.result({"tenant_id": tenant_id, "audit_ids": audit_ids})
    out.say(f"closed the tenant {tenant_id}; {len(audit_ids)} voices are being erased", style="green")


@users_commands.command("create")
def create_user(
    user_id: Annotated[str, typer.Argument(metavar="ID", help="Your own id for them; not a name, for it is logged.")],
    *,
    tenant: TenantOption = "",
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a user, who may have voices that are for them alone."""
    out = Output(as_json=as_json)
    made = _with(server, key, data, lambda admin: admin.create_user(user_id, tenant_id=tenant))
    out.result(_user(made))
    out.say(f"made the user {made.user_id} of {made.tenant_id}", style="green")


@users_commands.command("list")
def list_users(
    *,
    tenant: TenantOption = "",
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List a tenant's users."""
    out = Output(as_json=as_json)
    found = _with(server, key, data, lambda admin: admin.users(tenant_id=tenant))
    out.result({"users": [_user(user) for user in found]})
    out.table(
        ("user", "made", "closed"),
        ((user.user_id, _when(user, "created_at"), _when(user, "closed_at")) for user in found),
    )


@users_commands.command("delete")
def delete_user(
    user_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    tenant: TenantOption = "",
    sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Close a user: their keys open nothing any more, and the voices that are theirs alone are erased."""
    out = Output(as_json=as_json)
    if not sure:
        typer.confirm(f"erase the voices that are {user_id}'s alone?", abort=True, err=True)
    audit_ids = _with(server, key, data, lambda admin: admin.delete_user(user_id, tenant_id=tenant))
    out.result({"user_id": user_id, "audit_ids": audit_ids})
    out.say(f"closed the user {user_id}; {len(audit_ids)} voices are being erased", style="green")


@keys_commands.command("create")
def create_key(
    *,
    scope: Annotated[list[str], typer.Option("--scope", help="What it may do; repeat it.")],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="The user that it stands for.")] = "",
    purpose: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: Annotated[str, typer.Option(metavar="90d", help="When it ends: s, m, h or d. Default: never.")] = "",
    tenant: TenantOption = "",
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an API key. Its secret is printed this once."""
    out = Output(as_json=as_json)
    request = admin_pb2.CreateKeyRequest(
        tenant_id=tenant,
        user_id=user,
        scopes=scope,
        purpose=purpose,
        expires_at=timestamp(time.time() + seconds_of(expires_in)) if expires_in else None,
    )
    _show_secret(out, _with(server, key, data, lambda admin: admin.create_key(request)))


@keys_commands.command("list")
def list_keys(
    *,
    tenant: TenantOption = "",
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List a tenant's keys, without their secrets."""
    out = Output(as_json=as_json)
    found = _with(server, key, data, lambda admin: admin.keys(tenant_id=tenant))
    out.result({"keys": [_key(one) for one in found]})
    out.table(
        ("key", "user", "scopes", "purpose", "last used", "ends"),
        (
            (
                one.key_id,
                one.user_id,
                " ".join(one.scopes),
                one.purpose,
                _when(one, "last_used_at"),
                "revoked" if one.HasField("revoked_at") else _when(one, "expires_at"),
            )
            for one in found
        ),
    )


@keys_commands.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY-ID", help="As `speakerd keys list` has it.")],
    *,
    overlap: Annotated[str, typer.Option(metavar="24h", help="How long the old one works yet.")] = "24h",
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a new key with the same reach in the place of an old one, which goes on for a while."""
    out = Output(as_json=as_json)
    overlap_s = seconds_of(overlap)
    _show_secret(out, _with(server, key, data, lambda admin: admin.rotate_key(key_id, overlap_s=overlap_s)))


@keys_commands.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY-ID")],
    *,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """End a key, now."""
    out = Output(as_json=as_json)
    ended = _with(server, key, data, lambda admin: admin.revoke_key(key_id))
    out.result(_key(ended))
    out.say(f"revoked {ended.key_id}", style="green")


@keys_commands.command("rotate-kek")
def rotate_kek(
    *, server: ServerOption = None, key: KeyOption = None, data: DataOption = None, as_json: JsonFlag = False
) -> None:
    """Wrap every voice's key with a new key-encryption key. Repeat it when it breaks off."""
    out = Output(as_json=as_json)
    with out.working("wrapping every voice's key anew"):
        done = _with(server, key, data, lambda admin: admin.rotate_kek())
    out.result({"kek_id": done.kek_id, "num_rewrapped": done.num_rewrapped, "old_key_dropped": done.old_key_dropped})
    out.say(f"{done.num_rewrapped} keys are wrapped by {done.kek_id}", style="green")
    if not done.old_key_dropped:
        out.say("  the old key may be taken away from every control plane now", style="yellow")


def seconds_of(text: str) -> int:
    """A duration such as 90d. Raises a usage error."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r}: write a number and s, m, h or d, for example 90d")
    return int(found[1]) * _SECONDS[found[2]]


def _with(
    server: str | None, key: str | None, data: Any, ask: Callable[[Administration], Awaitable[ResultT]]
) -> ResultT:
    connection = find_connection(server, key, data)

    async def run() -> ResultT:
        async with Administration(connection.address, connection.key, tls=connection.tls) as admin:
            return await ask(admin)

    return asyncio.run(run())


def _show_secret(out: Output, made: admin_pb2.CreateKeyResponse) -> None:
    out.result({**_key(made.key), "secret": made.secret})
    out.say(f"made the key {made.key.key_id} of {made.key.tenant_id}; this is the only time that it is shown:")
    out.say(made.secret, style="green")


def _tenant(tenant: admin_pb2.Tenant) -> dict[str, Any]:
    return {
        "tenant_id": tenant.tenant_id,
        "created_at": _json_time(tenant, "created_at"),
        "closed_at": _json_time(tenant, "closed_at"),
        "voices": tenant.voices,
        "storage_bytes": tenant.storage_bytes,
        "quotas": {
            "voices_max": tenant.quotas.voices_max or None,
            "streams_max": tenant.quotas.streams_max or None,
            "jobs_max": tenant.quotas.jobs_max or None,
            "storage_bytes_max": tenant.quotas.storage_bytes_max or None,
        },
    }


def _user(user: admin_pb2.User) -> dict[str, Any]:
    return {
        "tenant_id": user.tenant_id,
        "user_id": user.user_id,
        "created_at": _json_time(user, "created_at"),
        "closed_at": _json_time(user, "closed_at"),
    }


def _key(key: admin_pb2.Key) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "tenant_id": key.tenant_id,
        "user_id": key.user_id or None,
        "scopes": list(key.scopes),
        "purpose": key.purpose,
        "replaced_by": key.replaced_by or None,
        **{name: _json_time(key, name) for name in ("created_at", "expires_at", "last_used_at", "revoked_at")},
    }


def _json_time(message: Any, name: str) -> str | None:
    return getattr(message, name).ToJsonString() if message.HasField(name) else None


def _when(message: Any, name: str) -> str:
    found: Timestamp = getattr(message, name)
    return found.ToDatetime().strftime("%Y-%m-%d %H:%M") if message.HasField(name) else ""


def _of(used: int, most: int) -> str:
    return f"{used} of {most}" if most else str(used)
