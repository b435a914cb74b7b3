"""A stream of hours, sent faster than it was spoken: memory flat, every hour at the same cost, labels kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from grpc import aio

from node import events, wire
from node.access import Caller
from node.engine import engine_loader
from speakerd.v1 import common_pb2, node_pb2
from tests.node.conftest import RATE, RunningNode, pcm, running_node, tones
from tests.node.live_desk import live_streams
from tests.node.replayed_device import ReplayedDevice
from tests.node.test_session_bounds import REQUEST

HOURS = 8
WHOLE_ENGINE_HOURS = 3
"""Of the engine's every window, at three minutes of a core an hour of sound; its windows of eight hours come again."""
CHUNK = RATE  # bytes: half a second
HOUR_MS = 3_600_000

pytestmark = pytest.mark.deep


@dataclass(slots=True)
class Loop:
    """Sound that is sent again and again, and who speaks in it when: (start, end, person) in milliseconds."""

    samples: np.ndarray  # whole seconds
    spoken: list[tuple[int, int, str]]

    @property
    def duration_ms(self) -> int:
        return len(self.samples) * 1000 // RATE


@dataclass(slots=True)
class Hours:
    """What was noted as the stream went on."""

    loop: Loop
    hours: int = HOURS
    # Speech that is a person's in each round and went to a speaker, milliseconds. All turns would outgrow the node.
    shares: dict[tuple[int, str, str], int] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    rss_mib: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    checkpoint_bytes: list[int] = field(default_factory=list)
    lag_ms: list[int] = field(default_factory=list)
    skipped: int = 0

    def note(self, response: node_pb2.DiarizeResponse) -> None:
        """Take what a stream told."""
        kind = response.WhichOneof("message")
        if kind == "turns":
            for turn in response.turns.turns:
                self._note_turn(turn)
        elif kind == "relabel":
            self.merged[response.relabel.speaker] = response.relabel.label
        elif kind == "checkpoint":
            self.checkpoint_bytes.append(len(response.checkpoint.data))
        elif kind == "progress":
            self.lag_ms.append(response.progress.lag_ms)
        elif kind == "closed":
            self.skipped = response.closed.skipped_windows
            assert response.closed.duration_ms == self.hours * HOUR_MS

    def _note_turn(self, turn: common_pb2.Turn) -> None:
        number, start = divmod(turn.start_ms, self.loop.duration_ms)
        for begin, end, person in self.loop.spoken:
            shared = min(end, start + turn.end_ms - turn.start_ms) - max(begin, start)
            if shared > 0:
                key = (number, person, turn.speaker)
                self.shares[key] = self.shares.get(key, 0) + shared

    def note_process(self, process: psutil.Process) -> None:
        """Another hour is over."""
        times = process.cpu_times()
        self.cpu_s.append(times.user + times.system)
        self.rss_mib.append(process.memory_info().rss / 2**20)
        # A run that is ended early has told of its hours.
        print(f"hour {len(self.cpu_s)}: {self.rss_mib[-1]:.0f} MiB, {self.cpu_s[-1]:.0f} s of CPU", flush=True)

    def label(self, speaker: str) -> str:
        while self.merged.get(speaker, speaker) != speaker:
            speaker = self.merged[speaker]
        return speaker


