"""F19, F26: clocks that jump or disagree, and tickets and certificates whose time is over."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

import speakerd.live_stream
from runtime.certificates import Authority
from runtime.errors import Unauthenticated
from runtime.tickets import verify_ticket
from runtime.tls import CONTROL_PLANE, NODE
from speakerd.client import Client, StreamOptions, TlsTrust
from speakerd.errors import SpeakerdError
from speakerd.v1 import people_pb2
from tests.faults.altered import LONG_LEASES, OVER_A_LEASE_S, start_altered
from tests.faults.figures import Figures
from tests.faults.processes import Processes, node_arguments, pcm, plane_arguments, tones, until, voice
from tests.faults.ready_voices import enrol
from tests.faults.streaming import Told, stream
from tests.faults.test_tls_fleet import DOMAIN, tls_flags
from tests.runtime.test_tickets import KEY, PUBLIC, TICKET, sign_ticket

LIBRARY = Path(sys.prefix) / "opt" / "faketime" / "libfaketime.so.1"
JUMPED_AFTER_S = 2.5
"""How soon the library looks into its file again."""


class WallClock:
    """The wall clock of some daemons, set while they run; their other clocks stay as they are."""

    def __init__(self, file: Path) -> None:
        if not LIBRARY.exists():
            pytest.skip(f"no libfaketime in {LIBRARY.parent} (scripts/fetch_faketime.sh)")
        self._file = file
        self.set("+0")

    @property
    def env(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "NO_FAKE_STAT": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        self._file.write_text(f"{offset}\n")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are asked for nothing but what clocks do to them: not to leave a node that a busy machine holds up."""
    monkeypatch.setattr(speakerd.live_stream, "WATCHDOG_S", 120.0)
    monkeypatch.setattr(speakerd.live_stream, "WATCHDOG_MAX_S", 120.0)


@asynccontextmanager
async def fleet(daemons: Processes, data: Path, *, of_plane: WallClock, of_node: WallClock) -> AsyncIterator[Client]:
    plane = await start_altered(daemons, "plane", *plane_arguments(data), env={**LONG_LEASES, **of_plane.env})
    await start_altered(daemons, "node", *node_arguments("node", plane.grpc, data), env=of_node.env)
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        await enrol(client, "Ada", 0)
        yield client


