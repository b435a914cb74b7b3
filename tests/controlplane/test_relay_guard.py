"""The lease of a relay: what leaves through a control plane that lost touch leaves under no name."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from controlplane import relay_guard
from controlplane.relay_guard import Relaying
from controlplane.relay_names import WITHHELD, strip_event, strip_result, voices_in, voices_of_event
from speakerd.v1 import common_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import WAIT_MS, Client, World, speech, until, wav
from tests.controlplane.fake_node import FakeNode
from tests.controlplane.test_audit import rows_of
from tests.controlplane.test_daemon import ROOT, Daemon
from tests.controlplane.test_relay import diarize

ERASED = people_pb2.Erasure.STATE_ERASED


def result_of(*voices: tuple[str, str]) -> node_pb2.FileResult:
    """A result that names these (label, voice id), one speaker each, and tells of the next one as runner-up."""
    turns, speakers = [], []
    for number, (label, voice_id) in enumerate(voices):
        said: dict[str, Any] = {"speaker": f"spk_{number}", "label": label, "voice_id": voice_id, "probability": 0.9}
        match = common_pb2.MatchReport(best_voice_id=voice_id, runner_up_voice_id=voices[(number + 1) % len(voices)][1])
        turns.append(common_pb2.Turn(**said))
        speakers.append(common_pb2.Speaker(match=match, **said))
    return node_pb2.FileResult(turns=turns, exclusive_turns=turns, speakers=speakers)


def test_whatever_is_denied_it_appears_nowhere_and_nothing_else_changes() -> None:
    generator = random.Random(5)
    voices = [(f"Name {index}", f"v_{index}") for index in range(5)]
    for _ in range(200):
        chosen = generator.sample(voices, generator.randint(1, 5))
        denied = {voice_id for _, voice_id in voices if generator.random() < 0.4}
        result = result_of(*chosen)
        events = [
            node_pb2.Turns(turns=result.turns),
            node_pb2.StreamClosed(speakers=result.speakers),
            *(
                node_pb2.Relabel(speaker=one.speaker, label=one.label, voice_id=one.voice_id, match=one.match)
                for one in result.speakers
            ),
            node_pb2.Progress(received_ms=5),
        ]
        before = [result.SerializeToString(), *(event.SerializeToString() for event in events)]
        allowed = {voice_id for _, voice_id in voices} - denied
        told_of = [voices_of_event(event) for event in events]
        told = [strip_result(result, allowed.__contains__)]
        told += [strip_event(event, allowed.__contains__) for event in events]
        after = [result.SerializeToString(), *(event.SerializeToString() for event in events)]
        for was, now, is_stripped in zip(before, after, told, strict=True):
            assert is_stripped == (was != now)
            for label, voice_id in voices:
                if voice_id in denied:
                    assert voice_id.encode() not in now
                    assert label.encode() not in now
        assert voices_in(result) == {voice_id for _, voice_id in chosen} - denied
        assert all(voices_of_event(event) <= named - denied for event, named in zip(events, told_of, strict=True))


async def test_a_live_stream_without_a_lease_names_nobody_until_it_is_heard_anew(world: World) -> None:
    plane = await world.plane()
    guard = plane.core.guard

    def labels(stream: Relaying) -> list[str]:
        event = node_pb2.Turns(turns=result_of(("Alice", "v_1")).turns)
        stream.event(event)
        return [turn.label for turn in event.turns]

    async with guard.relaying() as stream:
        assert labels(stream) == ["Alice"]
        assert stream.holds
        guard._denied["v_1"] = 2
        assert labels(stream) == ["spk_0"]
        guard._denied.clear()
        guard._lease.fence()
        assert not stream.holds and guard.anew() is None
        assert labels(stream) == ["spk_0"]
        # A new lease is for what begins under it: what began before may have waited in a socket for any time.
        await until(guard._lease.allows)
        assert labels(stream) == ["spk_0"]
        anew = guard.anew()
        assert anew is not None and labels(anew) == ["Alice"]
    async with guard.relaying() as stream:
        assert labels(stream) == ["Alice"]


async def test_the_lease_is_there_while_something_is_relayed_and_given_back_after(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_guard, "IDLE_S", 0.2)
    plane = await world.plane()

    async def kinds() -> list[str]:
        return [lease.kind for lease in (await plane.core.fleet.holders())[0]]

    assert await kinds() == []
    async with plane.core.guard.relaying():
        assert await kinds() == ["relay"]
        async with plane.core.guard.relaying():
            pass
        await asyncio.sleep(0.4)
        assert await kinds() == ["relay"]

    async def none() -> bool:
        return await kinds() == []

    await until(none)
    async with plane.core.guard.relaying() as again:
        assert again.may_name("v_1")


async def test_an_erasure_waits_until_the_relay_has_taken_the_name_off_its_lips(any_world: World) -> None:
    plane = await any_world.plane()
    client = await any_world.client(plane)
    node = await any_world.node(plane)
    erased, kept = [(await client.enrol(label, seed=n)).voice.voice_id for n, label in enumerate(("Alice", "Bob"))]
    node.result = result_of(("Alice", erased), ("Bob", kept))
    node.answers.clear()
    relayed = asyncio.create_task(diarize(client, wav(speech(seconds=1))))
    await until(lambda: node.files)
    assert (await client.erase(erased, wait_ms=WAIT_MS)).state == ERASED
    node.answers.set()
    result = (await relayed)[-1].result
    assert [turn.label for turn in result.turns] == ["spk_0", "Bob"]
    assert erased not in str(result)
    (completed,) = [row for row in await rows_of(plane) if row["action"] == "erase.completed"]
    assert [relay["withholds"] for relay in completed["relays"]] == [True]
    assert completed["replicas_evicted"] == 1


@pytest.mark.parametrize("what", ["lease", "eviction"])
async def test_what_happens_between_the_last_look_at_the_database_and_the_answer_counts(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plane = await world.plane(node_lease_s=9.0, lease_s=10.0)
    client = await world.client(plane)
    node = await world.node(plane)
    voice_id = (await client.enrol("Alice")).voice.voice_id
    node.result = result_of(("Alice", voice_id))
    library, guard = plane.core.library, plane.core.guard
    living = library.living

    async def then_frozen(*arguments: Any) -> set[str]:
        found = await living(*arguments)
        assert found == {voice_id}
        if what == "lease":
            guard._lease.fence()  # it slept here for longer than its lease lasts
        else:
            guard._denied[voice_id] = 2  # the log was read on, and the eviction acknowledged
        return found

    monkeypatch.setattr(type(library), "living", lambda self, *arguments: then_frozen(*arguments))
    result = (await diarize(client, wav(speech(seconds=1))))[-1].result
    assert [one.label for one in (*result.turns, *result.speakers)] == ["spk_0", "spk_0"]
    assert voice_id not in str(result)
    assert list(result.warnings) == ([WITHHELD] if what == "lease" else [])


async def test_a_relay_that_died_with_its_process_holds_up_no_erasure_on_sqlite(world: World) -> None:
    async with world.running() as plane:
        await plane.core.guard.relaying().__aenter__()
        kept = plane.core.guard._keeping
        assert kept is not None
        plane.core.guard._keeping = None  # as if killed: nobody says goodbye
        client = await world.client(plane)
        voice_id = (await client.enrol("Alice")).voice.voice_id
        await world.node(plane)
        await plane.core.erasures.close()
        kept.cancel()
    async with world.running(lease_s=30.0, node_lease_s=25.0) as plane:
        client = await world.client(plane)
        async with asyncio.timeout(20):  # which is less than its lease
            found, _ = await plane.core.fleet.holders()
        assert [lease.kind for lease in found if lease.kind == "relay"] == []
        assert voice_id


# Short, and the same for all control planes on one database: each tells by its own when another is silent.
TIMES = {"renew_s": 0.3, "node_lease_s": 3.5, "lease_s": 4.0, "hold_s": 1.5, "reconcile_s": 0.3}


@contextlib.asynccontextmanager
async def plane_process(data: Path, url: str, redis_url: str, journal: Path, log: Path) -> AsyncIterator[Daemon]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPEAKERD_")}
    environment |= {"OMP_NUM_THREADS": "1"}
    environment |= {f"SPEAKERD_{name.upper()}": str(value) for name, value in TIMES.items()}
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane", "--data", str(data), "--grpc", "127.0.0.1:0",
            "--http", "127.0.0.1:0", "--drain-s", "1", "--database-url", url, "--redis-url", redis_url,
            "--erasure-journal", str(journal), stdout=asyncio.subprocess.PIPE, stderr=file, cwd=ROOT, env=environment,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode().split()
        assert line and line[0] == "ready", log.read_text()
        yield Daemon(process, dict(part.split("=", 1) for part in line[1:]))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()


async def test_a_control_plane_that_is_frozen_while_it_relays_thaws_without_names(
    postgresql_url: str, world: World, tmp_path: Path
) -> None:
    world.database_url = postgresql_url
    async with world.running(**TIMES) as first:  # makes the keys, and the Redis that all of them share
        redis_url = first._redis.url if first._redis is not None else ""
        other = tmp_path / "other"
        other.mkdir(mode=0o700)
        for name in ("kek.key", "fleet.key", "ticket.key", "audit.key", "admin.key"):
            if (world.data / name).exists():
                shutil.copy(world.data / name, other / name)
        shared = world.data / "erasure-journal"
        async with plane_process(other, postgresql_url, redis_url, shared, tmp_path / "log") as frozen:
            token = (world.data / "admin.key").read_text().strip()
            # A channel of gRPC's defaults: ours would give up a peer that is frozen for as long as this one.
            plain = aio.insecure_channel(frozen.grpc_address)
            there, here = Client(frozen, token, plain), await world.client(first)  # type: ignore[arg-type]
            key = (world.data / "fleet.key").read_text().strip()
            node = await FakeNode("node-1", first.grpc_address, key).start()
            try:
                await until(lambda: node.state == node_pb2.NODE_STATE_SERVING)
                erased, kept = [
                    (await here.enrol(label, seed=n)).voice.voice_id for n, label in enumerate(("Alice", "Bob"))
                ]
                node.result = result_of(("Alice", erased), ("Bob", kept))
                control = (await diarize(there, wav(speech(seconds=1))))[-1].result
                assert [turn.label for turn in control.turns] == ["Alice", "Bob"]
                node.answers.clear()
                relayed = asyncio.create_task(diarize(there, wav(speech(seconds=1))))
                await until(lambda: len(node.files) == 2)
                frozen.process.send_signal(signal.SIGSTOP)
                began_s = time.monotonic()
                erasure = await here.erase(erased, wait_ms=200)
                # The node has applied it; the relay, which might be about to name it, is waited for.
                assert erasure.state != ERASED
                assert not node.voices.keys() & {("default", erased)}
                node.answers.set()
                erasure = await here.erase(erased, wait_ms=WAIT_MS)
                assert erasure.state == ERASED
                assert time.monotonic() - began_s > 1.0
                assert [(one.node_id, one.ok) for one in erasure.nodes] == [("node-1", True)]
                assert list(erasure.residual_node_ids) == []
                frozen.process.send_signal(signal.SIGCONT)
                result = (await relayed)[-1].result
                assert [turn.label for turn in result.turns] == ["spk_0", "spk_1"]
                assert not voices_in(result)
                assert list(result.warnings) == [WITHHELD]
                # It reconciles, and names those again who may be named.
                for attempt in itertools.count():
                    again = (await diarize(there, wav(speech(seconds=1))))[-1].result
                    if [turn.label for turn in again.turns] == ["spk_0", "Bob"] or attempt == 20:
                        break
                    await asyncio.sleep(0.3)
                assert [turn.label for turn in again.turns] == ["spk_0", "Bob"]
                (completed,) = [row for row in await rows_of(first) if row["action"] == "erase.completed"]
                # Fenced as this erasure ended, or just before by whoever looked first: it never said that it withholds.
                assert not any(relay["withholds"] for relay in completed["relays"])
            finally:
                await there.channel.close()
                await node.stop()


def test_who_relays_nothing_may_name_nobody() -> None:
    class Never:
        def names_under(self, incarnation: int) -> bool:
            return False

    assert not Relaying(Never(), 0).may_name("v_1")  # type: ignore[arg-type]
