"""Live diarization over scenes: who really speaks when is known, and windows are made of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.clustering import ClusteringParameters
from models.online import Merge, OnlineDiarization, OnlineParams, StepOutcome, Turn
from models.online_clustering import OnlineClusteringParams, SessionClustering
from models.timeline import TimelineParams
from runtime.errors import InvalidRequest
from runtime.units import samples_from_seconds

GRID = FrameGrid(
    window_samples=80_000, hop_samples=8_000, step_samples=320, num_frames=250, num_local_speakers=3, embedding_dim=64
)
# The tests' own, so that tuning a bundle does not change what they say.
EVIDENCE = ClusteringParameters(
    tight_distance=0.3,
    evidence_per_second=0.5,
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
    within_variance=np.full(64, 0.2 / 64, np.float32),
    between_variance=np.full(64, 0.8 / 64, np.float32),
)
PARAMS = OnlineParams(
    evidence=EVIDENCE,
    clustering=OnlineClusteringParams(new_clean_frames=60.0),
    timeline=TimelineParams(onset=0.5, offset=0.5, gap_samples=3_200, speech_samples_min=1_600, overlap_threshold=0.5),
)
LATENCY_SAMPLES = 32_000


@dataclass(frozen=True, slots=True)
class Speech:
    """Somebody speaks, from and to in seconds."""

    person: int
    start_s: float
    end_s: float


def voice_of(person: int) -> FloatArray:
    """A unit vector (D,) of each person's own, nearly orthogonal to the others."""
    vector = np.random.default_rng([7, person]).standard_normal(GRID.embedding_dim)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def window_of(scene: Sequence[Speech], end_samples: int) -> WindowAnalysis:
    """What a flawless engine says of the window that ends there; columns are in an order of the window's own."""
    start = end_samples - GRID.window_samples
    rng = np.random.default_rng([3, end_samples])
    times_s = (start + (np.arange(GRID.num_frames) + 0.5) * GRID.step_samples) / 16_000
    speech = {person: np.zeros(GRID.num_frames, np.bool_) for person in sorted({part.person for part in scene})}
    for part in scene:
        speech[part.person] |= (times_s >= part.start_s) & (times_s < part.end_s) & (times_s >= 0)
    heard = [person for person, active in speech.items() if active.any()][: GRID.num_local_speakers]
    activity = np.zeros((GRID.num_frames, GRID.num_local_speakers), np.float32)
    embeddings = np.zeros((GRID.num_local_speakers, GRID.embedding_dim), np.float32)
    clean_frames = np.zeros(GRID.num_local_speakers, np.float32)
    for column, person in zip(rng.permutation(GRID.num_local_speakers), heard, strict=False):
        others = np.zeros(GRID.num_frames, np.bool_)
        for other in heard:
            others |= speech[other] & (other != person)
        activity[:, column] = speech[person]
        clean_frames[column] = (speech[person] & ~others).sum()
        if clean_frames[column] >= 10:
            noisy = voice_of(person) + 0.05 * rng.standard_normal(GRID.embedding_dim)
            embeddings[column] = noisy / np.linalg.norm(noisy)
    return WindowAnalysis(start, activity, embeddings, clean_frames)


def windows_of(scene: Sequence[Speech], end_s: float, start_s: float = 0.0) -> Iterator[WindowAnalysis]:
    """Every window due from one time to another, in seconds."""
    first = samples_from_seconds(start_s) + GRID.hop_samples
    for end_samples in range(first, samples_from_seconds(end_s) + 1, GRID.hop_samples):
        yield window_of(scene, end_samples)


def open_stream(
    latency_samples: int = LATENCY_SAMPLES, *, exclusive: bool = False, num_speakers_max: int = 20
) -> OnlineDiarization:
    return OnlineDiarization(
        GRID, PARAMS, latency_samples=latency_samples, exclusive=exclusive, num_speakers_max=num_speakers_max
    )


def final_turns(scene: Sequence[Speech], end_s: float, stream: OnlineDiarization | None = None) -> list[Turn]:
    stream = stream or open_stream()
    outcomes = [stream.step(window) for window in windows_of(scene, end_s)]
    outcomes.append(stream.finish(samples_from_seconds(end_s)))
    return [turn for outcome in outcomes for turn in outcome.turns if turn.final]


