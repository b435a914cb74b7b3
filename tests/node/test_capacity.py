"""What a node finds out about the machine as it starts, and what it makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.analysis import FloatArray, WindowAnalysis
from models.seams import DueWindow
from node.capacity import Capacity, measure, measured
from node.engine import Engine, engine_loader, free_host_bytes
from node.null_engine import GRID, NullDevice
from runtime.errors import InvalidRequest
from tests.node.conftest import ADA, running_node, tones

SOUND: FloatArray = tones(10, *ADA)


class SlowDevice(NullDevice):
    """Takes so long for a batch, and so much more for each window of it, of the thread's own time."""

    def __init__(self, batch_s: float, window_s: float) -> None:
        super().__init__()
        self._costs_s = (batch_s, window_s)
        self.largest = 0

    def analyze(self, windows: Sequence[DueWindow]) -> list[WindowAnalysis]:
        self.largest = max(self.largest, len(windows))
        until_s = time.thread_time() + self._costs_s[0] + self._costs_s[1] * len(windows)
        found = super().analyze(windows)
        while time.thread_time() < until_s:
            pass
        return found


def engine(device: NullDevice, **changes: object) -> Engine:
    return replace(engine_loader("null@1", "null")(), device=device, device_name="cpu", **changes)  # type: ignore[arg-type]


def test_a_device_that_is_twice_as_slow_carries_half_as_many() -> None:
    fast, slow = (measure(engine(SlowDevice(0.0, window_s)), SOUND) for window_s in (0.02, 0.04))
    # 0.8 of the device, two windows a second and stream: 20 of them, and 10.
    assert 10 <= fast.streams <= 20 and 5 <= slow.streams <= 10


def test_a_device_to_which_large_batches_come_cheaper_is_counted_on_for_them_and_for_no_larger_ones() -> None:
    device = SlowDevice(0.02, 0.0005)
    found = measure(engine(device, windows_a_batch=16), SOUND, bound_s=30.0)
    assert found.batch == device.largest == 16
    assert found.streams > 2 * measure(engine(SlowDevice(0.02, 0.0005), windows_a_batch=1), SOUND).streams


def test_batches_that_take_too_long_are_not_counted_on() -> None:
    found = measure(engine(SlowDevice(0.3, 0.0)), SOUND, bound_s=60.0)
    assert (found.batch, found.streams) == (1, 1)


def test_measuring_ends_in_time_on_a_device_that_is_all_too_slow() -> None:
    device = SlowDevice(0.1, 0.1)
    measure(engine(device), SOUND, bound_s=0.1)
    assert device.largest == 1


def test_no_more_streams_are_admitted_than_there_is_memory_for() -> None:
    found = measure(engine(NullDevice(), free_bytes=lambda: 10 << 20), SOUND)
    assert found.streams == 4  # 2 MiB each, of 8 that may be used
    assert 0 < free_host_bytes() < 1 << 50


def test_what_was_measured_is_remembered_for_an_engine_and_a_machine(tmp_path: Path) -> None:
    file = tmp_path / "capacity.json"
    loaded = engine_loader("null@1", "null")()
    first = measured(loaded, file)
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: {**json.loads(file.read_text())[key], "streams": 77}}))
    assert measured(loaded, file) == replace(first, streams=77)
    assert measured(engine_loader("null@2", "null")(), file).streams != 77
    assert len(json.loads(file.read_text())) == 2
    file.write_text("{")
    with pytest.raises(InvalidRequest, match="delete it"):
        measured(loaded, file)


def test_measuring_leaves_nothing_of_it_in_what_streams_hear_later() -> None:
    loaded = engine_loader("null@1", "null")()
    measure(loaded, SOUND)
    loaded.device.open(0, GRID.window_samples)
    loaded.device.write(0, np.zeros(GRID.hop_samples, np.float32))
    (heard,) = loaded.device.analyze([DueWindow(0, GRID.hop_samples)])
    assert not heard.activity.any()


async def test_a_node_takes_what_it_measured_and_an_operator_may_say_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "capacity.json"
    flags = ("--standalone", "--device", "null", "--capacity-file", str(file))
    async with running_node(*flags, log=tmp_path / "node.log") as node:
        (found,) = (Capacity(**values) for values in json.loads(file.read_text()).values())
        assert await node.metric("speakerd_node_streams_limit") == found.streams
    async with running_node(*flags, "--streams-max", "3", log=tmp_path / "node.log") as node:
        assert await node.metric("speakerd_node_streams_limit") == 3
