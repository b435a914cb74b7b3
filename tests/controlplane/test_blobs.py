"""F14: the store of recordings does not answer."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from grpc import aio

from controlplane import blobs
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import WAIT_MS, World, until
from tests.faults.figures import Figures


@pytest.mark.fault("F14", "P5", "P2")
async def test_a_store_that_does_not_answer_holds_nobody_up(
    world: World, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(blobs, "BOUND_S", 0.5)
    plane = await world.plane()
    client = await world.client(plane)
    voice_id = (await client.enrol("Ada")).voice.voice_id
    store, hangs = plane.core.blobs._store, asyncio.Event()

    class Hanging:
        """Takes a call and never ends it, until it is let."""

        def list(self, prefix: str) -> object:
            return store.list(prefix)

        def __getattr__(self, name: str) -> object:
            async def call(*arguments: object, **options: object) -> object:
                await hangs.wait()
                return await getattr(store, name)(*arguments, **options)

            return call

    plane.core.blobs._store = Hanging()  # type: ignore[assignment]
    with pytest.raises(aio.AioRpcError) as refused:
        await client.enrol("Bob", seed=1)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    began_s = time.monotonic()
    erasure = await client.erase(voice_id, wait_ms=WAIT_MS)
    assert (erasure.state, erasure.blobs_pending) == (people_pb2.Erasure.STATE_ERASED, True)
    figures.record("store hangs: erasure proven in", time.monotonic() - began_s)
    hangs.set()

    async def is_deleted() -> bool:
        asked = people_pb2.GetErasureRequest(audit_id=erasure.audit_id)
        return not (await client.people.GetErasure(asked, metadata=client.metadata)).blobs_pending

    await until(is_deleted)