def joined(turns: Sequence[Turn]) -> list[tuple[int, float, float]]:
    """Touching pieces of one speaker put together: (speaker, start, end), in seconds to a tenth."""
    whole: list[list[int]] = []
    for turn in sorted(turns, key=lambda turn: (turn.speaker, turn.start_samples)):
        if whole and whole[-1][0] == turn.speaker and whole[-1][2] == turn.start_samples:
            whole[-1][2] = turn.end_samples
        else:
            whole.append([turn.speaker, turn.start_samples, turn.end_samples])
    return sorted(((k, round(a / 16_000, 1), round(b / 16_000, 1)) for k, a, b in whole), key=lambda part: part[1])


def test_two_people_who_alternate_keep_their_labels() -> None:
    scene = [Speech(turn % 2, 4.0 * turn, 4.0 * turn + 3.0) for turn in range(10)]
    assert joined(final_turns(scene, 42.0)) == [(n % 2, 4.0 * n, 4.0 * n + 3.0) for n in range(10)]


@pytest.mark.parametrize(("voices", "goes_on", "merged"), [({}, False, 1), ({}, True, 0), ({0: "a", 1: "b"}, False, 0)])
def test_a_speaker_opened_in_the_last_seconds_is_looked_at_once_more(
    voices: dict[int, str], goes_on: bool, merged: int
) -> None:
    stream = open_stream()
    hoarse = 0.55 * voice_of(0) + 0.83 * voice_of(1)
    for window in windows_of([Speech(0, 0.0, 14.5)], 14.5):
        if window.start_samples + GRID.window_samples > 13 * 16_000:
            window.embeddings[window.embeddings.any(axis=1)] = hoarse / np.linalg.norm(hoarse)
        assert stream.step(window).merges == []
    assert [speaker.index for speaker in stream.session_speakers()] == [0, 1]
    last = stream.finish(samples_from_seconds(14.5), voices, goes_on=goes_on)
    assert last.merges == [Merge(source=1, target=0)][:merged]
    assert merged == 0 or {turn.speaker for turn in last.turns} == {0}


def test_somebody_who_returns_after_ten_minutes_keeps_the_label() -> None:
    others = [Speech(1 + turn % 3, 10.0 + 5.0 * turn, 14.0 + 5.0 * turn) for turn in range(120)]
    scene = [Speech(0, 1.0, 8.0), *others, Speech(0, 612.0, 618.0)]
    turns = joined(final_turns(scene, 620.0))
    assert turns[0] == (0, 1.0, 8.0)
    assert turns[-1] == (0, 612.0, 618.0)
    assert {speaker for speaker, _, _ in turns} == {0, 1, 2, 3}


def test_two_people_at_once_are_two_turns_that_overlap() -> None:
    scene = [Speech(0, 0.0, 6.0), Speech(1, 5.0, 11.0)]
    assert joined(final_turns(scene, 13.0)) == [(0, 0.0, 6.0), (1, 5.0, 11.0)]


def test_who_is_heard_under_somebody_else_alone_is_not_taken_for_one_who_was_heard_long_ago() -> None:
    scene = [Speech(0, 0.0, 6.0), Speech(1, 8.0, 14.0), Speech(2, 20.0, 28.0), Speech(3, 22.0, 24.0)]
    turns = joined(final_turns(scene, 34.0))
    assert turns == [(0, 0.0, 6.0), (1, 8.0, 14.0), (2, 20.0, 28.0)]


def test_an_exclusive_stream_has_one_speaker_at_a_time() -> None:
    scene = [Speech(turn % 2, 3.0 * turn, 3.0 * turn + 4.0) for turn in range(8)]
    turns = sorted(final_turns(scene, 30.0, open_stream(exclusive=True)), key=lambda turn: turn.start_samples)
    assert {turn.speaker for turn in turns} == {0, 1}
    assert all(before.end_samples <= after.start_samples for before, after in itertools.pairwise(turns))


def test_a_long_turn_is_final_piece_by_piece_and_never_later_than_the_latency() -> None:
    stream = open_stream()
    pieces: list[Turn] = []
    for window in windows_of([Speech(0, 0.0, 60.0)], 30.0):
        outcome = stream.step(window)
        now = window.start_samples + GRID.window_samples
        assert outcome.final_samples == max(0, now - LATENCY_SAMPLES)
        pieces += [turn for turn in outcome.turns if turn.final]
        if now >= 8 * 16_000:
            assert pieces[-1].end_samples == outcome.final_samples
    assert len({piece.turn for piece in pieces}) == 1
    assert joined(pieces) == [(0, 0.0, 28.0)]


