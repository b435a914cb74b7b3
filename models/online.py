"""Live diarization of one stream: windows in, turns out. Pure decisions, no I/O and no torch.

In: the analysis of each window, in order; windows may be left out when a node is late. Out: after each, the turns that
are new: final ones, handed out once and never changed, and provisional ones, which replace those of the step before.
What always holds: a frame is decided as soon as it is older than the latency; the state is small, bounded, and can be
taken out and put back at any step without changing anything that follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.clustering import ClusteringParameters
from models.local_window import LocalWindow, local_window
from models.online_clustering import Merge, OnlineClusteringParams, SessionClustering
from models.online_history import Move, SpokenHistory
from models.snapshot import pack_state, unpack_state
from models.timeline import Timeline, TimelineParams, Turn
from runtime.errors import InvalidRequest

SNAPSHOT_VERSION = 2
SNAPSHOT_BYTES_MAX = 8 << 20  # unfolded; 192 embeddings of 256 and a few windows are well below 1 MiB

__all__ = ["Merge", "Move", "OnlineDiarization", "OnlineParams", "SessionSpeaker", "StepOutcome", "Turn"]


@dataclass(frozen=True, slots=True)
class OnlineParams:
    """What decides a live result beside the engine: part of a bundle.

    evidence: how a file of the same engine is clustered.
    recent_windows_min: how many windows are decided again at each step, however short the latency.
    history_samples: for how long what was said of one session speaker can still be found to be another's.
    """

    evidence: ClusteringParameters
    clustering: OnlineClusteringParams = field(default_factory=OnlineClusteringParams)
    timeline: TimelineParams = field(default_factory=TimelineParams)
    recent_windows_min: int = 5
    history_samples: int = 9_600_000


@dataclass(frozen=True, slots=True)
class SessionSpeaker:
    """Somebody heard in this stream.

    index: stable for the whole stream. centroid: (D,) unit length. clean_samples: net speech alone, heard so far.
    """

    index: int
    centroid: FloatArray
    clean_samples: int


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one step decided.

    turns: final pieces, then all provisional turns, which replace those of the step before.
    merges: session speakers found to be one person, in the order in which to apply them.
    final_samples: everything before this position is final.
    moves: after the merges, what was said of one session speaker and is another's.
    """

    turns: list[Turn]
    merges: list[Merge]
    final_samples: int
    moves: list[Move] = field(default_factory=list)


