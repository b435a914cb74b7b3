"""Liveness and the watchdog: what hangs is told, and ends the process; what was only stopped does not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
from pathlib import Path

from runtime.health import STALLED_EXIT_CODE, Health

ROOT = Path(__file__).resolve().parent.parent.parent

STUCK = textwrap.dedent("""
    import asyncio, os, signal, sys, threading, time
    from runtime import health, logs
    # A loop that hangs is to be told soon; one that a stalled machine kept from turning for a while does not hang.
    health.LOOP_BOUND_S = 0.2 if sys.argv[1] == "loop" else 20.0
    health.WATCH_S = 0.2
    logs.configure("info", service="test")

    async def main(how):
        made = health.Health()
        made.started(lambda: True)
        with made.watchdog(0.0 if how == "never" else 2.0):
            await asyncio.sleep(1.0)
            if how == "loop":
                time.sleep(60.0)
            elif how == "never":
                time.sleep(5.0)
            elif how == "device":
                made.watch("device", lambda: True)
                await asyncio.sleep(60.0)
            elif how == "stopped":
                child = f"import os,signal,time; time.sleep(4); os.kill({os.getpid()}, signal.SIGCONT)"
                import subprocess
                subprocess.Popen([sys.executable, "-c", child])
                os.kill(os.getpid(), signal.SIGSTOP)
                await asyncio.sleep(1.0)

    asyncio.run(main(sys.argv[1]))
""")


def ended(how: str) -> tuple[int, list[dict[str, object]]]:
    """Run a process that hangs in some way; its exit code, and what it logged."""
    ran = subprocess.run(
        [sys.executable, "-c", STUCK, how], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    return ran.returncode, [json.loads(line) for line in ran.stderr.splitlines()]


def test_a_process_whose_event_loop_or_device_hangs_ends_itself_and_says_what_hangs() -> None:
    for how, what in (("loop", ["event loop"]), ("device", ["device"])):
        code, logged = ended(how)
        assert code == STALLED_EXIT_CODE
        (said,) = [line for line in logged if line["event"] == "daemon.stalled"]
        assert said["hanging"] == what


def test_a_process_that_was_stopped_and_one_without_a_watchdog_go_on() -> None:
    assert ended("stopped") == (0, [])
    assert ended("never") == (0, [])


async def test_live_says_that_nothing_hangs_and_ready_follows_started() -> None:
    health = Health()
    hangs = False
    health.watch("device", lambda: hangs)
    assert (health.is_live(), health.is_started(), health.is_ready()) == (True, False, False)
    assert await asyncio.to_thread(health.is_alive)
    is_ready = False
    health.started(lambda: is_ready)
    assert (health.is_started(), health.is_ready()) == (True, False)
    is_ready = True
    assert health.is_ready()
    hangs = True
    assert health.hanging() == ["device"] and not health.is_live()
    assert not await asyncio.to_thread(health.is_alive)