@pytest.mark.fault("F19", "P1", "P2", "P13")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("offset", ["+1h", pytest.param("-1h", marks=pytest.mark.deep)])
async def test_wall_clocks_that_jump_touch_no_lease_no_stream_and_no_erasure(
    offset: str, daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    clock = WallClock(tmp_path / "clock")
    async with fleet(daemons, tmp_path / "data", of_plane=clock, of_node=clock) as client:
        bob = (await enrol(client, "Bob", 1)).voice_id
        told, done = Told(), asyncio.Event()
        running = asyncio.create_task(stream(client, pcm(tones(200, *voice(0))), told=told, until=done))
        await until(lambda: told.turns, 60)
        clock.set(offset)
        await asyncio.sleep(JUMPED_AFTER_S)
        began_s = time.monotonic()
        erasure = await client.erase(bob, wait_s=20)
        assert erasure.state == people_pb2.Erasure.STATE_ERASED and not erasure.residual_node_ids
        figures.record(f"wall clocks {offset}: erasure proven in", time.monotonic() - began_s)
        await enrol(client, "Carol", 2)
        other = await stream(client, pcm(tones(6, *voice(2))), pace=0)
        assert {turn.label for turn in other.turns} == {"Carol"}
        await asyncio.sleep(max(0.0, began_s + OVER_A_LEASE_S - time.monotonic()))
        done.set()
        await running
        assert not told.degraded and not told.resumed
        assert {turn.label for turn in told.turns} == {"Ada"}
        assert (await client.verify_audit()).ok


@pytest.mark.timeout(600)
@pytest.mark.fault("F19", "P1", "P14")
async def test_clocks_that_disagree_refuse_new_streams_with_what_to_set_and_end_none(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    of_plane, of_node = WallClock(tmp_path / "plane-clock"), WallClock(tmp_path / "node-clock")
    async with fleet(daemons, tmp_path / "data", of_plane=of_plane, of_node=of_node) as client:
        told, done = Told(), asyncio.Event()
        running = asyncio.create_task(stream(client, pcm(tones(200, *voice(0))), told=told, until=done))
        await until(lambda: told.turns, 60)
        of_node.set("+1h")
        await asyncio.sleep(JUMPED_AFTER_S)
        with pytest.raises(SpeakerdError, match="clocks of this node and of its control plane"):
            await stream(client, pcm(tones(2, *voice(0))), StreamOptions(resume_s=3), pace=0)
        # Enrolment and erasure ask no wall clock of a node.
        bob = await enrol(client, "Bob", 1)
        assert (await client.erase(bob.voice_id, wait_s=20)).state == people_pb2.Erasure.STATE_ERASED
        await asyncio.sleep(OVER_A_LEASE_S)
        of_node.set("+0")
        set_s = time.monotonic()
        await asyncio.sleep(JUMPED_AFTER_S)
        await stream(client, pcm(tones(2, *voice(0))), pace=0)
        figures.record("clocks set: a stream is placed, heard and closed within", time.monotonic() - set_s)
        done.set()
        await running
        assert not told.degraded and not told.resumed and {turn.label for turn in told.turns} == {"Ada"}
        figures.record("streams ended by it", 0, "")


@pytest.mark.deep
@pytest.mark.fault("F19", "P1", "P2")
async def test_a_node_whose_clock_of_leases_began_elsewhere_holds_them_as_any_other(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    shifted = ["unshare", "--time", "--boottime", "864000", "--fork", "--kill-child"]
    tried = subprocess.run([*shifted, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no time namespaces: {tried.stderr.strip()}")
    data = tmp_path / "data"
    plane = await start_altered(daemons, "plane", *plane_arguments(data), env=LONG_LEASES)
    await start_altered(daemons, "node", *node_arguments("node", plane.grpc, data), before=shifted)
    async with Client(plane.grpc, (data / "admin.key").read_text().strip()) as client:
        ada = await enrol(client, "Ada", 0)
        told = await stream(client, pcm(tones(OVER_A_LEASE_S, *voice(0))))
        assert not told.degraded and {turn.label for turn in told.turns} == {"Ada"}
        began_s = time.monotonic()
        assert (await client.erase(ada.voice_id, wait_s=20)).state == people_pb2.Erasure.STATE_ERASED
        figures.record("erasure proven in", time.monotonic() - began_s)


@pytest.mark.fault("F26", "P14")
def test_an_expired_ticket_says_what_to_do() -> None:
    with pytest.raises(Unauthenticated, match="call PlaceStream again; if it is new"):
        verify_ticket(sign_ticket(TICKET, KEY), [PUBLIC], node_id="n", now_s=2_000)


@pytest.mark.deep
@pytest.mark.fault("F26", "P6", "P14")
async def test_a_certificate_that_expires_under_a_stream_ends_no_connection_and_a_new_one_is_taken(
    daemons: Processes, tmp_path: Path, figures: Figures
) -> None:
    data = tmp_path / "data"
    authority = Authority.open_or_make(tmp_path / "certs", DOMAIN)
    authority.issue_files(CONTROL_PLANE, "cp", ["127.0.0.1"], timedelta(days=1))
    flags = tls_flags(authority, CONTROL_PLANE, "cp")
    plane = await daemons.start("plane", *plane_arguments(data, "127.0.0.1:0", *flags))
    authority.issue_files(NODE, "n1", [], timedelta(seconds=40))
    arguments = [
        "node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--node-id", "n1", "--device", "null",
        "--controlplane", plane.ready["fleet"], *tls_flags(authority, NODE, "n1"),
    ]  # fmt: skip
    issued_s = time.monotonic()
    node = await daemons.start("n1", *arguments)
    trust = TlsTrust.from_file(authority.folder / "ca.crt")
    async with Client(plane.grpc, (data / "admin.key").read_text().strip(), tls=trust) as client:
        await enrol(client, "Ada", 0)
        told, done = Told(), asyncio.Event()
        running = asyncio.create_task(stream(client, pcm(tones(120, *voice(0))), told=told, until=done))
        await until(lambda: told.turns, 60)
        await asyncio.sleep(max(0.0, issued_s + 45 - time.monotonic()))
        # The stream's connection was made while the certificate was good, and goes on.
        count = len(told.turns)
        await until(lambda: len(told.turns) > count, 30)
        authority.issue_files(NODE, "n1", [], timedelta(days=1))
        began_s = time.monotonic()
        await until(lambda: "tls.reloaded" in node.log.read_text(), 30)

        async def opens() -> bool:
            try:
                # By a client of its own: the streams of one share a connection, this one has to make one.
                async with Client(plane.grpc, (data / "admin.key").read_text().strip(), tls=trust) as other:
                    await stream(other, pcm(tones(2, *voice(0))), StreamOptions(resume_s=2), pace=0)
            except SpeakerdError:
                return False
            return True

        await until(opens, 30)
        figures.record("new certificate to the next stream", time.monotonic() - began_s)
        done.set()
        await running
        assert not told.resumed
        assert node.process.returncode is None and plane.process.returncode is None
