"""Daemons and clients of the last release work with today's: real processes, the release's own stubs on one side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from speakerd.client import Client
from tests.contract.releases import LAST, with_its_stubs
from tests.faults.processes import node_arguments, pcm, plane_arguments, processes, tones, until, voice

STEP_S = 90.0


class Peer:
    """A process of the last release."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process, self.log = process, log

    async def line(self) -> str:
        assert self.process.stdout is not None
        said = await asyncio.wait_for(self.process.stdout.readline(), STEP_S)
        assert said, self.log.read_text()[-3000:]
        return said.decode().strip()

    async def result(self) -> Any:
        return json.loads(await self.line())


@contextlib.asynccontextmanager
async def released(folder: Path, script: str, *arguments: object) -> AsyncIterator[Peer]:
    """Run one of the release's programs with its stubs."""
    log = folder / f"{script}.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(LAST / f"{script}.py"), *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors, env=with_its_stubs(),
        )  # fmt: skip
    try:
        yield Peer(process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_client_of_the_last_release_does_with_todays_daemons_all_that_it_did(tmp_path: Path) -> None:
    (tmp_path / "ada.pcm").write_bytes(pcm(tones(6, *voice(1))))
    async with processes(tmp_path) as run:
        plane = await run.start("plane", *plane_arguments(tmp_path / "data"))
        await run.start("node", *node_arguments("node-1", plane.grpc, tmp_path / "data"))
        key = (tmp_path / "data" / "admin.key").read_text().strip()
        async with released(tmp_path, "client", plane.grpc, key, tmp_path / "ada.pcm") as client:
            found = await client.result()
    assert found["state"] == "STATE_READY" and found["listed"] == ["Ada"]
    assert found["nodes"] == 1
    assert found["streamed"] == ["Ada"] and {"opened", "turns", "closed"} <= set(found["stream"])
    assert found["file"] == ["Ada"]
    assert found["job"] == "STATE_SUCCEEDED"
    assert found["erasure"] == "STATE_ERASED"
    assert found["audit"] is True and found["tenants"] >= 1


async def test_a_node_of_the_last_release_serves_in_todays_fleet_and_forgets_who_is_erased(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with processes(tmp_path) as run:
        plane = await run.start("plane", *plane_arguments(data))
        key = (data / "admin.key").read_text().strip()
        async with (
            released(tmp_path, "node", plane.grpc, data / "fleet.key") as node,
            Client(plane.grpc, key) as client,
        ):
            assert await node.line() == "serving"

            async def placed() -> bool:
                return [one.node_id for one in (await client.nodes()).nodes] == ["node-of-0-1"]

            await until(placed, STEP_S)
            clip = tmp_path / "ada.wav"
            await asyncio.to_thread(write_wav, clip)
            enrolled = await client.enroll("Ada", [clip])
            assert await node.line() == "holds ['Ada']"
            await client.erase(enrolled.voice.voice_id, wait_s=20.0)
            assert await node.line() == "holds nobody"


async def test_todays_node_serves_under_a_control_plane_of_the_last_release(tmp_path: Path) -> None:
    key = "a key of sixteen and more"
    (tmp_path / "fleet.key").write_text(key)
    (tmp_path / "fleet.key").chmod(0o600)
    async with released(tmp_path, "plane", key) as plane, processes(tmp_path) as run:
        address = await plane.line()
        await run.start("node", *node_arguments("node-1", address, tmp_path))
        found = await plane.result()
    assert found == {
        "state": "NODE_STATE_SERVING", "generation": 1, "held": [["v1"]], "was_held": True, "cursor": 2,
    }  # fmt: skip


def write_wav(path: Path) -> None:
    import soundfile

    soundfile.write(path, tones(6, *voice(1)), 16_000)
