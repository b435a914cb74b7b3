"""How children are kept alive, without any."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from speakerd.cli import child as child_module
from speakerd.cli import fleet as fleet_module
from speakerd.cli.child import Child
from speakerd.cli.fleet import RESTARTS_MAX, Fleet, FleetPlan
from speakerd.errors import SpeakerdError


class MortalChild(Child):
    """Ends as soon as it is started."""

    async def wait(self) -> int:
        await asyncio.sleep(0)
        return -9


async def test_a_child_that_keeps_dying_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "BACKOFF_FIRST_S", 0.0)
    said: list[str] = []
    fleet = Fleet(FleetPlan(data=tmp_path), say=said.append)
    starts = 0

    async def start() -> None:
        nonlocal starts
        starts += 1
        if starts == 2:
            raise SpeakerdError("timeout", "not ready in time")

    async with asyncio.timeout(10):
        await fleet._keep(MortalChild("node 0", None), start)
        assert "node 0 ended 6 times" in await fleet.failed()
    assert starts == RESTARTS_MAX
    assert "not ready in time" in said


async def test_restarts_wait_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    async def start() -> None:
        pass

    fleet = Fleet(FleetPlan(data=tmp_path))
    mortal = MortalChild("node 0", None)
    monkeypatch.setattr(mortal, "wait", lambda: asyncio.wait_for(_ended(), 1))
    monkeypatch.setattr(fleet_module.asyncio, "sleep", sleep)
    await fleet._keep(mortal, start)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


async def _ended() -> int:
    return 1


async def test_what_a_child_said_last_is_told_when_it_does_not_start(tmp_path: Path) -> None:
    started = Child("node 0", tmp_path / "node.log")
    with pytest.raises(SpeakerdError, match=r"the node 0 ended while starting \(exit code 2\): No such command"):
        await started.start(["no-such-command"], bound_s=60.0)


async def test_a_child_that_says_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(child_module.sys, "executable", str(sleeper))
    silent = Child("node 0", tmp_path / "node.log")
    with pytest.raises(SpeakerdError, match="not ready after 0 s"):
        await silent.start(["node"], bound_s=0.2)
    assert silent.pid is None


async def test_a_grown_log_is_put_aside_when_a_daemon_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "LOG_BYTES_MAX", 10)
    log = tmp_path / "node.log"
    log.write_text(json.dumps({"event": "long ago"}))
    with pytest.raises(SpeakerdError):
        await Child("node 0", log).start(["no-such-command"], bound_s=60.0)
    assert "long ago" in (tmp_path / "node.log.1").read_text()
    assert "long ago" not in log.read_text()


@pytest.mark.parametrize("grpc", ["0.0.0.0:7600", "[::]:7600", "7600"])
async def test_an_address_that_no_client_can_dial_is_refused(tmp_path: Path, grpc: str) -> None:
    with pytest.raises(SpeakerdError, match="that clients can dial"):
        await Fleet(FleetPlan(data=tmp_path, grpc=grpc)).__aenter__()