class OnlineDiarization:
    """One stream's session speakers and turns."""

    def __init__(
        self,
        grid: FrameGrid,
        params: OnlineParams,
        *,
        latency_samples: int,
        exclusive: bool = False,
        num_speakers_max: int = 20,
    ) -> None:
        """A stream at position 0.

        latency_samples: how old a frame is when it becomes final. exclusive: one speaker at a time in the turns.
        """
        assert latency_samples >= 0 and num_speakers_max >= 1
        self._grid = grid
        self._grid_values = list(astuple(grid))
        self._params = params
        self._latency_samples = latency_samples
        self._exclusive = exclusive
        self._num_speakers_max = num_speakers_max
        self._recent: list[LocalWindow] = []
        self._recent_max = max(params.recent_windows_min, 1 + -(-latency_samples // grid.hop_samples))
        self._windows_since_recluster = 0
        self._clean_frames: dict[int, int] = {}
        self._provisional_clean: dict[int, int] = {}
        self._clustering = SessionClustering(params.clustering, params.evidence, grid, num_speakers_max)
        self._history = SpokenHistory(grid.step_samples, params.history_samples)
        self._timeline = Timeline(
            params.timeline, step_samples=grid.step_samples, latency_samples=latency_samples, exclusive=exclusive
        )

    def __repr__(self) -> str:
        return f"OnlineDiarization({self._clustering!r}, {self._timeline!r}, recent={len(self._recent)})"

    @property
    def steps_on_one_roster(self) -> int:
        """How many steps may follow each other on what is known of the speakers' voices now.

        Speakers are merged every few windows, and whoever carries different voices then is not. A caller who takes
        several windows at once asks for names in between, or how its windows were batched would decide who is merged.
        """
        every = self._params.clustering.recluster_windows
        return (every - 1 - self._windows_since_recluster) or every

    @property
    def is_next_step_short(self) -> bool:
        """Whether the next step looks at the newest windows alone, and not at the whole memory."""
        return self._windows_since_recluster + 1 < self._params.clustering.recluster_windows

    def step(self, analysis: WindowAnalysis, voices: Mapping[int, str] | None = None) -> StepOutcome:
        """Take the next window, whose end is now. Windows come in order and may jump forward.

        voices: the enrolled voice of each session speaker who is recognised by now; different voices are different
        people, however alike they sound on a poor line.
        """
        window = local_window(analysis, self._grid)
        assert not self._recent or window.start_frame > self._recent[-1].start_frame, "windows come in order"
        self._recent.append(window)
        while len(self._recent) > self._recent_max:
            self._clustering.settle(self._recent.pop(0))
        merges, moves = self._recluster(voices)
        self._clustering.assign(self._recent)
        return self._decide(window.start_frame + self._grid.num_frames, merges, moves, flush=False)

    def finish(
        self, end_samples: int, voices: Mapping[int, str] | None = None, *, goes_on: bool = False
    ) -> StepOutcome:
        """The stream ended at `end_samples`: all that is still provisional becomes final.

        voices: as for `step`. Speakers opened in the last seconds are looked at once more, unless the stream goes on
        elsewhere, from a snapshot that would know nothing of a merge.
        """
        end_frame = -(-end_samples // self._grid.step_samples)
        merges: list[Merge] = []
        moves: list[Move] = []
        if not goes_on:
            for window in self._recent:
                self._clustering.settle(window)
            merges, moves = self._look_again(voices)
        outcome = self._decide(end_frame, merges, moves, flush=True)
        turns = [
            Turn(turn.turn, turn.speaker, turn.start_samples, min(turn.end_samples, end_samples), final=True)
            for turn in outcome.turns
            if turn.start_samples < end_samples
        ]
        return StepOutcome(turns, merges, max(end_samples, outcome.final_samples), moves)

    def session_speakers(self, *, centroids: bool = True) -> list[SessionSpeaker]:
        """Everybody heard so far, in order of first appearance.

        centroids: False where nobody's is compared with anything, and zeros will do: to make them takes as long as a
        tenth of a step.
        """
        step_samples, indices = self._grid.step_samples, self._clustering.indices
        if centroids:
            found = self._clustering.centroids(self._recent)
        else:
            found = np.zeros((len(indices), self._grid.embedding_dim), np.float32)
        return [
            SessionSpeaker(
                index,
                centroid,
                (self._clean_frames.get(index, 0) + self._provisional_clean.get(index, 0)) * step_samples,
            )
            for index, centroid in zip(indices, found, strict=True)
        ]

    def snapshot(self) -> bytes:
        """All state, for `restore`. A stream restored from it decides everything that follows as this one does."""
        clustering, memory = self._clustering, self._clustering.memory
        shape = (len(self._recent), self._grid.num_frames, self._grid.num_local_speakers)
        values = {
            "grid": self._grid_values,
            "latency_samples": self._latency_samples,
            "exclusive": self._exclusive,
            "num_speakers_max": self._num_speakers_max,
            "starts": [window.start_frame for window in self._recent],
            "windows_since_recluster": self._windows_since_recluster,
            "clean": [[k, self._clean_frames.get(k, 0), self._provisional_clean.get(k, 0)] for k in clustering.indices],
            "next_index": clustering.next_index,
            "settled_windows": clustering.settled_windows,
            "last_settled": [[k, clustering.last_settled[k]] for k in clustering.indices],
            "timeline": self._timeline.state(),
        }
        arrays = {
            "activity": np.rint(np.array([w.activity for w in self._recent]) * 255).reshape(shape).astype(np.uint8),
            "embeddings": np.array([w.embeddings for w in self._recent], np.float16),
            "clean_frames": np.array([w.clean_frames for w in self._recent], np.float32),
            "speakers": np.array([w.speakers for w in self._recent], np.int64),
            "memory_embeddings": memory.embeddings.astype(np.float16),
            "memory_weights": memory.weights,
            "memory_speakers": memory.speakers,
            "memory_spans": memory.spans.astype(np.int32),
            "history": self._history.pieces.astype(np.int32),
        }
        return pack_state(SNAPSHOT_VERSION, values, arrays)

    @classmethod
    def restore(cls, data: bytes, grid: FrameGrid, params: OnlineParams) -> OnlineDiarization:
        """A stream as it was when `snapshot()` gave `data`. InvalidRequest if that does not fit this engine."""
        values, arrays = unpack_state(data, SNAPSHOT_VERSION, bytes_max=SNAPSHOT_BYTES_MAX)
        try:
            if values["grid"] != list(astuple(grid)):
                raise InvalidRequest("the checkpoint is of another engine; start the stream anew")
            stream = cls(
                grid,
                params,
                latency_samples=int(values["latency_samples"]),
                exclusive=bool(values["exclusive"]),
                num_speakers_max=int(values["num_speakers_max"]),
            )
            stream._load(values, arrays)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InvalidRequest("the checkpoint is damaged; start the stream anew") from error
        return stream

    def _load(self, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        activity = arrays["activity"].astype(np.float32) / np.float32(255)
        embeddings = arrays["embeddings"].astype(np.float32)
        for at, start_frame in enumerate(values["starts"]):
            self._recent.append(
                LocalWindow(
                    int(start_frame),
                    activity[at],
                    embeddings[at],
                    arrays["clean_frames"][at],
                    arrays["speakers"][at].tolist(),
                )
            )
        clustering = self._clustering
        self._windows_since_recluster = int(values["windows_since_recluster"])
        self._clean_frames = {int(k): int(settled) for k, settled, _ in values["clean"]}
        self._provisional_clean = {int(k): int(provisional) for k, _, provisional in values["clean"]}
        clustering.indices = [int(k) for k, _, _ in values["clean"]]
        clustering.next_index = int(values["next_index"])
        clustering.settled_windows = int(values["settled_windows"])
        clustering.last_settled = {int(k): int(windows) for k, windows in values["last_settled"]}
        clustering.memory.load(
            arrays["memory_embeddings"].astype(np.float32),
            arrays["memory_weights"],
            arrays["memory_speakers"],
            arrays["memory_spans"].astype(np.int64),
        )
        self._history.pieces = arrays["history"].astype(np.int64).reshape(-1, 3)
        self._timeline.load(values["timeline"])

    def _recluster(self, voices: Mapping[int, str] | None) -> tuple[list[Merge], list[Move]]:
        self._windows_since_recluster += 1
        if self._windows_since_recluster < self._params.clustering.recluster_windows:
            return [], []
        self._windows_since_recluster = 0
        return self._look_again(voices)

    def _look_again(self, voices: Mapping[int, str] | None) -> tuple[list[Merge], list[Move]]:
        merges, before = self._clustering.recluster(self._recent, voices)
        for merge in merges:
            self._timeline.merge(merge.source, merge.target)
            self._history.rename(merge.source, merge.target)
            self._give(merge.source, merge.target, self._clean_frames.get(merge.source, 0))
        if self._clustering.memory.speakers is before:
            return merges, []
        said = self._history.frames_by_speaker()
        moves = self._history.moves(self._clustering.memory, before)
        for move in moves:
            # Of what was clean, the share of the time that moves; of times out of history nothing is known.
            frames = (move.end_samples - move.start_samples) / self._grid.step_samples
            clean = self._clean_frames.get(move.source, 0) * frames / max(said.get(move.source, 0), frames)
            self._give(move.source, move.target, round(clean))
        return merges, moves

    def _give(self, source: int, target: int, clean_frames: int) -> None:
        """Count clean speech as another's."""
        self._clean_frames[source] = self._clean_frames.get(source, 0) - clean_frames
        self._clean_frames[target] = self._clean_frames.get(target, 0) + clean_frames

    def _decide(self, end_frame: int, merges: list[Merge], moves: list[Move], *, flush: bool) -> StepOutcome:
        """Overlap-add what the recent windows say of the frames that are not final, and let the timeline decide."""
        horizon = self._timeline.horizon_frames
        num_frames = max(0, end_frame - horizon)
        indices = self._clustering.indices
        # Of each frame: what it counts, how much of that is speech, and how much is each session speaker's.
        total = np.zeros((2 + len(indices), num_frames), np.float32)  # (2 + K, L)
        total[0] = 1e-6
        known = tuple(indices)
        for window in self._recent:
            first = max(window.start_frame, horizon)
            last = min(window.start_frame + self._grid.num_frames, end_frame)
            if last <= first:
                continue
            told = window.shared_out(known)[:, first - window.start_frame : last - window.start_frame]
            total[:, first - horizon : last - horizon] += told
        heard = total[1:] / total[0]  # (1 + K, L)
        turns, active, num_final = self._timeline.step(indices, heard[1:], heard[0], flush=flush)
        alone = active & (active.view(np.int8).sum(axis=0, dtype=np.int16) == 1)  # (K, L)
        newly = alone[:, :num_final].sum(axis=1).tolist()
        self._clean_frames = {k: self._clean_frames.get(k, 0) + new for k, new in zip(indices, newly, strict=True)}
        self._provisional_clean = dict(zip(indices, alone[:, num_final:].sum(axis=1).tolist(), strict=True))
        self._history.add(turns)
        return StepOutcome(turns, merges, self._timeline.horizon_frames * self._grid.step_samples, moves)