def test_provisional_turns_reach_to_now_and_keep_their_id_when_they_become_final() -> None:
    stream = open_stream()
    scene = [Speech(0, 2.0, 20.0)]
    shown: list[Turn] = []
    for window in windows_of(scene, 10.0):
        turns = stream.step(window).turns
        now = window.start_samples + GRID.window_samples
        shown += turns
        if now >= 4 * 16_000:
            assert [turn.end_samples for turn in turns if not turn.final] == [now]
    assert len({turn.turn for turn in shown}) == 1
    assert {turn.final for turn in shown} == {True, False}


def test_windows_that_a_late_node_skips_cost_no_labels() -> None:
    scene = [Speech(turn % 2, 4.0 * turn, 4.0 * turn + 3.0) for turn in range(15)]
    stream = open_stream()
    turns: list[Turn] = []
    for number, window in enumerate(windows_of(scene, 60.0)):
        if number % 7 in (2, 3, 5):
            continue
        turns += [turn for turn in stream.step(window).turns if turn.final]
    turns += stream.finish(60 * 16_000).turns
    assert joined(turns) == [(n % 2, 4.0 * n, 4.0 * n + 3.0) for n in range(15)]


def test_a_gap_longer_than_a_window_is_silence_and_the_stream_goes_on() -> None:
    scene = [Speech(0, 0.0, 60.0)]
    stream = open_stream()
    turns: list[Turn] = []
    for window in [*windows_of(scene, 10.0), *windows_of(scene, 40.0, start_s=30.0)]:
        turns += [turn for turn in stream.step(window).turns if turn.final]
    turns += stream.finish(40 * 16_000).turns
    assert joined(turns) == [(0, 0.0, 10.0), (0, 25.5, 40.0)]


def test_net_speech_counts_what_is_said_alone_once_however_many_windows_hold_it() -> None:
    stream = open_stream()
    scene = [Speech(0, 1.0, 4.0), Speech(1, 5.0, 8.0), Speech(0, 9.0, 12.0), Speech(1, 10.0, 14.0)]
    for window in windows_of(scene, 20.0):
        stream.step(window)
    found = [(speaker.index, speaker.clean_samples) for speaker in stream.session_speakers()]
    assert found == [(0, 64_000), (1, 80_000)]
    centroids = np.stack([speaker.centroid for speaker in stream.session_speakers()])
    assert np.diag(centroids @ np.stack([voice_of(0), voice_of(1)]).T).min() > 0.95
    plain = stream.session_speakers(centroids=False)
    assert [(speaker.index, speaker.clean_samples) for speaker in plain] == found
    assert not np.stack([speaker.centroid for speaker in plain]).any()


def test_early_net_speech_is_known_within_the_step() -> None:
    stream = open_stream()
    for window in windows_of([Speech(0, 0.5, 9.0)], 3.0):
        stream.step(window)
    assert stream.session_speakers()[0].clean_samples == 40_000


def test_no_more_session_speakers_than_allowed_and_the_rest_join_the_nearest() -> None:
    scene = [Speech(person, 5.0 * person, 5.0 * person + 4.0) for person in range(6)]
    turns = final_turns(scene, 32.0, open_stream(num_speakers_max=3))
    assert {turn.speaker for turn in turns} == {0, 1, 2}
    assert joined(turns)[-1][2] == 29.0


