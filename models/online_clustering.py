"""Session speakers of a stream: who the local speakers of each window are, as far as is known by now.

In: windows in order, each with up to S local speakers that are known to be different people. Out: for each local
speaker the index of a session speaker, or NOBODY. What always holds: two local speakers of one window never share a
session speaker; an index is given once and never used again for somebody else; memory is bounded however long the
stream. Early doubt opens one session speaker too many rather than one too few, since a merge can be announced later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from models.analysis import FloatArray, FrameGrid
from models.clustering import ClusteringParameters, SpeakerBounds, cluster_embeddings
from models.local_window import NOBODY, LocalWindow
from models.recent_voices import HeardVoices, RecentVoices
from models.speaker_memory import IntArray, SpeakerMemory
from models.voice_evidence import Values, VoiceEvidence, worthwhile_changes
from runtime.units import seconds_from_samples

ACTIVE = 0.5
"""Activity from which a frame counts as somebody's speech."""
LEFT_TO_OTHERS = 1e3
"""Dearer than any assignment."""


@dataclass(frozen=True, slots=True)
class OnlineClusteringParams:
    """Cosines are between unit embeddings, odds are VoiceEvidence's; frames are those of the window's grid.

    join_odds: log odds, at even odds beforehand, from which a local speaker is a session speaker and not somebody new.
    nobody_odds: log odds below which a local speaker of whom too little was heard to open one is nobody.
    odds_weight, odds_max: what these odds, cut at `odds_max`, count beside agreement in time with neighbouring windows.
    full_weight_frames: clean speech from which what a window says counts in full for its neighbours.
    same_cosine: a local speaker this close is the same person even if another local speaker is taken for that person.
    new_clean_frames: clean speech in one window from which a new session speaker may be opened.
    agreement_weight: what that agreement counts.
    agreement_min: the share of a local speaker's speech that neighbouring windows have to give to a session speaker
        where no embedding tells who he is.
    merge_cosine: two session speakers whose centroids are further apart are never merged.
    split_clean_frames: remembered clean speech (windows overlap: each second counts several times) that must stand
        apart before a session speaker is split in two.
    memory_max: embeddings kept a stream; every `memory_hop_windows`-th settled window is remembered.
    recluster_windows: windows between two looks at the whole memory.
    change_odds: log odds from which such a look changes who said what: of two ways to part the memory that explain it
        about as well, that stays which was told.
    retire_windows: when all places are taken, a session speaker of whom little was heard, and nothing for so many
        windows, gives up his place.
    """

    join_odds: float = -2.0
    nobody_odds: float = -5.0
    odds_weight: float = 0.1
    odds_max: float = 30.0
    full_weight_frames: float = 150.0
    same_cosine: float = 0.75
    new_clean_frames: float = 80.0
    agreement_weight: float = 0.2
    agreement_min: float = 0.02
    merge_cosine: float = 0.4
    split_clean_frames: float = 400.0
    memory_max: int = 128
    memory_hop_windows: int = 2
    recluster_windows: int = 8
    change_odds: float = 4.0
    retire_windows: int = 600


@dataclass(frozen=True, slots=True)
class Merge:
    """Two session speakers were found to be one person, who keeps the older index."""

    source: int
    target: int


