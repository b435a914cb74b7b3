"""Two nodes of one name, as a cloned machine makes them; and words of the fleet that come a second time."""

from __future__ import annotations

import json
import signal
import time

import grpc
import numpy as np
import pytest
from grpc import aio

from runtime.grpc_server import open_channel
from speakerd.client import Client, StreamOptions
from speakerd.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc, node_pb2, node_pb2_grpc, people_pb2
from tests.faults.figures import Figures
from tests.faults.processes import Daemon, Processes, node_arguments, pcm, tones, until, voice
from tests.faults.raw_streams import raw_stream
from tests.faults.streaming import stream
from tests.faults.test_continuity import Fleet, fleet, wav

ERASED_WITHIN_S = 15.0


def said(daemon: Daemon, since: int = 0) -> list[tuple[object, object]]:
    lines = daemon.log.read_text().splitlines()[since:]
    return [(one["event"], one.get("state")) for one in map(json.loads, (line for line in lines if line[:1] == "{"))]


async def refused(call: aio.UnaryUnaryCall) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as error:
        await call
    return error.value.code()


async def state_of(client: Client, node_id: str) -> int:
    states = [node.state for node in (await client.nodes()).nodes if node.node_id == node_id]
    return states[0] if states else node_pb2.NODE_STATE_UNSPECIFIED


@pytest.mark.deep
@pytest.mark.fault("F20", "P1", "P2", "P3")
async def test_of_two_nodes_of_one_name_one_serves_and_who_lost_it_forgets_everybody(
    daemons: Processes, figures: Figures
) -> None:
    async with fleet(daemons, "n1") as made, made.client() as client:
        ids = [
            (await client.enroll(f"Person {number}", [wav(tones(4, *voice(number)))])).voice.voice_id
            for number in range(2)
        ]
        first = made.nodes["n1"]
        # The same name, key and settings; another process, as from a copy of the first one's disk.
        copy = await daemons.begin("copy", *node_arguments("n1", made.plane.grpc, made.data))
        await until(lambda: ("fleet.renew_failed", None) in said(copy), 30)
        assert await state_of(client, "n1") == node_pb2.NODE_STATE_SERVING
        told = await stream(client, pcm(tones(6, *voice(0))), StreamOptions(latency_ms=500), pace=0)
        assert "Person 0" in {turn.label for turn in told.turns}, "the first one serves as before"

        key = (made.data / "admin.key").read_text().strip()
        sound = pcm(np.tile(tones(10, *voice(0)), 20))
        async with raw_stream(made.plane.grpc, key, "n1", [], sound) as staying:
            await staying.hears("Person 0")
            since = len(first.log.read_text().splitlines())
            first.send(signal.SIGSTOP)
            frozen_s = time.monotonic()
            await copy.is_ready(60)
            figures.record("the second is let in, once the first is frozen, after", time.monotonic() - frozen_s)
            asked_s = time.monotonic()
            proof = await client.erase(ids[0], wait_s=25)
            erased_s = time.monotonic()
            assert proof.state == people_pb2.Erasure.STATE_ERASED and erased_s - asked_s <= ERASED_WITHIN_S
            figures.record("an erasure is proven then after", erased_s - asked_s)
            first.send(signal.SIGCONT)
            thawed_s = time.monotonic()
            await until(lambda: not staying.is_open or "spk_0" in staying.said_after(thawed_s), 60)
            await until(lambda: ("fleet.renew_failed", None) in said(first, since), 30)
            assert said(first, since)[0] == ("lease.lapsed", None)
            assert ("node.state", "serving") not in said(first, since)
        assert "Person 0" not in staying.said_after(erased_s)

        # When the second is gone the first may have its name again.
        await copy.kill()
        killed_s = time.monotonic()
        await until(lambda: ("node.state", "serving") in said(first, since), 60)
        figures.record("the first serves again, once the second is killed, after", time.monotonic() - killed_s)
        told = await stream(client, pcm(tones(6, *voice(1))), StreamOptions(latency_ms=500), pace=0)
        assert "Person 1" in {turn.label for turn in told.turns}
        await _words_that_come_again(made, client, ids)


async def _words_that_come_again(made: Fleet, client: Client, ids: list[str]) -> None:
    """Commands to a node and its words to the control plane, sent again by somebody who has the fleet's key."""
    metadata = (("authorization", f"Bearer {(made.data / 'fleet.key').read_text().strip()}"),)
    async with open_channel(made.nodes["n1"].grpc) as channel, open_channel(made.plane.grpc) as plane:
        node, fleet_of = node_pb2_grpc.NodeStub(channel), fleet_pb2_grpc.FleetStub(plane)
        now = await node.Describe(node_pb2.DescribeRequest(), metadata=metadata)
        head = (await client.nodes()).head

        async def held() -> set[str]:
            found = [part async for part in node.Inventory(node_pb2.InventoryRequest(), metadata=metadata)]
            return {one.voice_id for part in found for one in part.voices}

        def enrolment(incarnation: int, revision: int) -> node_pb2.EnrollRequest:
            clip = common_pb2.AudioClip(
                data=pcm(tones(4, *voice(0))),
                format=common_pb2.AudioFormat(
                    encoding=common_pb2.ENCODING_PCM_S16LE, sample_rate_hz=16_000, channels=1
                ),
            )
            position = node_pb2.LogPosition(incarnation=incarnation, revision=revision, as_of=revision)
            ref = common_pb2.VoiceRef(tenant_id="default", voice_id=ids[0], generation=1)
            return node_pb2.EnrollRequest(voice=ref, label="Person 0", clip=clip, position=position)

        def eviction(incarnation: int) -> node_pb2.EvictRequest:
            ref = common_pb2.VoiceRef(tenant_id="default", voice_id=ids[1], generation=1)
            return node_pb2.EvictRequest(
                voice=ref, position=node_pb2.LogPosition(incarnation=incarnation, revision=head + 5)
            )

        assert await held() == {ids[1]}
        # Of an incarnation that has ended: refused.
        old = now.incarnation - 1
        assert await refused(node.Enroll(enrolment(old, 1), metadata=metadata)) is grpc.StatusCode.FAILED_PRECONDITION
        assert await refused(node.Evict(eviction(old), metadata=metadata)) is grpc.StatusCode.FAILED_PRECONDITION
        # Of this one, and applied long ago: acknowledged, and nothing comes of it.
        await node.Enroll(enrolment(now.incarnation, 1), metadata=metadata)
        assert await held() == {ids[1]}
        # Ahead of the log: read the log, which does not hold it.
        assert await refused(node.Evict(eviction(now.incarnation), metadata=metadata)) is grpc.StatusCode.UNAVAILABLE
        assert await held() == {ids[1]}
        # A renewal of an incarnation that was lost prolongs nothing, whoever's it was.
        renewal = fleet_pb2.RenewRequest(
            node_id="n1", process_id="0" * 16, incarnation=old, cursor=head, address=made.nodes["n1"].grpc,
            model=now.model, state=node_pb2.NODE_STATE_SERVING, voices_digest=bytes(32),
        )  # fmt: skip
        assert await refused(fleet_of.Renew(renewal, metadata=metadata)) is grpc.StatusCode.FAILED_PRECONDITION
        renewal.incarnation = now.incarnation
        assert await refused(fleet_of.Renew(renewal, metadata=metadata)) is grpc.StatusCode.FAILED_PRECONDITION
        assert await state_of(client, "n1") == node_pb2.NODE_STATE_SERVING
