"""kill -9 of a node at each step of what it does for an enrolment and an erasure: both end well without it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from node import fault_points
from speakerd.client import Client, SpeakerdError, StreamOptions
from speakerd.v1 import node_pb2, people_pb2
from tests.faults.figures import Figures
from tests.faults.listening import Listening
from tests.faults.processes import ROOT, Daemon, Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.streaming import stream
from tests.faults.test_continuity import held, wav

READY = people_pb2.Voice.STATE_READY
CONVERGES_WITHIN_S = 60.0
ERASED_WITHIN_S = 15.0
STALLS_S = 15.0
"""What a machine that stalls may add."""
QUICK = ("enroll.written", "evict.unnamed")


class Fleet:
    """A control plane, a node that is left alone, and one that is killed at one point after another."""

    def __init__(self, daemons: Processes, plane: Daemon, figures: Figures) -> None:
        self.daemons = daemons
        self.plane = plane
        self.figures = figures
        self.data = daemons.folder / "data"
        self.enrolled = 0
        self.client = Client(plane.grpc, (self.data / "admin.key").read_text().strip())

    async def node(self, node_id: str, fault_point: str = "") -> Daemon:
        return await self.daemons.start(
            node_id, *node_arguments(node_id, self.plane.grpc, self.data), fault_point=fault_point
        )

    async def enrol(self, number: int) -> people_pb2.Voice:
        """Ask, again where there is no answer: the same request gives the same voice."""
        label, found = f"Person {number}", list[people_pb2.Voice]()

        async def answered() -> bool:
            with contextlib.suppress(SpeakerdError):
                answer = await self.client.enroll(label, [wav(tones(4, *voice(number)))], idempotency_key=label)
                found.append(answer.voice)
            return bool(found)

        await until(answered, CONVERGES_WITHIN_S)
        (only,) = await self.client.voices(label=label)
        assert (only.voice_id, only.generation) == (found[0].voice_id, 1)
        return only

    async def held_by(self, voice_id: str, *node_ids: str) -> float:
        """Wait until just these nodes hold a voice; how long that took."""
        began_s = time.monotonic()

        async def held() -> bool:
            known = await self.client.voice(voice_id)
            return known.state == READY and list((await self.client.warmth(voice_id)).warm_node_ids) == list(node_ids)

        await until(held, CONVERGES_WITHIN_S)
        return time.monotonic() - began_s

    async def verified(self, dead: str = "") -> None:
        """The audit is whole, and every node that runs holds what SQL says, to the digest."""
        verdict = await self.client.verify_audit()
        assert not [problem for problem in verdict.problems if not dead or dead not in problem], verdict
        assert all(node.ok for node in verdict.nodes if node.node_id != dead), verdict


@contextlib.asynccontextmanager
async def fleet(daemons: Processes, figures: Figures) -> AsyncIterator[Fleet]:
    plane = await daemons.start("plane", *plane_arguments(daemons.folder / "data"))
    made = Fleet(daemons, plane, figures)
    async with made.client:
        yield made


async def killed(node: Daemon, point: str) -> None:
    try:
        assert await node.ended(60) == -signal.SIGKILL, point
    except TimeoutError:
        raise AssertionError(f"{point} was not reached") from None


async def analysis(made: Fleet, points: Sequence[str]) -> None:
    """The only node dies with the recording in its hands: the voice waits, and is there once any node is."""
    number = made.enrolled
    made.enrolled += 1
    voice_id = ""
    for point in points:
        victim = await made.node("n2", point)
        voice_id = (await made.enrol(number)).voice_id
        await killed(victim, point)
        assert (await made.client.voice(voice_id)).state == people_pb2.Voice.STATE_PENDING
    await made.node("n1")
    if not voice_id:
        return
    took_s = await made.held_by(voice_id, "n1")
    made.figures.record("a voice that waited is held, after a node is back,", took_s, cell="F2")
    await made.verified(dead="n2")


async def enrolment(made: Fleet, point: str) -> None:
    """One of two nodes dies as it takes a voice: the enrolment is answered, and the node holds it when it is back."""
    victim = await made.node("n2", point)
    number = made.enrolled
    made.enrolled += 1
    found = await made.enrol(number)
    await held(made.client, found.voice_id)
    await killed(victim, point)
    back = await made.node("n2")
    took_s = await made.held_by(found.voice_id, "n1", "n2")
    made.figures.record("a voice is held by both nodes, after the killed one is back,", took_s, cell="F2")
    await made.verified()
    await back.kill()


async def erasure(made: Fleet, point: str) -> None:
    """One of two nodes dies as it forgets a voice: that is proven all the same, and nobody is named afterwards."""
    number = made.enrolled
    made.enrolled += 1
    found = await made.enrol(number)
    victim = await made.node("n2", point)
    await made.held_by(found.voice_id, "n1", "n2")
    # The two go to the nodes in turn, and so one of them is named by the node that will die.
    listeners = [Listening(made.client, number) for _ in range(2)]
    for one in listeners:
        await one.hears(f"Person {number}")
    asked_s = time.monotonic()
    proof = await made.client.erase(found.voice_id, wait_s=25)
    erased_s = time.monotonic()
    assert proof.state == people_pb2.Erasure.STATE_ERASED and erased_s - asked_s <= ERASED_WITHIN_S + STALLS_S
    made.figures.record("proven after", erased_s - asked_s, cell="F3")
    await killed(victim, point)
    assert {node.node_id: node.ok for node in proof.nodes}["n1"]
    for one in listeners:
        await one.hears("spk_0", erased_s)
    back = await made.node("n2")
    await until(lambda: _serves(made.client, "n2"), CONVERGES_WITHIN_S)
    await made.verified()
    for one in listeners:
        one.done.set()
        told = await one.task
        told.require_in_order()
        told.require_all_heard()
        assert f"Person {number}" not in one.said_after(erased_s)
    # Nor in a stream that begins now, on whichever node.
    told = await stream(made.client, pcm(tones(6, *voice(number))), StreamOptions(latency_ms=500), pace=0)
    assert {turn.label for turn in told.turns} == {"spk_0"}
    made.figures.record("names said after that", 0, "", cell="F3")
    await back.kill()


async def _serves(client: Client, node_id: str) -> bool:
    return any(
        node.node_id == node_id and node.state == node_pb2.NODE_STATE_SERVING for node in (await client.nodes()).nodes
    )


async def sweep(made: Fleet, points: frozenset[str]) -> None:
    await analysis(made, [point for point in fault_points.ANALYSIS if point in points])
    for point in fault_points.ENROLMENT:
        if point in points:
            await enrolment(made, point)
    for point in fault_points.EVICTION:
        if point in points:
            await erasure(made, point)


def test_every_point_is_in_the_code() -> None:
    code = "".join(path.read_text() for path in Path(ROOT / "node").glob("*.py"))
    for point in fault_points.POINTS:
        assert code.count(f'reach("{point}")') == 1, point


@pytest.mark.fault("F2", "P5", "P3")
@pytest.mark.fault("F3", "P1", "P2")
async def test_a_node_that_is_killed_in_the_middle_leaves_nothing_half_done(
    daemons: Processes, figures: Figures
) -> None:
    async with fleet(daemons, figures) as made:
        await sweep(made, frozenset(QUICK))


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.fault("F2", "P5", "P3")
@pytest.mark.fault("F3", "P1", "P2")
async def test_a_node_that_is_killed_at_any_step_leaves_nothing_half_done(daemons: Processes, figures: Figures) -> None:
    async with fleet(daemons, figures) as made:
        await sweep(made, fault_points.POINTS)
