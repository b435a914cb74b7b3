"""`speakerd jobs`, against a control plane with a node that is told its answers."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speakerd.rttm import parse_rttm
from speakerd.v1 import common_pb2, node_pb2
from tests.controlplane.conftest import World, speech, wav


@dataclass(frozen=True)
class Result:
    """What a command said."""

    code: int
    out: str
    err: str


async def test_a_recording_is_submitted_followed_listed_written_out_and_canceled(world: World, tmp_path: Path) -> None:
    plane = await world.plane()
    node = await world.node(plane)
    turn = common_pb2.Turn(start_ms=250, end_ms=1_500, speaker="spk_0", label="spk_0")
    node.result = node_pb2.FileResult(
        turns=[turn], speakers=[common_pb2.Speaker(speaker="spk_0", label="spk_0")], duration_ms=2_000
    )
    talk = tmp_path / "talk.wav"
    talk.write_bytes(wav(speech(seconds=2)))

    async def run(*arguments: object) -> Result:
        # A process of its own, as it is run: gRPC does not bear two event loops in one.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "speakerd", "jobs", *map(str, arguments)),
            *("--server", plane.grpc_address, "--data", str(world.data)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    def value(result: Result) -> Any:
        assert result.code == 0, result.err
        return json.loads(result.out)

    made = value(await run("submit", talk, "--json"))
    assert made["kind"] == "diarize" and made["state"] in ("created", "running")
    watched = await run("watch", made["job_id"])
    assert watched.code == 0 and "0.25" in watched.out and "spk_0" in watched.out
    rttm = tmp_path / "talk.rttm"
    to = [part for suffix in ("srt", "svg", "json") for part in ("--to", tmp_path / f"talk.{suffix}")]
    value(await run("get", made["job_id"], "--rttm", rttm, *to, "--json"))
    assert (tmp_path / "talk.srt").read_text() == "1\n00:00:00,250 --> 00:00:01,500\nspk_0\n"
    assert "spk_0" in (tmp_path / "talk.svg").read_text()
    assert json.loads((tmp_path / "talk.json").read_text())["turns"]
    assert [(one.start_ms, one.end_ms, one.label) for one in parse_rttm(rttm.read_text())] == [(250, 1_500, "spk_0")]
    prints = tmp_path / "zoe.voiceprint"
    voiceprint = value(await run("submit", talk, "--kind", "voiceprint", "--wait", "--json"))
    value(await run("get", voiceprint["job_id"], "--voiceprint", prints, "--json"))
    found = value(await run("submit", talk, "--kind", "identify", "--voiceprint", f"Zoë={prints}", "--wait", "--json"))
    assert found["state"] == "succeeded"
    canceled, listed, unknown, no_kind = await asyncio.gather(
        run("cancel", made["job_id"], "--json"),
        run("list", "--json"),
        run("get", "nothing"),
        run("submit", talk, "--kind", "x"),
    )
    assert value(canceled)["state"] == "succeeded"
    ids = [job["job_id"] for job in value(listed)["jobs"]]
    assert ids == [found["job_id"], voiceprint["job_id"], made["job_id"]]
    assert (unknown.code, no_kind.code) == (1, 2)
    assert "Traceback" not in unknown.err + no_kind.err
