"""F14: the store of recordings is full, refuses, or does not answer."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.v1 import people_pb2
from tests.faults.figures import Figures
from tests.faults.processes import Processes, node_arguments, plane_arguments, tones, until, voice
from tests.faults.ready_voices import held
from tests.faults.storage import small_disk
from tests.faults.test_continuity import wav

CLIP = wav(tones(6, *voice(0)))


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


def stored(folder: Path) -> list[Path]:
    return [path for path in (folder / "samples").rglob("*") if path.is_file()]


@pytest.mark.fault("F14", "P5", "P2", "P12")
async def test_a_store_that_is_full_or_refuses_costs_enrolments_and_no_erasure(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    data = tmp_path / "data"
    with small_disk(4) as disk:
        data.mkdir(mode=0o700)
        (data / "blobs").symlink_to(disk.folder)
        plane = await daemons.start("plane", *plane_arguments(data))
        await daemons.start("node", *node_arguments("node", plane.grpc, data))
        async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
            ada = (await client.enroll("Ada", [CLIP])).voice.voice_id
            bob = (await client.enroll("Bob", [CLIP])).voice.voice_id
            kept = len(stored(disk.folder))
            disk.fill()
            with pytest.raises(SpeakerdError) as refused:
                await client.enroll("Carol", [CLIP], idempotency_key="carol")
            assert refused.value.cause == "unavailable" and "store" in refused.value.message
            disk.relieve()
            remount(disk.folder, "ro")
            with pytest.raises(SpeakerdError) as refused:
                await client.enroll("Carol", [CLIP], idempotency_key="carol")
            assert refused.value.cause == "unavailable"
            assert {one.label for one in await client.voices()} == {"Ada", "Bob"}
            began_s = time.monotonic()
            erasure = await client.erase(ada, wait_s=25)
            figures.record("store refuses: erasure proven in", time.monotonic() - began_s)
            assert (erasure.state, erasure.blobs_pending) == (people_pb2.Erasure.STATE_ERASED, True)
            remount(disk.folder, "rw")
            began_s = time.monotonic()

            async def is_deleted() -> bool:
                return not (await client.erasure(erasure.audit_id)).blobs_pending

            await until(is_deleted, 90)
            figures.record("store back: recordings deleted after", time.monotonic() - began_s)
            assert len(stored(disk.folder)) == kept // 2
            carol = await client.enroll("Carol", [CLIP], idempotency_key="carol")
            assert {one.label for one in await client.voices() if one.label} == {"Bob", "Carol"}
            await held(client, carol.voice.voice_id)
            assert (await client.voice(bob)).label == "Bob"
            assert (await client.verify_audit()).ok