def hoarse_windows() -> Iterator[tuple[int, WindowAnalysis]]:
    """Somebody whose voice is first itself, then hoarse, then in between, with the end of each window."""
    near, far = voice_of(0), voice_of(1)
    far = far - (far @ near) * near
    hoarse = np.asarray(0.6 * near + 0.8 * far / np.linalg.norm(far), np.float32)
    between = ((near + hoarse) / np.linalg.norm(near + hoarse)).astype(np.float32)
    for window in windows_of([Speech(0, 0.0, 6.0), Speech(0, 12.0, 18.0), Speech(0, 24.0, 60.0)], 60.0):
        end_samples = window.start_samples + GRID.window_samples
        voice = (near, hoarse, between)[min(2, end_samples // 192_000)]
        embeddings = np.where(window.embeddings.any(axis=1, keepdims=True), voice, 0).astype(np.float32)
        yield end_samples, WindowAnalysis(window.start_samples, window.activity, embeddings, window.clean_frames)


def test_two_session_speakers_who_prove_to_be_one_are_merged_with_an_announcement() -> None:
    stream = open_stream()
    merges: list[Merge] = []
    speakers: list[set[int]] = []
    for _, window in hoarse_windows():
        merges += stream.step(window).merges
        speakers.append({speaker.index for speaker in stream.session_speakers()})
    assert {0, 1} in speakers
    assert merges[0] == Merge(source=1, target=0)
    assert {merge.target for merge in merges} == {0}
    assert speakers[-1] == {0}
    assert stream.session_speakers()[0].clean_samples > 44 * 16_000


def test_session_speakers_recognised_as_different_voices_are_never_merged() -> None:
    stream = open_stream()
    for _, window in hoarse_windows():
        assert stream.step(window, {0: "ann", 1: "bob"}).merges == []
    assert {speaker.index for speaker in stream.session_speakers()} >= {0, 1}


def test_two_people_taken_for_one_are_parted_and_what_the_first_one_said_is_moved() -> None:
    stream = open_stream()
    first, second = voice_of(0), voice_of(1)
    second = second - (second @ first) * first
    alike = 0.8 * first + 0.6 * second / np.linalg.norm(second)  # the second person, as he sounds at first
    told: dict[int, int] = {}  # second → who is said to speak then
    moved = []
    for window in windows_of([Speech(0, 1.0, 8.0), Speech(0, 12.0, 60.0)], 60.0):
        end_s = (window.start_samples + GRID.window_samples) / 16_000
        later = min(1.0, max(0.0, (end_s - 20.0) / 10.0))
        voice = first if end_s < 12.0 else (1.0 - later) * alike + later * (0.1 * first + second)
        voice = np.asarray(voice / np.linalg.norm(voice), np.float32)
        embeddings = np.where(window.embeddings.any(axis=1, keepdims=True), voice, 0).astype(np.float32)
        outcome = stream.step(replace(window, embeddings=embeddings))
        for merge in outcome.merges:
            told = {at: merge.target if speaker == merge.source else speaker for at, speaker in told.items()}
        for move in outcome.moves:
            span = range(move.start_samples // 16_000, move.end_samples // 16_000)
            told |= {at: move.target for at in span if told.get(at) == move.source}
        for turn in outcome.turns:
            if turn.final:
                told[turn.start_samples // 16_000] = turn.speaker
        moved += outcome.moves
    assert moved
    assert {told[at] for at in range(2, 7)}.isdisjoint({told[at] for at in range(35, 57)})
    assert len({told[at] for at in range(35, 57)}) == 1
    clean = {speaker.index: speaker.clean_samples for speaker in stream.session_speakers()}
    assert clean[told[4]] == pytest.approx(7 * 16_000, abs=3 * 16_000)
    assert clean[told[50]] == pytest.approx(48 * 16_000, abs=4 * 16_000)


def test_a_speaker_of_long_ago_makes_room_for_one_whom_a_second_look_tells_apart() -> None:
    clustering = SessionClustering(OnlineClusteringParams(), EVIDENCE, GRID, num_speakers_max=2)
    rng = np.random.default_rng(1)
    for speaker, person, times, weight in ((0, 0, 2, 60.0), (1, 1, 20, 100.0), (1, 2, 20, 100.0)):
        for _ in range(times):
            noisy = voice_of(person) + 0.05 * rng.standard_normal(GRID.embedding_dim).astype(np.float32)
            clustering.memory.remember(noisy / np.linalg.norm(noisy), weight, speaker, (0, 50))
    clustering.indices, clustering.next_index = [0, 1], 2
    clustering.settled_windows, clustering.last_settled = 1_000, {0: 3, 1: 999}
    merges, before = clustering.recluster([])
    assert merges == [] and clustering.indices == [1, 2]
    assert before.tolist() == [1] * 40 and sorted(set(clustering.memory.speakers.tolist())) == [1, 2]


@pytest.mark.parametrize("num_steps", [4_000, pytest.param(20_000, marks=pytest.mark.deep)])
def test_memory_stays_bounded_over_many_thousands_of_steps(num_steps: int) -> None:
    stream = open_stream(num_speakers_max=6)
    rng = np.random.default_rng(1)
    scene = [Speech(int(rng.integers(4)), 3.0 * turn, 3.0 * turn + 2.5) for turn in range(40)]
    loop = [window_of(scene, end) for end in range(GRID.window_samples, 100 * 16_000, GRID.hop_samples)]
    sizes = []
    for step in range(num_steps):
        window = loop[step % len(loop)]
        start = step * GRID.hop_samples
        stream.step(WindowAnalysis(start, window.activity, window.embeddings, window.clean_frames))
        if step in (2_000, num_steps - 1):
            sizes.append(len(stream.snapshot()))
    assert sizes[1] < 1.2 * sizes[0]
    assert len(stream.session_speakers()) <= 6


def stream_outcomes(stream: OnlineDiarization, windows: Sequence[WindowAnalysis]) -> list[StepOutcome]:
    return [stream.step(window) for window in windows]


@pytest.mark.parametrize("stopped_at", [0, 1, 9, 37])
def test_a_restored_stream_goes_on_exactly_as_the_one_that_was_lost(stopped_at: int) -> None:
    rng = np.random.default_rng(5)
    scene = [Speech(int(rng.integers(4)), 2.0 * turn, 2.0 * turn + float(rng.uniform(1, 3))) for turn in range(30)]
    windows = list(windows_of(scene, 60.0))
    stream = open_stream()
    stream_outcomes(stream, windows[:stopped_at])
    restored = OnlineDiarization.restore(stream.snapshot(), GRID, PARAMS)
    assert restored.snapshot() == stream.snapshot()
    assert stream_outcomes(restored, windows[stopped_at:]) == stream_outcomes(stream, windows[stopped_at:])
    assert restored.finish(60 * 16_000) == stream.finish(60 * 16_000)
    for one, other in zip(stream.session_speakers(), restored.session_speakers(), strict=True):
        assert (one.index, one.clean_samples) == (other.index, other.clean_samples)
        assert np.array_equal(one.centroid, other.centroid)


def test_a_snapshot_of_another_engine_or_a_damaged_one_is_refused() -> None:
    stream = open_stream()
    stream_outcomes(stream, list(windows_of([Speech(0, 0.0, 9.0)], 9.0)))
    data = stream.snapshot()
    other = FrameGrid(80_000, 8_000, 320, 250, 3, 32)
    with pytest.raises(InvalidRequest, match="another engine"):
        OnlineDiarization.restore(data, other, PARAMS)
    for damaged in (b"", data[:40], data[:-5], b"x" + data[1:], data[:20] + b"\0" + data[21:]):
        with pytest.raises(InvalidRequest):
            OnlineDiarization.restore(damaged, GRID, PARAMS)


@st.composite
def analyses(draw: st.DrawFn) -> list[WindowAnalysis]:
    """Windows of nonsense: runs of activity, voices mixed at random, some windows skipped."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    windows, start = [], -72_000
    for jump in draw(st.lists(st.sampled_from([1, 1, 1, 1, 2, 5, 14]), min_size=1, max_size=40)):
        coarse = rng.random((10, 3)) * (rng.random((10, 3)) < rng.random())
        activity = np.repeat(coarse, 25, axis=0).astype(np.float32)
        embeddings = (
            rng.standard_normal((3, GRID.embedding_dim))
            + 2 * np.stack([voice_of(int(p)) for p in rng.integers(0, 5, 3)]) * 8
        )
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        clean_frames = np.where(rng.random(3) < 0.3, 0, rng.integers(0, 250, 3)).astype(np.float32)
        embeddings[clean_frames == 0] = 0
        windows.append(WindowAnalysis(start, activity, embeddings.astype(np.float32), clean_frames))
        start += jump * GRID.hop_samples
    return windows


@settings(max_examples=60, deadline=None)
@given(analyses(), st.sampled_from([8_000, 32_000, 80_000]), st.booleans(), st.integers(0, 9_000))
def test_final_turns_are_told_once_in_order_and_never_revised(
    windows: list[WindowAnalysis], latency_samples: int, exclusive: bool, cut_samples: int
) -> None:
    stream = open_stream(latency_samples, exclusive=exclusive, num_speakers_max=4)
    told: list[Turn] = []
    horizon = 0
    for window in windows:
        outcome = stream.step(window)
        now = window.start_samples + GRID.window_samples
        for turn in outcome.turns:
            assert turn.start_samples < turn.end_samples <= now
            assert turn.start_samples >= horizon
            assert (
                turn.end_samples <= outcome.final_samples if turn.final else turn.start_samples >= outcome.final_samples
            )
        assert outcome.final_samples == max(horizon, now - latency_samples)
        horizon = outcome.final_samples
        told += [turn for turn in outcome.turns if turn.final]
    end = max(1, windows[-1].start_samples + GRID.window_samples - cut_samples)
    last = stream.finish(end)
    assert all(turn.final and horizon <= turn.start_samples < turn.end_samples <= end for turn in last.turns)
    assert last.final_samples >= end
    told += last.turns
    taken = np.zeros((max(turn.speaker for turn in told) + 1 if told else 0, 4_000), np.int64)
    for turn in told:
        taken[turn.speaker, turn.start_samples // 320 : -(-turn.end_samples // 320)] += 1
    assert taken.max(initial=0) <= 1
    assert not exclusive or taken.sum(axis=0).max(initial=0) <= 1
    speakers = {turn.turn: turn.speaker for turn in told}
    assert all(speakers[turn.turn] == turn.speaker for turn in told)
