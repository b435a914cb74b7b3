"""The contract of AnalysisDevice, held against the builtin engine on real speech."""

from __future__ import annotations

import numpy as np
import pytest

from models.seams import DueWindow, SlotKind
from tests.models.builtin_engine import analyze, assert_same, conversation, engine

SPEECH = slice(100_000, 228_000)


def test_how_sound_is_cut_into_writes_changes_nothing():
    sound = conversation()[SPEECH]
    assert_same(analyze(sound, write_samples=16_000), analyze(sound, slot=7, write_samples=731))


def test_a_stream_and_a_file_of_the_same_sound_are_analysed_alike():
    sound, device = conversation()[SPEECH], engine()
    device.open(0, len(sound))
    device.write(0, sound)
    ends = range(device.grid.hop_samples, len(sound) + 1, device.grid.hop_samples)
    assert_same(analyze(sound, slot=1), device.analyze([DueWindow(0, end) for end in ends]))


def test_a_slot_hears_nothing_of_the_others_in_its_batch():
    sound, device = conversation()[SPEECH], engine()
    alone = analyze(sound, slot=3)[-1]
    device.open(4, device.grid.window_samples)
    device.open(5, device.grid.window_samples)
    device.open(6, device.grid.window_samples)
    noise = np.random.default_rng(0).normal(0, 0.3, len(sound)).astype(np.float32)
    device.write(4, noise)
    device.write(5, sound)
    device.write(6, conversation()[300_000 : 300_000 + len(sound)])
    together = device.analyze([DueWindow(slot, len(sound)) for slot in (4, 5, 6)])
    assert_same([alone], [together[1]])
    assert not np.allclose(together[1].activity, together[2].activity, atol=0.1)


def test_opening_a_slot_forgets_what_it_held():
    sound = conversation()[SPEECH]
    first = analyze(sound, slot=8)
    analyze(conversation()[300_000:400_000], slot=8)
    assert_same(first, analyze(sound, slot=8))
    assert first[0].start_samples == 8_000 - engine().grid.window_samples


def test_loudness_does_not_matter_to_a_voice():
    sound = conversation()[SPEECH]
    loud, soft = analyze(sound)[-1], analyze(0.1 * sound)[-1]
    heard = loud.embeddings.any(axis=1) & soft.embeddings.any(axis=1)
    assert heard.any()
    assert np.all((loud.embeddings * soft.embeddings).sum(axis=1)[heard] > 0.95)


def test_a_window_that_has_left_the_ring_is_a_fault_of_the_caller():
    device = engine()
    device.open(9, device.grid.window_samples)
    device.write(9, np.zeros(3 * device.grid.window_samples, np.float32))
    with pytest.raises(AssertionError):
        device.analyze([DueWindow(9, device.grid.window_samples)])
    with pytest.raises(AssertionError):
        device.analyze([DueWindow(9, 4 * device.grid.window_samples)])


def test_silence_has_no_speakers():
    windows = analyze(np.zeros(160_000, np.float32))
    assert len(windows) == 20
    assert max(float(window.activity.max()) for window in windows) < 0.1
    assert not any(window.embeddings.any() for window in windows)


def test_an_analysis_keeps_to_its_grid():
    grid = engine().grid
    for window in analyze(conversation()[SPEECH]):
        assert window.activity.shape == (grid.num_frames, grid.num_local_speakers)
        assert window.activity.dtype == window.embeddings.dtype == window.clean_frames.dtype == np.float32
        assert window.embeddings.shape == (grid.num_local_speakers, grid.embedding_dim)
        assert 0.0 <= window.activity.min() <= window.activity.max() <= 1.0 + 1e-6
        lengths = np.linalg.norm(window.embeddings, axis=1)
        assert np.all(np.isclose(lengths, 1.0, atol=1e-4) | (lengths == 0.0))


def test_what_a_voice_sample_says_of_one_person_two_people_and_nobody():
    # In the sample one person speaks alone from 21.8 s to 27.8 s, and two take turns before.
    one = engine().analyze_voice(conversation()[349_000:445_000])
    assert one.num_speakers == 1
    assert one.net_speech_samples > 40_000
    assert np.isclose(np.linalg.norm(one.embedding), 1.0, atol=1e-4)
    two = engine().analyze_voice(conversation()[160_000:445_000])
    assert two.num_speakers == 2
    assert two.cohesion < one.cohesion
    nobody = engine().analyze_voice(np.zeros(48_000, np.float32))
    assert (nobody.num_speakers, nobody.net_speech_samples, nobody.cohesion) == (0, 0, 0.0)
    assert not nobody.embedding.any()


def test_neighbouring_windows_share_their_filters_and_are_heard_as_alone():
    sound, device = conversation()[100_000:300_000], engine()
    hop, ends = device.grid.hop_samples, range(80_000, 200_001, 8_000)
    for slot in (10, 11):
        device.open(slot, len(sound))
        device.write(slot, sound)
    together = device.analyze([DueWindow(10, end) for end in ends])
    alone = [device.analyze([DueWindow(11, end)])[0] for end in ends]
    assert hop == 8_000
    assert_same(together, alone)


def test_a_fast_slot_hears_speech_and_leaves_silence_alone(monkeypatch):
    sound, device = conversation()[SPEECH], engine()
    grid = device.grid_of(SlotKind.FAST_FILE)
    assert grid.hop_samples >= device.grid.hop_samples == device.grid_of(SlotKind.FILE).hop_samples
    device.open(12, 320_000, SlotKind.FAST_FILE)
    device.write(12, np.concatenate([np.zeros(128_000, np.float32), sound]))
    speaking = device.analyze([DueWindow(12, 256_000)])[0]
    assert speaking.embeddings.any()
    assert speaking.activity.max() > 0.5
    device.open(12, 160_000, SlotKind.FAST_FILE)
    device.write(12, np.zeros(160_000, np.float32))
    monkeypatch.setattr(device, "_segmentation", None)
    monkeypatch.setattr(device, "_encoder", None)
    silent = device.analyze([DueWindow(12, 80_000), DueWindow(12, 80_000 + grid.hop_samples)])
    assert max(float(window.activity.max()) for window in silent) < 0.1


def test_a_streams_silence_is_neither_segmented_nor_encoded(monkeypatch):
    device = engine()

    def nobody_asks(*_):
        raise AssertionError("silence reached a network")

    monkeypatch.setattr(device, "_segmentation", nobody_asks)
    monkeypatch.setattr(device, "_encoder", nobody_asks)
    quiet = np.zeros(10 * 16_000, np.float32)
    assert max(float(window.activity.max()) for window in analyze(quiet, slot=20)) < 0.1
    with pytest.raises(AssertionError, match="reached a network"):
        analyze(conversation()[SPEECH], slot=20)
