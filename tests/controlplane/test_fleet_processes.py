"""A fleet as it is run: real nodes with the null engine, control planes, PostgreSQL and Redis, each a process."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from typer.testing import CliRunner

from benchmarks import fleet as work
from benchmarks.fleet_processes import running_fleet
from speakerd.cli import app
from speakerd.v1 import people_pb2, streams_pb2
from tests.controlplane.conftest import require_postgresql, until


@pytest.fixture
def needs_postgresql() -> None:
    require_postgresql()


def options(*arguments: str) -> argparse.Namespace:
    return work.parse(arguments)


def check(found: dict[str, object], enrolments: int) -> None:
    """What has to hold whatever the machine is doing. That every node holds every voice, that nodes have no torch, and
    that no stream failed is asserted as it is measured."""
    enrolled, placed, flushed = (found[name] for name in ("enrolments", "placements", "flushall_under_load"))
    assert isinstance(enrolled, dict) and isinstance(placed, dict) and isinstance(flushed, dict)
    assert enrolled["enrolments"] == enrolments
    assert placed["failed"] == []
    assert sum(placed["by_node"]) == placed["placements"]
    assert flushed["placements_refused"] == []
    assert flushed["erased_meanwhile"] > 0
    assert flushed["enrolled_meanwhile"] > 0


@pytest.mark.usefixtures("needs_postgresql")
async def test_a_fleet_of_processes_enrols_places_and_rides_out_an_emptied_redis() -> None:
    few = options(
        *("--nodes", "3", "--enrolments", "12", "--sampled", "4", "--rate", "20", "--seconds", "2"),
        *("--flushes", "1", "--streams", "2"),
    )
    check(await work.run(few), 12)


@pytest.mark.deep
@pytest.mark.usefixtures("needs_postgresql")
async def test_eight_nodes_and_two_control_planes_hold_a_thousand_enrolments() -> None:
    found = await work.run(options())
    print(json.dumps(found, indent=1))
    check(found, 1_000)


@pytest.mark.usefixtures("needs_postgresql")
async def test_nodes_of_two_models_hold_voiceprints_of_their_own_and_say_so() -> None:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(running_fleet(planes=2, nodes=2, bundles=("null@1", "null@2")))
        to = await work.callers(fleet, stack)
        first, second = to.planes
        voice_id = (await first.enrol(1)).voice.voice_id
        await to.until_held(voice_id)  # the other model's voiceprint is made from the recording that was kept

        async def warm_on() -> people_pb2.WarmStatus:
            return await second.people.GetWarm(
                people_pb2.GetWarmRequest(voice_id=voice_id), metadata=second.metadata, timeout=10
            )

        async def both() -> bool:
            return list((await warm_on()).warm_node_ids) == ["node-0", "node-1"]

        await until(both, 30)
        # Each node names the voice by its own voiceprint: what one model makes of a voice means nothing to the other.
        for number in range(2):
            avoid = [f"node-{1 - number}"]
            request = streams_pb2.PlaceStreamRequest(stream_id=f"s-{number}", avoid_node_ids=avoid)
            placed = await first.streams.PlaceStream(request, metadata=first.metadata, timeout=10)
            assert placed.node_id == f"node-{number}"
            assert await work.labels_of(placed, work.chord(8.0, 1)) == {"P1"}
        # The command line shows the same.
        arguments = ["--server", fleet.planes[1].grpc, "--key", fleet.token, "--json"]

        def asked(*command: str) -> dict[str, object]:
            result = CliRunner().invoke(app, ["fleet", *command, *arguments], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            found: dict[str, object] = json.loads(result.stdout)
            return found

        nodes = await asyncio.to_thread(asked, "nodes")
        shown = nodes["nodes"]
        assert isinstance(shown, list)
        assert [(node["node_id"], node["state"], node["model"], node["behind"]) for node in shown] == [
            ("node-0", "serving", "null@1", 0),
            ("node-1", "serving", "null@2", 0),
        ]
        sent = await asyncio.to_thread(asked, "warm", voice_id, "node-0", "node-9", "--send")
        assert sent["outcomes"] == [
            {"node_id": "node-0", "ok": True, "error": ""},
            {"node_id": "node-9", "ok": False, "error": "no such node is serving"},
        ]
        assert (await asyncio.to_thread(asked, "lag"))["behind"] == {"node-0": 0, "node-1": 0}
        assert (await asyncio.to_thread(asked, "load"))["nodes_serving"] == 2
