"""Every method of every service asks who calls, and how far that reaches."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor

from controlplane.database.schema import api_keys
from controlplane.identity import add_key, new_key
from runtime.clock import SystemClock
from speakerd.v1 import admin_pb2, audit_pb2, fleet_pb2, jobs_pb2, people_pb2, streams_pb2
from tests.controlplane.conftest import World
from tests.every_method import refusals

TENANTS = [
    people_pb2.DESCRIPTOR.services_by_name["People"],
    streams_pb2.DESCRIPTOR.services_by_name["Streams"],
    jobs_pb2.DESCRIPTOR.services_by_name["Jobs"],
    admin_pb2.DESCRIPTOR.services_by_name["Admin"],
    audit_pb2.DESCRIPTOR.services_by_name["Audit"],
]
FLEET = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"]


def as_bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize("service", [*TENANTS, FLEET], ids=lambda service: service.name)
async def test_no_method_answers_a_stranger(world: World, service: ServiceDescriptor) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    keys = [(world.data / name).read_text().strip() for name in ("admin.key", "fleet.key")]
    # Each key is a stranger where the other one belongs.
    misplaced = keys[0] if service is FLEET else keys[1]
    tampered = [f"{key}x" for key in keys] + [key[:-1] for key in keys]
    basic = (("authorization", f"Basic {keys[0]}"),)
    for metadata in ((), basic, *(as_bearer(token) for token in (misplaced, "", "sk_x_y", "sk__", *tampered))):
        answered = await refusals(client.channel, service, metadata)
        assert set(answered.values()) == {grpc.StatusCode.UNAUTHENTICATED}, (metadata, answered)


@pytest.mark.parametrize("service", TENANTS, ids=lambda service: service.name)
async def test_no_method_answers_a_key_without_its_scope_or_one_that_was_revoked(
    world: World, service: ServiceDescriptor
) -> None:
    plane = await world.plane()
    bare, revoked = new_key(), new_key()
    async with plane.core.database.write() as connection:
        await add_key(connection, bare, "default", frozenset(), SystemClock())
        await add_key(connection, revoked, "default", frozenset({"admin"}), SystemClock())
        await connection.execute(
            api_keys.update().where(api_keys.c.key_id == revoked.split("_")[1]).values(revoked_at_s=1.0)
        )
    client = await world.client(plane)
    answered = await refusals(client.channel, service, as_bearer(bare))
    assert set(answered.values()) == {grpc.StatusCode.PERMISSION_DENIED}, answered
    answered = await refusals(client.channel, service, as_bearer(revoked))
    assert set(answered.values()) == {grpc.StatusCode.UNAUTHENTICATED}, answered
