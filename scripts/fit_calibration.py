"""Fit what turns cosines into probabilities of names, and activity into confidences, for the builtin bundle.

    python -m scripts.fit_calibration --voices FOLDER [FOLDER …] [--talks OUT.pkl]

Voices are parted into folds. Those of a fold are heard by an engine whose backend has not seen them: they enrol, in all
sorts of conditions, and talk to each other in simulated rooms and over telephones. What the engine then says is laid
beside what is so. What is printed goes into the bundle's [naming] and [confidence]. The members, kept for tests, are
refused (scripts.simulate_mixtures).

With one recording a person, enrolment and talk are of one day: probabilities hold for that much. Talks in which two
people were taken for one are left out of the fit of confidences, since that shows in no frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment, minimize

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.bundle import Bundle, load_bundle
from models.calibration import KnownVoice, Trials, draw_trials, expected_calibration_error, fit_naming, join_trials
from models.clustering import ClusteringParameters
from models.confidence import frame_evidence, speaker_evidence
from models.diarize import FileDiarization, analyze_samples
from models.file_turns import Diarization
from models.naming import NamingParameters
from models.online import OnlineDiarization, OnlineParams
from models.torch_device import load_device
from scripts.fit_backend import fit_backend
from scripts.simulate_mixtures import Voices, load_voices
from scripts.simulated_talks import SplitVoice, Talk, enrolment_clip, make_talk, split_voices
from scripts.voice_conditions import VoicePartials, load_partials

BoolArray = npt.NDArray[np.bool_]
NUM_FOLDS, ROUNDS, SEED = 8, 4, 31
GALLERY_SIZES = (1, 2, 4, 8, 15, 21)
SPEAKERS_A_TALK = (1, 5)
SLOT = -3
LATENCY_SAMPLES = 32_000
SNAPSHOT_WINDOWS = 6
# How often a speaker is taken to be somebody enrolled. Half of the trials are; in use it is more.
ENROLLED_SHARE = 0.56
WHOLE_PURITY, WHOLE_RIGHT = 0.7, 0.8
RIDGE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class HeardTalk:
    """A talk, what it was analysed as, and by what it is clustered."""

    talk: Talk
    windows: list[WindowAnalysis]
    clustering: ClusteringParameters
    online: OnlineParams

    def truth(self, grid: FrameGrid) -> tuple[list[str], BoolArray]:
        """Speakers by name, and in which frames each of them speaks: (F, names)."""
        names = sorted({name for _, _, name in self.talk.spoken})
        spoken = np.zeros((-(-len(self.talk.samples) // grid.step_samples), len(names)), bool)
        for begin, end, name in self.talk.spoken:
            spoken[begin // grid.step_samples : end // grid.step_samples, names.index(name)] = True
        return names, spoken

    def diarized(self, grid: FrameGrid) -> tuple[Diarization, _Listening]:
        """The talk as a file, and what its turns were made of."""
        file = _Listening(grid, self.clustering)
        file.add(self.windows)
        return file.finish(len(self.talk.samples)), file


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """One round of a fold: who enrolled, and what was heard."""

    enrolled: list[KnownVoice]
    talks: list[HeardTalk]


class _Listening(FileDiarization):
    """Keeps the activity that turns are made of."""

    heard: tuple[FloatArray, FloatArray, FloatArray]

    def _assign(
        self, num_frames: int, centroids: FloatArray, before: npt.NDArray[np.float16] | None
    ) -> tuple[npt.NDArray[np.float16], FloatArray, FloatArray]:
        found = super()._assign(num_frames, centroids, before)
        activity, speech, renewed = found
        self.heard = (np.array(activity, np.float32), np.array(speech), np.array(renewed))
        return found


def fold_bundles(bundle: Bundle, partials: Sequence[VoicePartials]) -> Iterator[tuple[list[str], Bundle]]:
    """Each fold's people, and a bundle whose backend is fitted on the others."""
    for fold in range(NUM_FOLDS):
        backend = fit_backend([voice for number, voice in enumerate(partials) if number % NUM_FOLDS != fold])
        clustering = dataclasses.replace(
            bundle.clustering,
            within_variance=backend.within_variance,
            between_variance=backend.between_variance,
        )
        online = dataclasses.replace(bundle.online, evidence=clustering)
        fitted = dataclasses.replace(bundle, backend=backend, clustering=clustering, online=online)
        yield [voice.speaker for voice in partials[fold::NUM_FOLDS]], fitted


