"""Whole files: real speech end to end, and the decisions in between on made-up windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from models.analysis import WindowAnalysis
from models.clustering import SpeakerBounds, cluster_embeddings, merge_clusters, tight_clusters
from models.diarize import FileDiarization, diarize_samples, speaker_bounds
from runtime.errors import InvalidRequest
from tests.models.builtin_engine import bundle, conversation, engine, truth

CLUSTERING = bundle().clustering
GRID = bundle().grid


def test_two_people_in_a_real_conversation_are_told_apart():
    samples = conversation()
    heard = []
    found = diarize_samples(engine(), samples, CLUSTERING, progress=lambda done, total: heard.append((done, total)))
    assert len(found.speakers) == 2
    assert heard[-1] == (len(samples), len(samples))
    assert heard == sorted(heard)
    spoken = np.zeros((1_500, 2), bool)
    for turn in found.exclusive:
        spoken[turn.start_samples // 320 : turn.end_samples // 320, turn.speaker] = True
    reference = np.zeros((1_500, 2), bool)
    for start, end, speaker in truth():
        reference[round(start * 50) : round(end * 50), int(speaker == "speaker91")] = True
    alone = reference.sum(axis=1) == 1
    right = max((spoken[alone] & reference[alone][:, order]).any(axis=1).mean() for order in ([0, 1], [1, 0]))
    assert right > 0.8
    assert spoken[: 50 * 6].mean() < 0.05  # nobody speaks in the first six seconds


def test_the_number_of_speakers_asked_for_is_the_number_found():
    samples = conversation()[:320_000]
    assert len(diarize_samples(engine(), samples, CLUSTERING, num_speakers=1).speakers) == 1
    assert len(diarize_samples(engine(), samples, CLUSTERING, max_speakers=1).speakers) == 1
    assert len(diarize_samples(engine(), samples, CLUSTERING, min_speakers=3).speakers) == 3


def test_numbers_of_speakers_that_contradict_each_other_are_refused():
    with pytest.raises(InvalidRequest):
        speaker_bounds(None, 3, 2)
    with pytest.raises(InvalidRequest):
        speaker_bounds(0, None, None)
    assert speaker_bounds(None, None, None) == SpeakerBounds(1, None)


@pytest.mark.parametrize("num_samples", [0, 40, 4_800, 100_000])
def test_silence_of_any_length_has_no_turns(num_samples):
    found = diarize_samples(engine(), np.zeros(num_samples, np.float32), CLUSTERING)
    assert (found.turns, found.exclusive, found.speakers) == ((), (), ())


def _noise(rng: np.random.Generator) -> np.ndarray:
    return 0.1 * rng.normal(size=160_000)


def _hum(rng: np.random.Generator) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * 50 / 16_000 * np.arange(160_000)) + 0.001 * rng.normal(size=160_000)


def _clicks(rng: np.random.Generator) -> np.ndarray:
    clicks = np.zeros(160_000)
    clicks[rng.integers(0, 160_000, 20)] = 0.5
    return clicks


def _melody(rng: np.random.Generator) -> np.ndarray:
    pitch = np.repeat(rng.choice([220.0, 247.0, 262.0, 294.0, 330.0, 392.0], 20), 8_000)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    fading = np.exp(-3 * (np.arange(160_000) % 8_000) / 16_000)
    return 0.1 * fading * sum(np.sin(harmonic * phase) / harmonic for harmonic in (1, 2, 3, 4))


@pytest.mark.parametrize("sound", [_noise, _hum, _clicks, _melody])
def test_nobody_is_heard_in_what_is_not_speech(sound):
    samples = sound(np.random.default_rng(8)).astype(np.float32)
    assert diarize_samples(engine(), samples, CLUSTERING).turns == ()


def test_a_short_utterance_is_one_turn_inside_the_file():
    samples = conversation()[355_000:371_000]
    found = diarize_samples(engine(), samples, CLUSTERING)
    assert len(found.speakers) == 1
    assert found.turns[0].start_samples >= 0
    assert found.turns[-1].end_samples <= len(samples)


def _voices(num_voices: int, rng: np.random.Generator) -> np.ndarray:
    voices = rng.normal(size=(num_voices, GRID.embedding_dim)) * np.sqrt(CLUSTERING.between_variance)
    return voices / np.linalg.norm(voices, axis=1, keepdims=True)


def _heard(voice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    heard = voice + 0.5 * rng.normal(size=voice.shape) * np.sqrt(CLUSTERING.within_variance)
    return (heard / np.linalg.norm(heard)).astype(np.float32)


def test_voices_are_clustered_by_evidence_whatever_their_order():
    rng = np.random.default_rng(3)
    voices = _voices(4, rng)
    owners = rng.integers(0, 4, 120)
    items = np.stack([_heard(voices[owner], rng) for owner in owners])
    labels = cluster_embeddings(items, np.full(120, 1.0, np.float32), CLUSTERING, SpeakerBounds())
    assert len({(owner, label) for owner, label in zip(owners, labels, strict=True)}) == 4
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3]


def test_bounds_on_speakers_hold_against_the_evidence():
    rng = np.random.default_rng(4)
    voices = _voices(4, rng)
    items = np.stack([_heard(voices[n % 4], rng) for n in range(40)])
    seconds = np.full(40, 1.0, np.float32)
    for bounds, count in ((SpeakerBounds(1, 2), 2), (SpeakerBounds(6, None), 6), (SpeakerBounds(3, 3), 3)):
        assert len(set(cluster_embeddings(items, seconds, CLUSTERING, bounds).tolist())) == count


def test_overlapping_speech_is_two_turns_and_one_exclusive_one():
    rng = np.random.default_rng(5)
    voices = _voices(2, rng)
    truth_frames = np.zeros((1_000, 2), np.float32)
    truth_frames[:500, 0] = 1.0
    truth_frames[400:, 1] = 1.0  # both speak from frame 400 to 500
    file = FileDiarization(GRID, CLUSTERING)
    for start in range(0, 1_000 - GRID.num_frames + 1, 25):
        activity = np.zeros((GRID.num_frames, 3), np.float32)
        # Slots trade places from window to window: their order means nothing.
        slots = [0, 2] if start % 50 else [2, 1]
        activity[:, slots] = truth_frames[start : start + GRID.num_frames]
        clean = np.where(activity.sum(axis=1, keepdims=True) == 1, activity, 0).sum(axis=0)
        embeddings = np.zeros((3, GRID.embedding_dim), np.float32)
        for slot, voice in zip(slots, voices, strict=True):
            if clean[slot] > 20:
                embeddings[slot] = _heard(voice, rng)
        file.add([WindowAnalysis(start * 320, activity, embeddings, clean.astype(np.float32))])
    found = file.finish(320_000)
    assert [(t.start_samples, t.end_samples, t.speaker) for t in found.turns] == [
        (0, 500 * 320, 0),
        (400 * 320, 320_000, 1),
    ]
    assert sum(t.end_samples - t.start_samples for t in found.exclusive) == 320_000
    assert [speaker.net_speech_samples for speaker in found.speakers] == [400 * 320, 500 * 320]
    np.testing.assert_allclose([s.embedding @ v for s, v in zip(found.speakers, voices, strict=True)], 1.0, atol=0.1)


def test_different_enrolled_people_are_not_merged_however_alike_they_sound():
    rng = np.random.default_rng(6)
    line = _voices(3, rng)
    people = line[1:] + 1.4 * line[0]  # a poor line gives both the same ring
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    tight = tight_clusters(
        np.stack([_heard(people[n % 2], rng) for n in range(6)]),
        np.full(6, 0.5, np.float32),
        dataclasses.replace(CLUSTERING, tight_distance=0.05),
        SpeakerBounds(),
    )
    unknown = merge_clusters(tight, CLUSTERING, SpeakerBounds())
    known = merge_clusters(tight, CLUSTERING, SpeakerBounds(), (tight.centroids @ people.T).astype(np.float32))
    forced = merge_clusters(tight, CLUSTERING, SpeakerBounds(1, 1), (tight.centroids @ people.T).astype(np.float32))
    assert len(set(unknown[tight.labels].tolist())) == 1
    assert known[tight.labels].tolist() == [0, 1, 0, 1, 0, 1]
    assert len(set(forced.tolist())) == 1


def test_a_short_gap_goes_on_with_whoever_spoke_before_it():
    rng = np.random.default_rng(7)
    voices = _voices(2, rng)
    truth_frames = np.zeros((750, 2), np.float32)
    truth_frames[:300, 0] = 1.0
    truth_frames[300:, 1] = 1.0
    truth_frames[[*range(150, 155), *range(495, 500)]] = 0.0  # nobody at all, in the middle of either one's speech
    file = FileDiarization(GRID, CLUSTERING)
    for start in range(0, 750 - GRID.num_frames + 1, 25):
        activity = np.zeros((GRID.num_frames, 3), np.float32)
        activity[:, :2] = truth_frames[start : start + GRID.num_frames]
        embeddings = np.zeros((3, GRID.embedding_dim), np.float32)
        embeddings[:2] = [_heard(voice, rng) for voice in voices]
        file.add([WindowAnalysis(start * 320, activity, embeddings, activity.sum(axis=0))])
    found = file.finish(750 * 320)
    assert [(t.start_samples, t.end_samples, t.speaker) for t in found.exclusive] == [
        (0, 300 * 320, 0),
        (300 * 320, 750 * 320, 1),
    ]
