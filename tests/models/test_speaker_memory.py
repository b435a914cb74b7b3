"""What a stream remembers, and what it forgets first."""

from __future__ import annotations

import numpy as np

from models.analysis import FloatArray, FrameGrid
from models.clustering import ClusteringParameters
from models.local_window import LocalWindow
from models.online_clustering import OnlineClusteringParams, SessionClustering
from models.speaker_memory import SpeakerMemory

EVIDENCE = ClusteringParameters(
    tight_distance=0.3,
    evidence_per_second=2.0,
    train_clean_frames=75,
    full_clean_frames=75,
    agreement_weight=0.3,
    active_frames_min=3.0,
    passes=2,
    onset=0.5,
    offset=0.5,
    gap_samples=3_200,
    speech_samples_min=3_200,
    overlap_threshold=0.5,
    turn_samples_min=0,
    within_variance=np.array([0.05], np.float32),
    between_variance=np.array([0.5], np.float32),
)


def grid(embedding_dim: int) -> FrameGrid:
    """Windows of five seconds, each half second."""
    return FrameGrid(80_000, 8_000, 320, 250, 1, embedding_dim)


def unit(*values: float) -> FloatArray:
    vector = np.array(values, np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def test_the_lighter_of_two_likes_makes_room_and_a_silent_speaker_stays() -> None:
    memory = SpeakerMemory(3, capacity=4)
    memory.remember(unit(0, 0, 1), 10.0, 7, (0, 250))
    memory.remember(unit(1, 0, 0), 5.0, 1, (0, 250))
    memory.remember(unit(1, 0.01, 0), 9.0, 1, (0, 250))
    memory.remember(unit(0.5, 1, 0), 9.0, 1, (0, 250))
    memory.remember(unit(0, 1, 0), 9.0, 1, (0, 250))
    assert sorted(memory.weights.tolist()) == [9.0, 9.0, 9.0, 10.0]
    assert memory.speakers.tolist() == [7, 1, 1, 1]


def test_a_session_speaker_who_turns_out_to_be_two_is_split_and_the_labels_are_mended() -> None:
    clustering = SessionClustering(OnlineClusteringParams(split_clean_frames=400.0), EVIDENCE, grid(2), 5)
    clustering.indices, clustering.next_index, clustering.last_settled = [0], 1, {0: 0}
    for angle in (0.0, 0.05, 0.1, 0.15, 1.4, 1.45, 1.5):
        clustering.memory.remember(unit(np.cos(angle), np.sin(angle)), 150.0, 0, (0, 250))
    merges, before = clustering.recluster([])
    assert (merges, before.tolist()) == ([], [0] * 7)
    assert clustering.indices == [0, 1]
    assert clustering.memory.speakers.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert np.allclose(clustering.centroids([]) @ unit(1, 0.08), [1.0, 0.2], atol=0.1)


def test_one_hardly_heard_and_long_silent_makes_room_and_nobody_else_does() -> None:
    params = OnlineClusteringParams(new_clean_frames=60.0, retire_windows=3, memory_hop_windows=1)
    clustering = SessionClustering(params, EVIDENCE, grid(8), 2)

    def hear(person: int, times: int, start_frame: int) -> int:
        for at in range(times):
            activity = np.ones((10, 1), np.float32)
            embedding = np.eye(8, dtype=np.float32)[person : person + 1]
            window = LocalWindow(start_frame + at, activity, embedding, np.full(1, 150.0, np.float32), [-1])
            clustering.assign([window])
            clustering.settle(window)
        return int(window.speakers[0])

    assert hear(0, 5, 0) == 0
    assert hear(1, 1, 10) == 1
    assert hear(2, 1, 20) in (0, 1)
    assert hear(0, 5, 30) == 0
    assert hear(3, 1, 40) == 2
    assert clustering.indices == [0, 2]
    assert hear(0, 1, 50) == 0
