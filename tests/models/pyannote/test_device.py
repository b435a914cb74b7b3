"""The device of pyannote's family: windows of recordings and of live streams, whatever else is in their batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.analysis import FloatArray, WindowAnalysis
from models.bundle import load_bundle
from models.engines import collecting, open_device
from models.pyannote.bundle import PyannoteBundle
from models.pyannote.device import PyannoteDevice
from models.pyannote.embedding import Trunk
from models.pyannote.networks import build_embedding
from models.seams import DueWindow, SlotKind
from tests.models.pyannote.reference import RATE, collected, sample

SECONDS = 16


@pytest.fixture(scope="module")
def bundle(checkpoints: Path) -> PyannoteBundle:
    loaded = load_bundle(checkpoints / "plain" / "bundle-VBxClustering")
    assert isinstance(loaded, PyannoteBundle)
    return loaded


@pytest.fixture(scope="module")
def device(bundle: PyannoteBundle) -> PyannoteDevice:
    return PyannoteDevice(bundle)


@pytest.fixture(scope="module")
def sound(audio: Path) -> FloatArray:
    return sample(audio)[5 * RATE : (5 + SECONDS) * RATE]


def windows(
    device: PyannoteDevice, kind: SlotKind, sound: FloatArray, batch: int, slot: int = 3
) -> list[WindowAnalysis]:
    grid = device.grid_of(kind)
    first = grid.window_samples if grid.starts_at_zero else grid.hop_samples
    ends = list(range(first, len(sound) + 1, grid.hop_samples))
    device.open(slot, grid.window_samples + batch * grid.hop_samples, kind)
    found, written = [], 0
    for at in range(0, len(ends), batch):
        some = ends[at : at + batch]
        for end in some:  # in pieces, as a stream comes
            device.write(slot, sound[written:end])
            written = end
        found += device.analyze([DueWindow(slot, end) for end in some])
    return found


def apart(one: list[WindowAnalysis], other: list[WindowAnalysis]) -> float:
    assert [window.start_samples for window in one] == [window.start_samples for window in other]
    return max(
        max(float(np.abs(a.activity - b.activity).max()), float(np.abs(a.embeddings - b.embeddings).max()))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", SlotKind)
def test_a_window_is_the_same_however_windows_are_batched(
    kind: SlotKind, device: PyannoteDevice, sound: FloatArray
) -> None:
    assert apart(windows(device, kind, sound, 1), windows(device, kind, sound, 6)) < 1e-4


def test_slots_of_all_kinds_share_a_batch(device: PyannoteDevice, sound: FloatArray) -> None:
    alone = {kind: windows(device, kind, sound, 1)[-1] for kind in SlotKind}
    due = []
    for slot, kind in enumerate(SlotKind):
        windows(device, kind, sound, 1, slot)
        due.append(DueWindow(slot, alone[kind].start_samples + device.grid_of(kind).window_samples))
    for kind, found in zip(SlotKind, device.analyze(due), strict=True):
        assert apart([found], [alone[kind]]) < 1e-3, kind


def test_live_windows_begin_with_the_first_sounds_of_a_stream(device: PyannoteDevice, sound: FloatArray) -> None:
    found = windows(device, SlotKind.LIVE, sound, 1)
    assert found[0].start_samples == device.grid.hop_samples - device.grid.window_samples
    for number, window in enumerate(found):
        there = (number + 1) * device.grid.hop_samples // device.grid.step_samples
        assert not window.activity[: max(0, device.grid.num_frames - there)].any()
        assert window.activity.min() >= 0 and window.activity.max() <= 1
        norms = np.linalg.norm(window.embeddings, axis=1)
        assert np.all((np.abs(norms - 1) < 1e-5) | (norms == 0))
        assert np.array_equal(norms > 0, window.clean_frames > 0)
    assert found[10].activity.max() > 0.9, "speech is heard within five seconds"


def test_silence_has_neither_speakers_nor_embeddings(device: PyannoteDevice) -> None:
    for kind in SlotKind:
        for window in windows(device, kind, np.zeros(11 * RATE, np.float32), 4):
            assert not (window.activity > 0.5).any() and not window.embeddings.any()


def test_a_streams_silence_reaches_no_network_and_speech_after_it_is_heard_as_ever(
    device: PyannoteDevice, sound: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = np.random.default_rng(3).normal(0, 1e-4, 12 * RATE).astype(np.float32)
    asked: list[int] = []
    network = device._segmentation
    monkeypatch.setattr(device, "_segmentation", lambda batch: (asked.append(len(batch)), network(batch))[1])
    found = windows(device, SlotKind.LIVE, np.concatenate([quiet, sound, quiet]), batch=4)
    hop = device.grid.hop_samples
    silent = [window for window in found if window.start_samples + device.grid.window_samples <= len(quiet)]
    assert len(silent) >= len(quiet) // hop - 1 and not any(window.activity.any() for window in silent)
    assert 0 < sum(asked) <= len(found) - len(silent)
    assert any(window.embeddings.any() for window in found[len(silent) :])


def test_a_trunk_that_is_shared_hears_nearly_what_an_own_one_hears(
    device: PyannoteDevice, bundle: PyannoteBundle, sound: FloatArray
) -> None:
    exact, fast = (windows(device, kind, sound, 4) for kind in (SlotKind.FILE, SlotKind.FAST_FILE))
    cosines = []
    for one, other in zip(exact, fast, strict=True):
        assert np.array_equal(one.activity, other.activity), "only embeddings differ"
        a, b = one.embeddings - bundle.voice_mean, other.embeddings - bundle.voice_mean
        heard = one.clean_frames > 100
        cosines += list((a * b).sum(1)[heard] / np.linalg.norm(a, axis=1)[heard] / np.linalg.norm(b, axis=1)[heard])
    assert np.median(cosines) > 0.8
    assert apart([exact[0]], [fast[0]]) < 1e-4, "nothing is shared in the first window"


def test_a_fault_in_a_batch_costs_what_was_kept_and_nothing_else(
    device: PyannoteDevice, sound: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = device.grid_of(SlotKind.FAST_FILE)
    device.open(0, grid.window_samples + 8 * grid.hop_samples, SlotKind.FAST_FILE)
    device.write(0, sound[: grid.window_samples + 3 * grid.hop_samples])
    ends = [grid.window_samples + index * grid.hop_samples for index in range(4)]
    device.analyze([DueWindow(0, end) for end in ends[:2]])
    with monkeypatch.context() as patch:
        patch.setattr(Trunk, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("lost")))
        with pytest.raises(RuntimeError):
            device.analyze([DueWindow(0, ends[2])])
    assert device.analyze([DueWindow(0, ends[2])])[0].embeddings.any()


def test_folded_and_in_half_precision_the_trunk_hears_the_same(bundle: PyannoteBundle) -> None:
    network = build_embedding(bundle)
    mels = torch.randn(1, 200, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = network.resnet.forward_frames(mels.clone())  # type: ignore[operator, union-attr]
        scale = float(wanted.abs().max())
        assert float((Trunk(network.resnet)(mels) - wanted).abs().max()) < 1e-4 * scale
        assert float((Trunk(network.resnet, torch.bfloat16)(mels) - wanted).abs().max()) < 0.2 * scale


def test_a_clip_of_one_voice_is_one_voice(device: PyannoteDevice, audio: Path) -> None:
    clip = sorted((audio / "librispeech" / "members").glob("*/*"))[0]
    import soundfile

    heard = device.analyze_voice(soundfile.read(clip, dtype="float32")[0][: 12 * RATE])
    assert heard.num_speakers >= 1 and heard.net_speech_samples > 3 * RATE
    assert abs(float(np.linalg.norm(heard.embedding)) - 1) < 1e-5
    silent = device.analyze_voice(np.zeros(5 * RATE, np.float32))
    assert silent.num_speakers == 0 and not silent.embedding.any()


def test_progress_and_cancellation_come_between_any_two_batches(
    device: PyannoteDevice, bundle: PyannoteBundle, sound: FloatArray
) -> None:
    from models.diarize import analyze_blocks

    steps: Iterator[tuple[list[WindowAnalysis], int]] = analyze_blocks(
        device, (sound[at : at + RATE] for at in range(0, len(sound), RATE)), 5, SlotKind.FILE
    )
    analyses, done = next(steps)
    assert analyses and done > 0
    steps.close()
    file = collected(device, bundle, sound)
    turns = file.finish(len(sound)).turns
    assert turns and all(turn.start_samples < turn.end_samples for turn in turns)


def test_engines_are_opened_by_family(checkpoints: Path) -> None:
    bundle = load_bundle(checkpoints / "plain" / "bundle-VBxClustering" / "bundle.toml")
    device = open_device(bundle)
    assert isinstance(device, PyannoteDevice)
    file = collecting(bundle, device)(SlotKind.FILE)
    assert not file.finish(0).turns