def people(folder: Path) -> Loop:
    """Five people in turns of an utterance each, in an order that is never the same, with pauses: some ten minutes."""
    draw = np.random.default_rng(8)
    pieces, spoken, at = [], [], 0
    clips = [(person.name, clip) for person in sorted(folder.iterdir()) for clip in sorted(person.glob("*.flac"))]
    for number in draw.permutation(len(clips)):
        person, clip = clips[number]
        samples, rate = soundfile.read(clip, dtype="float32")
        assert rate == RATE
        pause = np.zeros(int(draw.uniform(0.3, 1.5) * RATE), np.float32)
        spoken.append((at * 1000 // RATE, (at + len(samples)) * 1000 // RATE, person))
        pieces += [samples, pause]
        at += len(samples) + len(pause)
    return Loop(np.concatenate(pieces)[: at // RATE * RATE], spoken)


def voices_of_tones() -> Loop:
    """The same of tones: five voices, 8 s each, in five rounds."""
    pieces, spoken = [], []
    for number in range(25):
        pitch = 260.0 + 130.0 * (number * 2 % 5)
        spoken.append((number * 8_000, number * 8_000 + 8_000, str(number * 2 % 5)))
        pieces.append(tones(8.0, pitch, 3 * pitch, 7 * pitch))
    return Loop(np.concatenate(pieces), spoken)


class LoopingPeer:
    """Sends a loop of sound for hours, to a node in this process."""

    def __init__(self, loop: Loop, found: Hours) -> None:
        self._data = pcm(loop.samples)
        self._found = found
        self._sent = 0
        self._is_open = False

    async def receive(self) -> object:
        await asyncio.sleep(0)
        if not self._is_open:
            self._is_open = True
            return REQUEST
        self._sent += CHUNK
        if self._sent > HOURS * 7_200 * CHUNK:
            return events.Finish()
        at = (self._sent - CHUNK) % len(self._data)
        return self._data[at : at + CHUNK]

    async def send(self, event: events.Event) -> None:
        self._found.note(wire.response(event))


async def sent(loop: Loop, hours: int) -> AsyncIterator[node_pb2.DiarizeRequest]:
    yield node_pb2.DiarizeRequest(open=node_pb2.StreamOpen(latency_ms=2_000))
    data = pcm(loop.samples)
    for number in range(hours * 7_200):
        at = number * CHUNK % len(data)
        yield node_pb2.DiarizeRequest(audio=data[at : at + CHUNK])
    yield node_pb2.DiarizeRequest(finish=node_pb2.StreamFinish())


async def listen(node: RunningNode, loop: Loop, hours: int = HOURS) -> Hours:
    found, process = Hours(loop, hours), psutil.Process(node.process.pid)
    call = node.stub.Diarize(sent(loop, hours))
    while (response := await call.read()) is not aio.EOF:
        found.note(response)
        if response.turns.final_ms >= (len(found.cpu_s) + 1) * HOUR_MS:
            found.note_process(process)
    return found


def labels_by_round(found: Hours) -> dict[str, list[str]]:
    """Under which label each person had most speech, in each whole round of the loop."""
    rounds: dict[tuple[str, int], Counter[str]] = {}
    for (number, person, speaker), shared in found.shares.items():
        rounds.setdefault((person, number), Counter())[found.label(speaker)] += shared
    last = max(number for _, number in rounds)
    return {
        person: [rounds[person, number].most_common(1)[0][0] for number in range(last)]
        for person in sorted({person for person, _ in rounds})
    }


def judge(found: Hours) -> None:
    labels = labels_by_round(found)
    print({person: Counter(names).most_common(3) for person, names in labels.items()})
    print("MiB by hour", [round(mib) for mib in found.rss_mib], "CPU s", [round(s) for s in np.diff(found.cpu_s)])
    print("lag ms", max(found.lag_ms), "checkpoint bytes", max(found.checkpoint_bytes))
    assert found.skipped == 0
    kept = {person: names[-1] for person, names in labels.items()}
    assert len(set(kept.values())) == len(kept), kept
    for person, names in labels.items():
        assert names.count(kept[person]) >= 0.98 * len(names), (person, Counter(names))
    assert found.rss_mib[-1] < 1.05 * found.rss_mib[0] + 20, found.rss_mib
    # Who was found to be another is remembered by number, 512 of them at most: some 2 kB an hour until then.
    quarter = len(found.checkpoint_bytes) // 4
    assert max(found.checkpoint_bytes[-100:]) < max(found.checkpoint_bytes[:quarter]) + 4_000 * found.hours
    # Half of what is sent ahead at most: how far behind analysis is depends on nothing that grows.
    quarter = len(found.lag_ms) // 4
    assert np.median(found.lag_ms[-quarter:]) < 2 * np.median(found.lag_ms[:quarter]) + 1_000
    hours = np.diff(found.cpu_s)
    assert np.median(hours[-2:]) < 2 * np.median(hours[:2]), hours


async def test_eight_hours_of_voices_of_tones_leave_memory_and_cost_flat_and_labels_kept(tmp_path: Path) -> None:
    loop = voices_of_tones()
    async with running_node("--standalone", "--device", "null", log=tmp_path / "node.log") as node:
        judge(await listen(node, loop))


async def test_eight_hours_of_five_people_whose_windows_come_again_leave_labels_and_memory_as_they_were(
    audio: Path,
) -> None:
    loop = people(audio / "librispeech" / "members")
    found, process = Hours(loop), psutil.Process()
    loaded = engine_loader("builtin", "cpu")()

    def on_window(end: int) -> None:
        if end % (3600 * RATE) == 0:
            found.note_process(process)

    device = ReplayedDevice(loaded.device, len(loop.samples), on_window)
    async with live_streams(replace(loaded, device=device)) as made:
        peer = LoopingPeer(loop, found)
        await made.streams.serve(peer, Caller())  # type: ignore[arg-type]
    judge(found)


async def test_hours_of_five_people_through_the_whole_engine_leave_memory_and_cost_flat_and_labels_kept(
    audio: Path, tmp_path: Path
) -> None:
    loop = people(audio / "librispeech" / "members")
    async with running_node("--standalone", "--device", "cpu", log=tmp_path / "node.log") as node:
        judge(await listen(node, loop, WHOLE_ENGINE_HOURS))
