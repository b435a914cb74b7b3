"""F22: a network that loses three packets of ten, or takes a megabit a second."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from speakerd.client import Client, StreamOptions
from speakerd.v1 import node_pb2
from tests.faults.figures import Figures
from tests.faults.network import Network, drops, network
from tests.faults.processes import Processes, node_arguments, pcm, plane_arguments, processes, tones, until, voice
from tests.faults.streaming import Told, stream

pytestmark = [pytest.mark.deep, pytest.mark.timeout(900), pytest.mark.asyncio]

OPTIONS = StreamOptions(latency_ms=1_000, resume_s=120.0)
STREAMS = 8


def _run(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def losing(made: Network, host: str, share: float) -> Iterator[None]:
    """Packets to and from a host are lost on their way from and to its clients."""
    inside = ["ip", "netns", "exec", made.netns()[host], "iptables"]
    rules = [
        [chain, flag, "access", "-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP"]
        for chain, flag in (("INPUT", "-i"), ("OUTPUT", "-o"))
    ]
    for rule in rules:
        _run(*inside, "-A", *rule)
    try:
        yield
    finally:
        for rule in rules:
            _run(*inside, "-D", *rule)


@contextmanager
def narrow(made: Network, host: str, rate: str) -> Iterator[None]:
    """A host answers its clients over a line of so many bits a second, and they reach it over one."""
    inside = ["ip", "netns", "exec", made.netns()[host], "tc", "qdisc"]
    here = ["tc", "qdisc"]
    _run(*inside, "add", "dev", "access", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
    _run(*here, "add", "dev", f"{made.prefix}t", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
    try:
        yield
    finally:
        _run(*inside, "del", "dev", "access", "root")
        _run(*here, "del", "dev", f"{made.prefix}t", "root")


async def under(tmp_path: Path, figures: Figures, bad: str) -> None:
    """Streams before, in and after a bad network: turns are those of an undisturbed stream, and the lag is told."""
    if reason := drops():
        pytest.skip(f"no network namespaces: {reason}")
    with network("plane", "n1") as made:
        async with processes(tmp_path, made.netns()) as daemons:
            await _streams(made, daemons, tmp_path, figures, bad)


async def _streams(made: Network, daemons: Processes, tmp_path: Path, figures: Figures, bad: str) -> None:
    data = tmp_path / "data"
    plane = await daemons.start("plane", *plane_arguments(data, "0.0.0.0:0", "--insecure"))
    port = plane.grpc.rpartition(":")[2]
    arguments = node_arguments("n1", f"{made.fleet('plane')}:{port}", data, "--insecure", "--late-s", "0")
    arguments[arguments.index("--listen") + 1] = f"{made.access('n1')}:0"
    await daemons.start("n1", *arguments)
    worst_ms = [0]

    def note(event: object) -> None:
        if isinstance(event, node_pb2.Progress):
            worst_ms[0] = max(worst_ms[0], event.lag_ms)

    key = (data / "admin.key").read_text().strip()
    async with Client(f"{made.access('plane')}:{port}", key) as client:
        done, told = asyncio.Event(), [Told() for _ in range(STREAMS)]
        sounds = [pcm(tones(240, *voice(number))) for number in range(STREAMS)]
        async with asyncio.TaskGroup() as tasks:
            for sound, one in zip(sounds, told, strict=True):
                tasks.create_task(stream(client, sound, OPTIONS, told=one, until=done, on_event=note))
            await until(lambda: all(one.final_ms >= 3_000 for one in told), 60)
            with losing(made, "n1", 0.3) if bad == "loss" else narrow(made, "n1", "1mbit"):
                await asyncio.sleep(25)
                behind_s = max(one.sent / 32_000 - one.final_ms / 1_000 for one in told)
            began_s = time.monotonic()
            await until(lambda: all(one.sent / 32_000 - one.final_ms / 1_000 < 4.0 for one in told), 120)
            figures.record("behind at the end of it", round(behind_s, 1))
            figures.record("caught up after", round(time.monotonic() - began_s, 1))
            figures.record("worst lag told", round(worst_ms[0] / 1000, 1))
            figures.record("connections made anew", sum(len(one.resumed) for one in told), "")
            done.set()
        for sound, one in zip(sounds, told, strict=True):
            one.require_in_order()
            undisturbed = await stream(client, sound[: one.sent], OPTIONS, pace=0)
            assert one.whole() == undisturbed.whole()


@pytest.mark.deep
@pytest.mark.fault("F22", "P6", "P7")
async def test_streams_outlive_a_network_that_loses_three_packets_of_ten(tmp_path: Path, figures: Figures) -> None:
    await under(tmp_path, figures, "loss")


@pytest.mark.deep
@pytest.mark.fault("F22", "P6", "P7")
async def test_streams_outlive_a_line_of_a_megabit_that_is_too_narrow_for_them(
    tmp_path: Path, figures: Figures
) -> None:
    await under(tmp_path, figures, "narrow")
