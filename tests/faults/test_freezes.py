"""SIGSTOP and SIGCONT: nodes, the control plane and Redis freeze, and wake into a world that has gone on."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import numpy as np
import psutil
import pytest

from speakerd.client import Client, SpeakerdError, StreamOptions
from speakerd.v1 import node_pb2, people_pb2
from tests.faults.figures import Figures
from tests.faults.listening import Listening
from tests.faults.processes import Processes, pcm, tones, until, voice
from tests.faults.raw_streams import raw_stream
from tests.faults.streaming import stream
from tests.faults.test_continuity import Fleet, fleet, held, wav

NODES = ("n1", "n2", "n3")
ERASED_WITHIN_S = 15.0


async def enrol(client: Client, number: int) -> str:
    answer = await client.enroll(f"Person {number}", [wav(tones(4, *voice(number)))])
    await held(client, answer.voice.voice_id)
    return answer.voice.voice_id


def events(made: Fleet, node_id: str, since: int = 0) -> list[dict[str, object]]:
    lines = (made.daemons.folder / f"{node_id}.log").read_text().splitlines()[since:]
    return [json.loads(line) for line in lines if line.startswith("{")]


async def serving(client: Client) -> set[str]:
    nodes = (await client.nodes()).nodes
    return {node.node_id for node in nodes if node.state == node_pb2.NODE_STATE_SERVING}


async def ended(*listeners: Listening) -> None:
    for one in listeners:
        one.done.set()
        told = await one.task
        told.require_in_order()
        told.require_all_heard()


@pytest.mark.deep
@pytest.mark.fault("F5", "P6", "P1", "P2", "P3")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("frozen_s", [3, 60])
async def test_a_node_that_thaws_names_nobody_who_was_erased_while_it_was_frozen(
    daemons: Processes, figures: Figures, frozen_s: int
) -> None:
    async with fleet(daemons, *NODES) as made, made.client() as client:
        voice_id = await enrol(client, 0)
        following = Listening(client, 0)
        await following.hears("Person 0")
        victim = following.told.nodes[-1]
        key = (made.data / "admin.key").read_text().strip()
        others = [node_id for node_id in NODES if node_id != victim]
        sound = pcm(np.tile(tones(10, *voice(0)), 30))
        async with raw_stream(made.plane.grpc, key, victim, others, sound) as staying:
            await staying.hears("Person 0")
            since = len((daemons.folder / f"{victim}.log").read_text().splitlines())
            made.nodes[victim].send(signal.SIGSTOP)
            frozen_at_s = time.monotonic()
            erasing = asyncio.create_task(client.erase(voice_id, wait_s=25))
            erasing.add_done_callback(lambda _: erased.append(time.monotonic()))
            erased = list[float]()
            await asyncio.sleep(frozen_s)
            made.nodes[victim].send(signal.SIGCONT)
            thawed_s = time.monotonic()

            proof = await erasing
            assert proof.state == people_pb2.Erasure.STATE_ERASED
            assert erased[0] - frozen_at_s <= ERASED_WITHIN_S
            figures.record(f"frozen for {frozen_s} s: proven after", erased[0] - frozen_at_s)
            if frozen_s > ERASED_WITHIN_S:
                assert list(proof.residual_node_ids) == [victim]
                # It lost its lease as it slept: forgetting everybody is the first thing that it does.
                await until(lambda: events(made, victim, since), 30)
                assert events(made, victim, since)[0]["event"] == "lease.lapsed"
                noticed_s, resumed_s = following.told.loss(frozen_at_s)
                figures.record(f"frozen for {frozen_s} s: noticed after", noticed_s)
                figures.record(f"frozen for {frozen_s} s: the stream goes on after", resumed_s)

            async def serves_again() -> bool:
                return victim in await serving(client) and made.nodes[victim].process.returncode is None

            await until(serves_again, 60)
            figures.record(f"frozen for {frozen_s} s: serves again, after the thaw,", time.monotonic() - thawed_s)
            await following.hears("spk_0", erased[0])
            # What waited for the node in the network all that time is heard by it now, if the connection lives.
            await until(lambda: not staying.is_open or "spk_0" in staying.said_after(max(thawed_s, erased[0])), 60)
        assert "Person 0" not in staying.said_after(erased[0])
        await ended(following)
        assert "Person 0" not in following.said_after(erased[0])
        told = await stream(client, pcm(tones(6, *voice(0))), StreamOptions(latency_ms=500), pace=0)
        assert {turn.label for turn in told.turns} == {"spk_0"}

        async def verified() -> bool:
            verdict = await client.verify_audit()
            return verdict.ok and all(node.ok for node in verdict.nodes) and len(verdict.nodes) == len(NODES)

        await until(verified, 30)


@pytest.mark.deep
@pytest.mark.fault("F6", "P10", "P4", "P1")
@pytest.mark.timeout(400)
async def test_streams_outlive_a_frozen_redis_and_a_frozen_control_plane(daemons: Processes, figures: Figures) -> None:
    async with fleet(daemons, *NODES) as made, made.client() as client:
        ids = [await enrol(client, number) for number in range(3)]
        one, other = Listening(client, 0), Listening(client, 1)
        await one.hears("Person 0")
        await other.hears("Person 1")

        # Redis: whoever asks it waits for a moment, and goes on without.
        plane = psutil.Process(made.plane.process.pid)
        (redis,) = [child for child in plane.children(recursive=True) if "redis" in child.name()]
        redis.suspend()
        try:
            placements = []
            for _ in range(8):
                asked_s = time.monotonic()
                async with await client.open_stream():
                    placements.append(time.monotonic() - asked_s)
            figures.record("Redis frozen: a stream is open after, at worst", max(placements))
            asked_s = time.monotonic()
            late_id = await enrol(client, 4)
            figures.record("Redis frozen: an enrolment takes", time.monotonic() - asked_s)
            asked_s = time.monotonic()
            proof = await client.erase(ids[2], wait_s=25)
            figures.record("Redis frozen: an erasure takes", time.monotonic() - asked_s)
            assert proof.state == people_pb2.Erasure.STATE_ERASED and not proof.residual_node_ids
        finally:
            redis.resume()
        back_s = time.monotonic()

        async def redis_is_back() -> bool:
            return (await client.nodes()).redis_up

        await until(redis_is_back, 30)
        figures.record("Redis is used again, after its thaw,", time.monotonic() - back_s)
        assert not one.degraded_s and not other.degraded_s and not one.told.resumed and not other.told.resumed

        # The control plane: streams keep their names for as long as leases last, and go on without them.
        made.plane.send(signal.SIGSTOP)
        frozen_s = time.monotonic()
        with pytest.raises(SpeakerdError) as unheard:
            async with asyncio.timeout(60):
                await client.erase(ids[1], wait_s=1)
        assert unheard.value.cause in {"unavailable", "timeout"}
        await until(lambda: one.degraded_s and other.degraded_s, 30)
        figures.record("control plane frozen: streams go on without names after", one.degraded_s[0][0] - frozen_s)
        await one.hears("spk_0", one.degraded_s[0][0])
        made.plane.send(signal.SIGCONT)
        thawed_s = time.monotonic()
        await until(lambda: one.degraded_s[-1][1] is False and other.degraded_s[-1][1] is False, 60)
        figures.record("control plane frozen: names are back, after its thaw,", one.degraded_s[-1][0] - thawed_s)
        # Whether that erasure was taken is not known to who asked: asked again, it is the same one, and ends.
        proof = await client.erase(ids[1], wait_s=25)
        erased_s = time.monotonic()
        assert proof.state == people_pb2.Erasure.STATE_ERASED
        await other.hears("spk_0", erased_s)
        await one.hears("Person 0", erased_s)
        await ended(one, other)
        assert "Person 1" not in other.said_after(erased_s)
        assert not one.told.resumed and not other.told.resumed, "nobody had to move"
        figures.record("streams that broke off", 0, "")
        (kept,) = await client.voices(label="Person 4")
        assert kept.voice_id == late_id
        assert (await client.verify_audit()).ok
