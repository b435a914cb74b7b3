"""The lifecycle: refuse, drain, stop; a failing task ends the process; a stuck drain is bounded."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from runtime.lifecycle import Part, Tasks, run_daemon


class Recorder(Part):
    """A part that writes down what happens to it."""

    def __init__(self, name: str, journal: list[str], *, drain_s: float = 0.0, fail: str = "") -> None:
        self.name, self.journal, self.drain_takes_s, self.fail = name, journal, drain_s, fail

    async def start(self, tasks: Tasks) -> None:
        self.journal.append(f"start {self.name}")
        if self.fail == "start":
            raise RuntimeError("start")
        if self.fail == "task":
            tasks.spawn("failing", self.explode())

    async def explode(self) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("task")

    async def drain(self, deadline_s: float) -> None:
        self.journal.append(f"refuse {self.name}")
        await asyncio.wait([asyncio.ensure_future(asyncio.sleep(self.drain_takes_s))], timeout=deadline_s)
        self.journal.append(f"drained {self.name}")

    async def stop(self) -> None:
        self.journal.append(f"stop {self.name}")
        if self.fail == "stop":
            raise RuntimeError("stop")


def raise_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_sigterm_refuses_everywhere_then_drains_then_stops_in_reverse_and_exits_zero() -> None:
    journal: list[str] = []
    parts = [Recorder("a", journal), Recorder("b", journal, drain_s=0.05)]
    assert await run_daemon(parts, drain_s=5.0, ready=raise_signal) == 0
    assert journal[:2] == ["start a", "start b"]
    assert set(journal[2:4]) == {"refuse a", "refuse b"}
    assert journal[-2:] == ["stop b", "stop a"]
    assert "drained b" in journal


async def test_a_background_task_that_fails_ends_the_daemon_with_one(capfd: pytest.CaptureFixture[str]) -> None:
    journal: list[str] = []
    assert await run_daemon([Recorder("a", journal, fail="task")], drain_s=5.0) == 1
    assert journal == ["start a", "stop a"]
    capfd.readouterr()


async def test_a_part_that_fails_to_start_stops_what_was_started_before_it() -> None:
    journal: list[str] = []
    with pytest.raises(RuntimeError, match="start"):
        await run_daemon([Recorder("a", journal), Recorder("b", journal, fail="start")], drain_s=5.0)
    assert journal == ["start a", "start b", "stop b", "stop a"]


async def test_a_part_that_fails_to_stop_does_not_keep_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    journal: list[str] = []
    parts = [Recorder("a", journal), Recorder("b", journal, fail="stop")]
    assert await run_daemon(parts, drain_s=1.0, ready=raise_signal) == 0
    assert journal[-1] == "stop a"
    capfd.readouterr()


async def test_a_second_signal_does_not_wait_for_the_drain() -> None:
    journal: list[str] = []

    def twice() -> None:
        raise_signal()
        asyncio.get_running_loop().call_later(0.05, raise_signal)

    started_at = asyncio.get_running_loop().time()
    assert await run_daemon([Recorder("a", journal, drain_s=30.0)], drain_s=30.0, ready=twice) == 0
    assert asyncio.get_running_loop().time() - started_at < 5.0
    assert "drained a" not in journal
    assert journal[-1] == "stop a"
