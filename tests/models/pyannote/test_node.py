"""A node that runs a bundle of pyannote's family: recordings through its batcher, live streams, enrolment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from models.diarize import FILE_SLOT, analyze_blocks
from models.engines import collecting
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.device import PyannoteDevice
from models.seams import SlotKind
from runtime.units import ms_from_samples
from speakerd.v1 import node_pb2
from tests.models.pyannote.reference import RATE, ours_loaded, sample
from tests.node.conftest import pcm, running_node


@pytest.fixture
def bundle(checkpoints: Path) -> PyannoteBundle:
    return ours_loaded(checkpoints / "plain" / "bundle-VBxClustering")


def in_process(bundle: PyannoteBundle, samples: np.ndarray) -> list[tuple[int, int, str]]:
    device = PyannoteDevice(bundle)
    file = collecting(bundle, device)(SlotKind.FILE)
    for analyses, _ in analyze_blocks(device, [samples], FILE_SLOT, SlotKind.FILE):
        file.add(analyses)
    return [
        (ms_from_samples(turn.start_samples), ms_from_samples(turn.end_samples), f"spk_{turn.speaker}")
        for turn in file.finish(len(samples)).turns
    ]


async def test_a_node_answers_for_a_recording_what_the_engine_answers(
    audio: Path, checkpoints: Path, bundle: PyannoteBundle, tmp_path: Path
) -> None:
    samples = sample(audio)[6 * RATE : 20 * RATE + 4321]

    async def upload() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
        yield node_pb2.DiarizeFileRequest(open=node_pb2.FileOpen())
        data = pcm(samples)
        for at in range(0, len(data), 1 << 18):
            yield node_pb2.DiarizeFileRequest(audio=data[at : at + (1 << 18)])

    folder = str(checkpoints / "plain" / "bundle-VBxClustering")
    async with running_node("--standalone", "--device", "cpu", "--bundle", folder, log=tmp_path / "node.log") as node:
        result = node_pb2.FileResult()
        async for answer in node.stub.DiarizeFile(upload()):
            result.MergeFrom(answer.result)
        live = await node.diarize(samples[: 8 * RATE], latency_ms=2000)
    received = np.frombuffer(pcm(samples), "<i2").astype(np.float32) / 32768
    wanted = in_process(bundle, received)
    assert wanted and [(turn.start_ms, turn.end_ms, turn.speaker) for turn in result.turns] == wanted
    assert live.closed is not None and live.closed.duration_ms == 8_000
    assert live.turns, "somebody is heard live"