class SessionClustering:
    """The session speakers of one stream. `indices` are in order of first appearance, so they ascend."""

    def __init__(
        self,
        params: OnlineClusteringParams,
        evidence: ClusteringParameters,
        grid: FrameGrid,
        num_speakers_max: int,
    ) -> None:
        """evidence: how a file of the same engine is clustered; the memory is looked at in the same way."""
        self._params = params
        self._evidence = evidence
        self._num_speakers_max = num_speakers_max
        # Speech is heard by every window that covers it, and by those of them that are remembered: it counts once.
        covering = grid.window_samples / grid.hop_samples / params.memory_hop_windows
        self._frame_s = seconds_from_samples(grid.step_samples)
        self._seconds_a_frame = self._frame_s / covering
        self.memory = SpeakerMemory(grid.embedding_dim, params.memory_max)
        self.indices: list[int] = []
        self.next_index = 0
        self.settled_windows = 0
        self._kept: tuple[tuple[int, tuple[int, ...]], FloatArray, FloatArray] | None = None  # by the memory's changes
        self._voices: tuple[list[int], RecentVoices] | None = None  # by the windows' first frames
        self.last_settled: dict[int, int] = {}  # session speaker -> the last settled window that he was heard in

    def __repr__(self) -> str:
        return f"SessionClustering(speakers={self.indices}, {self.memory!r})"

    def assign(self, windows: list[LocalWindow]) -> None:
        """Decide whom the local speakers of the recent windows are, the newest window being the last.

        All of them are decided again, since what the newest one tells may change what the earlier ones meant.
        """
        odds = self._odds(windows)  # (W, S, K)
        if self._open_new_speakers(windows, odds[-1]):
            odds = self._odds(windows)
        if not self.indices:
            return
        odds_max = self._params.odds_max
        costs = (-self._params.odds_weight * np.minimum(np.maximum(odds, -odds_max), odds_max)).tolist()  # (W, S, K)
        nobody = self._left_out(windows)
        found: list[list[tuple[int, int]]] = []
        for window, mine, left_out in zip(windows, costs, nobody, strict=True):
            if (clear := self._whatever_others_say(window, mine, left_out)) is None:
                self._assign_together(windows, costs, nobody)
                return
            found.append(clear)
        for window, clear in zip(windows, found, strict=True):
            self._take(window, clear)

    def _assign_together(
        self, windows: list[LocalWindow], all_costs: list[list[list[float]]], all_nobody: list[list[float]]
    ) -> None:
        """Assign windows one by one, each as the others say by now whose speech is whose. Takes the costs apart."""
        num_locals = len(windows[0].speakers)
        # A window counts as much as there was clean speech to tell its speakers by, so that guesses do not support each
        # other.
        trusted = [
            [min(1.0, frames / self._params.full_weight_frames) for frames in window.clean] for window in windows
        ]
        # What one vote of a local speaker (W, S) takes off the costs of another's (W, S) for the same session speaker.
        spoken = np.maximum(np.array([window.spoken for window in windows], np.float32), np.float32(0.5))  # (W, S)
        pull = _overlaps(windows) * (self._params.agreement_weight / spoken)[:, :, None, None]
        pulls = pull.reshape(len(windows), num_locals, -1).tolist()  # (W, S, W * S)
        # Of each window, which of the W * S votes for which session speaker's place.
        places = {index: place for place, index in enumerate(self.indices)}
        votes = [
            [
                (at * num_locals + local, places[index], trusted[at][local])
                for local, index in enumerate(window.speakers)
                if index != NOBODY
            ]
            for at, window in enumerate(windows)
        ]
        for at, (window, costs, nobody) in enumerate(zip(windows, all_costs, all_nobody, strict=True)):
            votes[at] = []
            others = [vote for cast in votes for vote in cast]
            for local in window.present:
                mine, support = costs[local], pulls[at][local]
                for voter, place, trust in others:
                    mine[place] -= support[voter] * trust
            found = _one_to_one(costs, nobody, window.present)
            self._take(window, found)
            votes[at] = [(at * num_locals + local, place, trusted[at][local]) for local, place in found]

    def _whatever_others_say(
        self, window: LocalWindow, costs: list[list[float]], nobody: list[float]
    ) -> list[tuple[int, int]] | None:
        """The assignment of a window's speakers where no agreement with other windows could change it, else None.

        Each window has one vote at most for a session speaker, and so all of them together take `agreement_weight` off
        a cost at most.
        """
        most = self._params.agreement_weight * (1 + 1e-5)  # which a sum of 32 bits may be off by
        found: list[tuple[int, int]] = []
        for local in window.present:
            mine = costs[local]
            least = min(mine)
            if least - most > nobody[local]:
                continue
            place = mine.index(least)
            others = mine[:place] + mine[place + 1 :]
            if not (least <= nobody[local] and (not others or least < min(others) - most)):
                return None
            found.append((local, place))
        return found if len({place for _, place in found}) == len(found) else None

    def _take(self, window: LocalWindow, found: Sequence[tuple[int, int]]) -> None:
        window.speakers = [NOBODY] * len(window.speakers)
        for local, place in found:
            window.speakers[local] = self.indices[place]

    def centroids(self, windows: list[LocalWindow]) -> FloatArray:
        """Unit centroids (K, D) of `indices`, from the memory and the recent windows; zeros where nothing is known."""
        sums = self._remembered()[1]  # (K, D)
        if windows:
            sums = sums + self._said_now(windows)[1]
        norms = np.sqrt(np.einsum("kd,kd->k", sums, sums))[:, None]
        return np.asarray(sums / np.maximum(norms, np.float32(1e-6)), np.float32)

    def settle(self, window: LocalWindow) -> None:
        """A window is decided for good: remember what it said."""
        self.settled_windows += 1
        for local, speaker in enumerate(window.speakers):
            if speaker == NOBODY or window.clean[local] <= 0:
                continue
            self.last_settled[speaker] = self.settled_windows
            if self.settled_windows % self._params.memory_hop_windows == 0 and local in window.told:
                spoken = (window.activity[:, local] > ACTIVE).nonzero()[0]
                first, last = (spoken[0], spoken[-1]) if len(spoken) else (0, len(window.activity) - 1)
                span = (window.start_frame + int(first), window.start_frame + int(last) + 1)
                self.memory.remember(window.embeddings[local], window.clean[local], speaker, span)

    def recluster(
        self, windows: list[LocalWindow], voices: Mapping[int, str] | None = None
    ) -> tuple[list[Merge], IntArray]:
        """Look at the whole memory at once: repair its labels, and find session speakers that are one person.

        Clusters of the memory and session speakers are matched one to one by the clean speech they share. A session
        speaker left without a cluster is merged into the one whose cluster holds most of his speech; a cluster left
        without a speaker becomes a new one if it stands on enough speech. Session speakers recognised as different
        `voices` are not merged.

        Returns the merges, and whose each embedding of the memory was after them and before its label was repaired.
        """
        memory = self.memory
        if len(memory) < 3:
            return [], memory.speakers
        seconds = np.asarray(memory.weights * np.float32(self._seconds_a_frame), np.float32)
        clusters = cluster_embeddings(memory.embeddings, seconds, self._evidence, SpeakerBounds())  # (M,)
        taken = np.searchsorted(self.indices, memory.speakers)  # (M,)
        shared = self._shared(taken, clusters)
        if _are_whole_speakers(shared):
            return [], memory.speakers
        heard = VoiceEvidence.of(memory.embeddings, seconds, self._evidence)
        clusters = worthwhile_changes(taken, clusters, heard, self._evidence, self._params.change_odds)
        shared = self._shared(taken, clusters)
        owner = np.full(shared.shape[1], NOBODY)  # (C,)
        for row, column in zip(*linear_sum_assignment(-shared), strict=True):
            if shared[row, column] > 0:
                owner[column] = self.indices[row]
        merges, apart = self._merges(shared, owner, self.centroids(windows), voices or {})
        for merge in merges:
            self._apply(merge, windows)
        before = memory.speakers
        for cluster in (owner == NOBODY).nonzero()[0]:
            if shared[:, cluster].sum() >= self._params.split_clean_frames and self._has_place(windows):
                owner[cluster] = self._open_speaker()
        # Who gave up his place for one of them is forgotten by now, and nothing becomes his.
        is_known = np.zeros(self.next_index + 1, np.bool_)  # by index, and False for NOBODY, which is the last
        is_known[self.indices] = True
        owner[~is_known[owner]] = NOBODY
        is_remembered = is_known[before]
        before, known = before[is_remembered], owner[clusters[is_remembered]]
        mended = known != NOBODY
        if apart:
            mended &= ~np.isin(before, apart)
        memory.relabel(np.where(mended, known, before))
        return merges, before

    def _shared(self, taken: IntArray, clusters: IntArray) -> Values:
        """The clean speech (K, C) that session speakers, by their places (M,), and clusters (M,) have in common."""
        shape = (len(self.indices), int(clusters.max()) + 1)
        cells = taken * shape[1] + clusters
        return np.bincount(cells, self.memory.weights, shape[0] * shape[1]).astype(np.float64).reshape(shape)

    def _open_new_speakers(self, windows: list[LocalWindow], odds: Values) -> bool:
        """Open a session speaker for each local speaker of the newest window who can be nobody known, if there is one.

        That is who has enough clean speech and, in the constrained assignment, gets nobody or somebody unlikely: two
        voices that are alike are still two when they are heard side by side, unless one is as close as oneself.
        """
        window = windows[-1]
        heard = window.told  # S' of the S
        if not any(window.clean[local] >= self._params.new_clean_frames for local in heard):
            return False
        odds = odds[heard] - self._params.join_odds  # (S', K)
        if self.indices and _is_each_somebody_else(odds.tolist()):
            return False
        is_known = np.zeros(len(heard), np.bool_)
        if len(heard) > len(self.indices):  # else everybody gets somebody
            alike = (window.embeddings[heard] @ self.centroids(windows).T).max(axis=1, initial=-1.0)  # (S',)
            is_known = alike >= self._params.same_cosine
        rows, columns = linear_sum_assignment(-odds)
        is_known[rows] = odds[rows, columns] >= 0.0
        is_new = ~is_known & (window.clean_frames[heard] >= self._params.new_clean_frames)
        has_opened = False
        for local, opens in zip(heard, is_new.tolist(), strict=True):
            if opens and self._has_place(windows):
                window.speakers[local] = self._open_speaker()
                has_opened = True
        return has_opened

    def _left_out(self, windows: Sequence[LocalWindow]) -> list[list[float]]:
        """What it costs to take local speakers for nobody, as `assign` counts costs: (W, S).

        Whoever is most likely somebody new is nobody until enough is heard of him, and so is a fragment, most often of
        overlap, that has neither an embedding nor a neighbour: it would be shown under somebody's name at random.
        """
        params = self._params
        is_room = len(self.indices) < self._num_speakers_max  # else whoever is new has to be somebody
        told = -params.odds_weight * params.nobody_odds if is_room else LEFT_TO_OTHERS
        fragment = -params.agreement_weight * params.agreement_min
        return [[told if is_told else fragment for is_told in window.is_told] for window in windows]

    def _odds(self, windows: Sequence[LocalWindow]) -> Values:
        """Log odds (W, S, K) of local speakers being each session speaker, as the memory and the windows have them.

        0 for those who have no embedding.
        """
        num_locals = len(windows[0].speakers)
        odds = np.zeros((len(windows) * num_locals, len(self.indices)))
        told = [at * num_locals + local for at, window in enumerate(windows) for local in window.told]
        if told and self.indices:
            now_frames, now = self._said_now(windows)
            frames, sums = self._remembered()
            observations = self._evidence.evidence_per_second * self._seconds_a_frame
            known = VoiceEvidence(
                observations * (frames + now_frames).astype(np.float64), observations * (sums + now).astype(np.float64)
            )
            odds[told] = self._recent(windows).odds(known)
        return odds.reshape(len(windows), num_locals, -1)

    def _said_now(self, windows: Sequence[LocalWindow]) -> tuple[FloatArray, FloatArray]:
        """What the windows know of the session speakers: as `_gathered`."""
        recent = self._recent(windows)
        speakers = np.array([window.speakers[local] for window in windows for local in window.told], np.int64)
        # They count beside the memory, which takes some of them alone.
        thinned = recent.clean_frames / np.float32(self._params.memory_hop_windows)
        return self._gathered(recent.embeddings, thinned, speakers)

    def _recent(self, windows: Sequence[LocalWindow]) -> RecentVoices:
        """What the windows hold, in one piece; made once for each set of them."""
        starts = [window.start_frame for window in windows]
        if self._voices is None or self._voices[0] != starts:
            for window in windows:
                if window.voices is None:
                    told = np.array(window.told, np.int64)
                    window.voices = HeardVoices.of(
                        window.embeddings[told], window.clean_frames[told], self._evidence, frame_s=self._frame_s
                    )
            heard = [window.voices for window in windows if window.voices is not None]
            self._voices = (starts, RecentVoices(heard, self._evidence))
        return self._voices[1]

    def _remembered(self) -> tuple[FloatArray, FloatArray]:
        """What the memory knows of the session speakers: as `_gathered`."""
        memory = self.memory
        key = (memory.changes, tuple(self.indices))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, *self._gathered(memory.embeddings, memory.weights, memory.speakers))
        return self._kept[1:]

    def _gathered(
        self, embeddings: FloatArray, weights: FloatArray, speakers: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """Of M embeddings, the clean frames (K,) of each session speaker, and the sums (K, D) weighted with them."""
        mine = np.where(np.array(self.indices, np.int64)[:, None] == speakers, weights, np.float32(0.0))  # (K, M)
        return mine.sum(axis=1), mine @ embeddings

    def _open_speaker(self) -> int:
        index = self.next_index
        self.next_index += 1
        self.indices.append(index)
        self.last_settled[index] = self.settled_windows
        return index

    def _has_place(self, windows: list[LocalWindow]) -> bool:
        """Whether one more session speaker may be opened, once the least important of long ago has made room."""
        if len(self.indices) < self._num_speakers_max:
            return True
        present = {speaker for window in windows for speaker in window.speakers}
        oldest = self.settled_windows - self._params.retire_windows
        idle = [k for k in self.indices if k not in present and self.last_settled[k] <= oldest]
        gone = min(idle, key=self.memory.weight_of, default=None)
        if gone is None or self.memory.weight_of(gone) >= self._params.split_clean_frames:
            return False
        self.indices.remove(gone)
        self.memory.forget_speaker(gone)
        del self.last_settled[gone]
        return True

    def _merges(
        self, shared: Values, owner: IntArray, centroids: FloatArray, voices: Mapping[int, str]
    ) -> tuple[list[Merge], list[int]]:
        """Session speakers without a cluster, most of whose speech lies in another's: from (K, C); mends owner (C,).

        Returns the merges, and those who are left apart since their centroids (K, D) or the voices that they are
        recognised as say otherwise: little evidence favours few speakers, and a merge cannot be taken back.
        """
        merges: list[Merge] = []
        apart: list[int] = []
        for row, index in enumerate(self.indices):
            held = float(shared[row].sum())
            gone = {merge.source for merge in merges}
            if held == 0 or index in owner or index in gone:
                continue
            home = int(shared[row].argmax())
            other = int(owner[home])
            if other == NOBODY or shared[row, home] <= 0.6 * held:
                continue
            two_voices = index in voices and other in voices and voices[index] != voices[other]
            alike = float(centroids[row] @ centroids[self.indices.index(other)])
            if two_voices or alike < self._params.merge_cosine:
                apart.append(index)
                continue
            merge = Merge(source=max(index, other), target=min(index, other))
            owner[owner == merge.source] = merge.target
            merges.append(merge)
        return merges, apart

    def _apply(self, merge: Merge, windows: list[LocalWindow]) -> None:
        self.indices.remove(merge.source)
        self.memory.rename(merge.source, merge.target)
        self.last_settled[merge.target] = max(self.last_settled[merge.target], self.last_settled.pop(merge.source))
        for window in windows:
            becomes = NOBODY if merge.target in window.speakers else merge.target
            window.speakers = [becomes if index == merge.source else index for index in window.speakers]


def _are_whole_speakers(shared: Values) -> bool:
    """Whether each cluster is all that is remembered of one session speaker: (K, C) clean speech in common."""
    return bool(np.count_nonzero(shared) == shared.shape[1] == np.count_nonzero(shared.any(axis=1)))


def _is_each_somebody_else(odds: Sequence[Sequence[float]]) -> bool:
    """Whether the likeliest of each row (R, K) is likely, and nobody else's."""
    places = {row.index(best) for row in odds if (best := max(row)) >= 0.0}
    return len(places) == len(odds)


def _one_to_one(
    costs: Sequence[Sequence[float]], nobody: Sequence[float], rows: Sequence[int]
) -> list[tuple[int, int]]:
    """Rows and columns of the cheapest assignment of (R, C), without the rows that are cheaper left out: (R,).

    rows: the ones that are asked about. Lists, since few numbers are compared faster one by one.
    """
    wanted: list[tuple[int, int]] = []
    for row in rows:
        cheapest = min(costs[row])
        if cheapest <= nobody[row]:
            wanted.append((row, costs[row].index(cheapest)))
    if len({column for _, column in wanted}) == len(wanted):
        return wanted  # no two want the same, so that what is best for each is best for all
    left_out = np.full((len(rows), len(rows)), LEFT_TO_OTHERS)
    np.fill_diagonal(left_out, [nobody[row] for row in rows])
    table = np.concatenate([np.array([costs[row] for row in rows]), left_out], axis=1)
    found = zip(*(side.tolist() for side in linear_sum_assignment(table)), strict=True)
    return [(rows[row], column) for row, column in found if column < len(costs[0])]


def _overlaps(windows: list[LocalWindow]) -> FloatArray:
    """Frames that local speakers of two windows share, (W, S, W, S), each frame as the mean of the other windows."""
    first = windows[0].start_frame
    num_frames, num_locals = windows[0].activity.shape
    starts = tuple([window.start_frame - first for window in windows])
    # (L, W, S), L frames from the first window on.
    placed: FloatArray = np.zeros((starts[-1] + num_frames, len(windows), num_locals), np.float32)
    for at, (start, window) in enumerate(zip(starts, windows, strict=True)):
        placed[start : start + num_frames, at] = window.activity
    flat = placed.reshape(len(placed), -1)
    shared = np.asarray(flat.T @ (flat / _others(starts, num_frames)), np.float32)
    return shared.reshape(len(windows), num_locals, len(windows), num_locals)


@lru_cache(maxsize=64)
def _others(starts: tuple[int, ...], num_frames: int) -> FloatArray:
    """How many other windows hear each frame, one at least: (L, 1). starts: where windows begin, in frames."""
    covered = np.zeros(starts[-1] + num_frames, np.float32)
    for start in starts:
        covered[start : start + num_frames] += 1
    return np.maximum(covered - 1, 1)[:, None]
