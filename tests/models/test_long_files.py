"""Recordings of many hours: kept small, clustered in levels, with the speakers that all at once would give."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.long_files import StoredWindows, looped
from models import clustering as levels
from models.analysis import FloatArray
from models.clustering import SpeakerBounds, TightClusters, cluster_embeddings, merge_clusters, tight_clusters
from models.diarize import Diarization, FileDiarization, diarize_blocks
from models.file_windows import WINDOWS_A_BLOCK, FileWindows
from models.seams import SlotKind
from tests.models.builtin_engine import bundle, conversation, engine

GRID, CLUSTERING = bundle().grid, bundle().clustering
WITHIN, BETWEEN = np.sqrt(CLUSTERING.within_variance), np.sqrt(CLUSTERING.between_variance)
ANY, TWO, THREE, MANY = SpeakerBounds(), SpeakerBounds(1, 2), SpeakerBounds(3, 3), SpeakerBounds(6)


def talk(num_windows: int, num_voices: int, seed: int = 0) -> StoredWindows:
    """Windows in which one or two of the voices talk in turns of some seconds."""
    rng = np.random.default_rng(seed)
    voices = rng.normal(size=(num_voices, GRID.embedding_dim)) * BETWEEN
    voices /= np.linalg.norm(voices, axis=1, keepdims=True)
    hop, frames = GRID.hop_samples // GRID.step_samples, GRID.num_frames
    total = num_windows * hop + frames
    truth = np.zeros((total, num_voices), np.float32)
    at = 0
    while at < total:
        length = int(rng.integers(100, 400))
        truth[at : at + length, rng.integers(num_voices)] = 1.0
        at += length - int(rng.integers(0, 30))
    activity = np.zeros((num_windows, frames, 3), np.float32)
    embeddings = np.zeros((num_windows, 3, GRID.embedding_dim), np.float32)
    clean = np.zeros((num_windows, 3), np.float32)
    for window in range(num_windows):
        heard = truth[window * hop : window * hop + frames]
        present = np.argsort(-heard.sum(axis=0))[:3]
        for slot, speaker in enumerate(present):
            activity[window, :, slot] = heard[:, speaker]
            clean[window, slot] = ((heard[:, speaker] > 0) & (heard.sum(axis=1) == 1)).sum()
            if clean[window, slot] > 20:
                noisy = voices[speaker] + 0.5 * rng.normal(size=GRID.embedding_dim) * np.sqrt(
                    CLUSTERING.within_variance
                )
                embeddings[window, slot] = noisy / np.linalg.norm(noisy)
    return StoredWindows(activity, embeddings, clean)


def diarized(stored: StoredWindows, hours: float) -> Diarization:
    file = FileDiarization(GRID, CLUSTERING)
    file.add(looped(stored, hours, GRID.hop_samples))
    return file.finish(round(hours * 3600 * 16_000))


def same_share(one: Diarization, other: Diarization, num_samples: int) -> float:
    """Share of 20 ms frames in which both say the same of who speaks."""

    def frames(found: Diarization) -> np.ndarray:
        said = np.zeros((num_samples // 320, max(len(found.speakers), 1)), bool)
        for turn in found.turns:
            said[turn.start_samples // 320 : turn.end_samples // 320, turn.speaker] = True
        return said

    a, b = frames(one), frames(other)
    order = (a.T.astype(np.float32) @ b.astype(np.float32)).argmax(axis=1)
    return float((a == b[:, order]).all(axis=1).mean())


def test_windows_come_out_as_they_went_in_but_for_rounding() -> None:
    stored = talk(WINDOWS_A_BLOCK + 40, 3)
    windows = list(looped(stored, (WINDOWS_A_BLOCK + 40) / 7200, GRID.hop_samples))
    kept = FileWindows(GRID)
    kept.extend(windows)
    assert len(kept) == len(windows)
    for before, after in zip(windows, kept, strict=True):
        assert after.start_samples == before.start_samples
        np.testing.assert_allclose(after.activity, before.activity, atol=1e-3)
        np.testing.assert_allclose(after.embeddings, before.embeddings, atol=1e-3)
        np.testing.assert_array_equal(after.clean_frames, before.clean_frames)


def test_clusters_merged_in_groups_are_those_merged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = diarized(talk(600, 5), 0.2)
    monkeypatch.setattr(levels, "BLOCK_ITEMS", 40)
    monkeypatch.setattr(levels, "MERGED_AT_ONCE", 12)
    in_groups = diarized(talk(600, 5), 0.2)
    assert len(at_once.speakers) == len(in_groups.speakers) == 5
    assert same_share(at_once, in_groups, 720 * 16_000) > 0.995


def test_bounds_hold_for_clusters_merged_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "BLOCK_ITEMS", 40)
    monkeypatch.setattr(levels, "MERGED_AT_ONCE", 12)
    stored = talk(600, 4)
    items = stored.embeddings[stored.embeddings.any(axis=2)]
    seconds = np.full(len(items), 0.3, np.float32)
    for bounds, count in (
        (SpeakerBounds(1, 2), 2),
        (SpeakerBounds(6), 6),
        (SpeakerBounds(3, 3), 3),
        (SpeakerBounds(), 4),
    ):
        assert len(set(cluster_embeddings(items, seconds, CLUSTERING, bounds).tolist())) == count


def test_enrolled_people_are_kept_apart_also_when_merged_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "BLOCK_ITEMS", 20)
    monkeypatch.setattr(levels, "MERGED_AT_ONCE", 4)
    rng = np.random.default_rng(4)
    middle = rng.normal(size=GRID.embedding_dim) * BETWEEN
    apart = rng.normal(size=GRID.embedding_dim) * WITHIN
    voices = np.stack([middle + 0.9 * apart, middle - 0.9 * apart])
    voices /= np.linalg.norm(voices, axis=1, keepdims=True)
    items = np.repeat(voices, 60, axis=0)
    items = items + 0.02 * rng.normal(size=items.shape)
    items = (items / np.linalg.norm(items, axis=1, keepdims=True)).astype(np.float32)
    near = dataclasses.replace(CLUSTERING, voice_preference=0.05, evidence_per_second=0.01)
    tight = tight_clusters(items, np.ones(len(items), np.float32), near, SpeakerBounds())
    assert len(set(merge_clusters(tight, near, SpeakerBounds()).tolist())) == 1
    cosines = (tight.centroids @ voices.T).astype(np.float32)
    assert len(set(merge_clusters(tight, near, SpeakerBounds(), cosines).tolist())) == 2


def test_who_is_heard_in_two_rooms_for_long_is_one_person() -> None:
    """Without a bound on what a cluster knows of its voice, long speech in each room would be two people."""
    rng = np.random.default_rng(1)
    voice = rng.normal(size=GRID.embedding_dim) * BETWEEN
    rooms = voice + 0.5 * rng.normal(size=(2, GRID.embedding_dim)) * WITHIN
    items = np.repeat(rooms, 300, axis=0) + 0.7 * rng.normal(size=(600, GRID.embedding_dim)) * WITHIN
    items = (items / np.linalg.norm(items, axis=1, keepdims=True)).astype(np.float32)
    seconds = np.full(600, 0.5, np.float32)
    unbounded = dataclasses.replace(CLUSTERING, evidence_max=float("inf"))
    assert len(set(cluster_embeddings(items, seconds, unbounded, SpeakerBounds()).tolist())) == 2
    assert len(set(cluster_embeddings(items, seconds, CLUSTERING, SpeakerBounds()).tolist())) == 1


def test_parts_are_found_once_and_anew_after_more_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(items: FloatArray, *rest: Any) -> TightClusters:
        calls.append(len(items))
        return tight_clusters(items, *rest)

    monkeypatch.setattr("models.diarize.tight_clusters", counted)
    file, windows = FileDiarization(GRID, CLUSTERING), list(looped(talk(200, 2), 200 / 7200, GRID.hop_samples))
    file.add(windows[:100])
    file.parts()
    file.finish(100 * GRID.hop_samples)
    assert len(calls) == 1
    file.add(windows[100:])
    assert len(file.parts(SpeakerBounds(2, 2))) >= 2
    file.finish(200 * GRID.hop_samples, SpeakerBounds(2, 2))
    assert len(calls) == 2
    assert calls[1] > calls[0]


@pytest.mark.parametrize("kind", [SlotKind.FILE, SlotKind.FAST_FILE])
def test_how_a_recording_is_cut_into_blocks_changes_nothing(kind: SlotKind) -> None:
    sound = conversation()[96_000:256_000]

    def found(cuts: list[int]) -> Diarization:
        file = FileDiarization(engine().grid_of(kind), CLUSTERING)
        return diarize_blocks(engine(), np.split(sound, cuts), file, kind)

    whole = found([])
    assert len(whole.turns) > 1
    assert found([731, 732, 50_000, 149_999]).turns == whole.turns


def test_progress_reaches_the_end_and_never_goes_back() -> None:
    done: list[int] = []
    file = FileDiarization(GRID, CLUSTERING)
    sound = np.zeros(500_001, np.float32)
    diarize_blocks(engine(), np.array_split(sound, 7), file, SlotKind.FAST_FILE, progress=done.append)
    assert done == sorted(done)
    assert done[-1] == len(sound)


@pytest.mark.deep
def test_a_day_is_clustered_in_bounded_memory_and_linear_time(tmp_path: Path) -> None:
    stored = talk(2_000, 6)
    np.savez(tmp_path / "windows.npz", **dataclasses.asdict(stored))
    command = [sys.executable, "-m", "benchmarks.long_files", "--cache", str(tmp_path / "windows.npz")]
    ran = subprocess.run(
        [*command, "--hours", "1", "24", "--json", str(tmp_path / "out.json")],
        check=True,
        capture_output=True,
        timeout=3_000,
    )
    assert ran.returncode == 0
    hour, day = json.loads((tmp_path / "out.json").read_text())
    assert day["peak_mib"] < 6 * 1024
    assert day["finish_s_an_hour"] < 2 * hour["finish_s_an_hour"]
    assert day["speakers"] == hour["speakers"] == 6