def hear_fold(bundle: Bundle, voices: Voices) -> Iterator[Round]:
    """The rounds of one fold: everybody enrols, and everybody is in one talk."""
    device = load_device(bundle)
    for number in range(ROUNDS):
        rng = np.random.default_rng([SEED, number])
        split = split_voices(voices, rng)
        enrolled = []
        for name in split:
            sample = device.analyze_voice(enrolment_clip(split[name], rng))
            if sample.net_speech_samples:
                enrolled.append(KnownVoice(name, sample.embedding, sample.net_speech_samples))
        talks = []
        for talk in _talks(split, rng):
            windows = [window for found in analyze_samples(device, talk.samples, SLOT) for window in found[0]]
            talks.append(HeardTalk(talk, windows, bundle.clustering, bundle.online))
        yield Round(enrolled, talks)


def _talks(split: dict[str, SplitVoice], rng: np.random.Generator) -> Iterator[Talk]:
    order = [str(name) for name in rng.permutation(sorted(split))]
    while order:
        count = int(rng.integers(*SPEAKERS_A_TALK))
        names, order = order[:count], order[count:]
        yield make_talk(split, names, rng)


def sessions(heard: HeardTalk, grid: FrameGrid) -> Iterator[KnownVoice]:
    """Session speakers under the name of whom they mostly are: of the whole talk, and of its stream now and then."""
    names, truth = heard.truth(grid)
    found, _ = heard.diarized(grid)
    for index, speaker in enumerate(found.speakers):
        spoken = np.zeros(len(truth), bool)
        for turn in found.turns:
            if turn.speaker == index:
                spoken[turn.start_samples // grid.step_samples : turn.end_samples // grid.step_samples] = True
        yield from _known(names, truth, spoken, speaker.embedding, speaker.net_speech_samples)
    online = OnlineDiarization(grid, heard.online, latency_samples=LATENCY_SAMPLES)
    final: dict[int, BoolArray] = {}
    for number, window in enumerate(heard.windows):
        for piece in online.step(window, {}).turns:
            if piece.final:
                spoken = final.setdefault(piece.speaker, np.zeros(len(truth), bool))
                spoken[piece.start_samples // grid.step_samples : piece.end_samples // grid.step_samples] = True
        if number % SNAPSHOT_WINDOWS == SNAPSHOT_WINDOWS - 1:
            for present in online.session_speakers():
                if present.index in final:
                    yield from _known(names, truth, final[present.index], present.centroid, present.clean_samples)


def _known(
    names: list[str], truth: BoolArray, spoken: BoolArray, embedding: FloatArray, net_speech_samples: int
) -> Iterator[KnownVoice]:
    overlap = (truth & spoken[:, None]).sum(axis=0)
    if overlap.max(initial=0) and embedding.any():
        yield KnownVoice(names[int(overlap.argmax())], embedding, net_speech_samples)


def naming_trials(rounds: Sequence[Round], naming: NamingParameters, grid: FrameGrid) -> Trials:
    """Trials of all rounds, of speakers with as much speech as a name needs."""
    rng = np.random.default_rng(SEED)
    parts = []
    for one in rounds:
        heard = [voice for talk in one.talks for voice in sessions(talk, grid)]
        long = [voice for voice in heard if voice.net_speech_samples >= naming.net_speech_samples_min]
        parts.append(draw_trials(one.enrolled, long, naming, GALLERY_SIZES, rng))
    return join_trials(parts)


def confidence_evidence(
    heard: HeardTalk, grid: FrameGrid
) -> tuple[list[tuple[FloatArray, BoolArray]], list[tuple[FloatArray, BoolArray]]]:
    """Evidence and truth of a talk's frames, by how many speak in them (0, 1, 2), and of its speakers' frames."""
    _, truth = heard.truth(grid)
    found, file = heard.diarized(grid)
    if not found.speakers:
        return [], []
    activity, speech, centroids = file.heard
    columns = [int(np.argmax([np.array_equal(one, s.embedding) for one in centroids])) for s in found.speakers]
    spoken = np.zeros((len(truth), len(columns)), bool)
    for turn in found.turns:
        spoken[turn.start_samples // grid.step_samples : turn.end_samples // grid.step_samples, turn.speaker] = True
    rows, matched = linear_sum_assignment(-(spoken.T.astype(float) @ truth.astype(float)))
    mapped = np.zeros_like(spoken)
    mapped[:, rows] = truth[:, matched]
    unheard = np.delete(truth, matched, axis=1).any(axis=1)
    right = (mapped == spoken).all(axis=1) & ~unheard
    purity = (spoken & mapped).sum(axis=0) / np.maximum(spoken.sum(axis=0), 1)
    if (purity[spoken.sum(axis=0) > 50] <= WHOLE_PURITY).any() or right.mean() <= WHOLE_RIGHT:
        return [], []
    evidence, kind = frame_evidence(activity, speech, spoken), np.minimum(spoken.sum(axis=1), 2)
    frames = [(evidence[kind == k], right[kind == k]) for k in range(3)]
    speakers = [
        (speaker_evidence(activity, speech, spoken, column, s), mapped[spoken[:, s], s])
        for s, column in enumerate(columns)
    ]
    return frames, speakers


def fit_logistic(evidence: FloatArray, truth: BoolArray) -> npt.NDArray[np.float64]:
    """Weights of a logistic regression with a light ridge: (T, N), (T,) → (N,)."""
    x, y = evidence.astype(np.float64), truth.astype(np.float64)

    def loss(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        odds = x @ weights
        held = np.concatenate([[0.0], weights[1:]])
        gradient = x.T @ ((1.0 / (1.0 + np.exp(-odds)) - y) / len(y)) + 2 * RIDGE * held
        return float(np.mean(np.logaddexp(0, odds) - y * odds) + RIDGE * (held**2).sum()), gradient

    found: npt.NDArray[np.float64] = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", type=Path, nargs="+", required=True, help="folders with a sub-folder a speaker")
    parser.add_argument("--talks", type=Path, help="keep what was heard here, and read it from here when it is there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    bundle = load_bundle("builtin")
    assert isinstance(bundle, Bundle)
    if arguments.talks and arguments.talks.exists():
        rounds: list[Round] = pickle.loads(arguments.talks.read_bytes())
    else:
        voices = load_voices(arguments.voices)
        partials = load_partials(arguments.voices, load_device(bundle), seed=7)
        rounds = []
        for people, fitted in fold_bundles(bundle, partials):
            rounds += hear_fold(fitted, Voices({name: voices.chunks[name] for name in people}))
            print(f"{len(rounds)} rounds of {NUM_FOLDS * ROUNDS} heard", flush=True)
        if arguments.talks:
            arguments.talks.write_bytes(pickle.dumps(rounds))
    _print_naming(naming_trials(rounds, bundle.naming, bundle.grid), bundle.naming)
    _print_confidence([talk for one in rounds for talk in one.talks], bundle.grid)


def _print_naming(trials: Trials, naming: NamingParameters) -> None:
    fitted = fit_naming(trials, naming)
    shift = math.log(ENROLLED_SHARE / (1 - ENROLLED_SHARE))
    fitted = dataclasses.replace(fitted, bias=round(fitted.bias + shift, 4))
    error = expected_calibration_error(trials.probabilities(fitted), trials.match)
    print(f"\n# {len(trials)} trials, calibration error {error:.4f}\n[naming]")
    for name in ("bias", "cosine_weight", "margin_weight", "speech_weight", "voice_speech_weight", "gallery_weight"):
        print(f"{name} = {getattr(fitted, name):.2f}")


def _print_confidence(talks: Sequence[HeardTalk], grid: FrameGrid) -> None:
    found = [confidence_evidence(talk, grid) for talk in talks]
    print(f"\n# {sum(bool(frames) for frames, _ in found)} of {len(talks)} talks\n[confidence]")
    kinds = [[frames[kind] for frames, _ in found if frames] for kind in range(3)]
    for name, parts in (
        *zip(("nobody", "one", "two"), kinds, strict=True),
        ("speaker", [p for _, s in found for p in s]),
    ):
        weights = fit_logistic(np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))
        print(f"{name} = [{', '.join(f'{weight:.3f}' for weight in weights)}]")


if __name__ == "__main__":
    main()
