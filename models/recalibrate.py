"""A calibration of one's own: from labelled clips of people to weights that fit their microphones and rooms.

Pure NumPy. In come clips heard by an engine, each with the person whom it is of; out comes a calibration with its error
rates on people whom it was not fitted on. What always holds: too few people or clips, and voices that lie no nearer to
themselves than to each other, are refused with what to mend; no clip is ever judged against a voice made of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.analysis import FloatArray
from models.calibration import (
    ErrorRates,
    KnownVoice,
    Trials,
    draw_trials,
    equal_error_rate,
    error_rates,
    expected_calibration_error,
    fit_naming,
    join_trials,
)
from models.naming import NamingParameters
from runtime.errors import InvalidRequest

PEOPLE_MIN = 4
"""People with two clips or more: with fewer, what one of them sounds like would decide."""
CLIPS_MIN = 12
OVERLAP_MAX = 0.15
"""Equal error rate of the cosines above which no threshold is worth having."""
WORST_NAMED = 5
FOLDS = 5
TRUST = 12.0
"""Independent trials that the shipped weights count as: they decide what a handful of clips cannot tell."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
GALLERY_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True, eq=False)
class HeardClip:
    """A clip of one person, heard. name: what to call it in a message. embedding: (D,) unit vector."""

    person: str
    name: str
    embedding: FloatArray
    net_speech_samples: int


@dataclass(frozen=True, slots=True)
class OwnCalibration:
    """naming: the new parameters. The rest is measured on people whom each fit had not heard.

    ece, ece_before: expected calibration error with the new parameters, and with those that were there before.
    rates: at each of THRESHOLDS. equal_error: of the bare cosines, with its threshold.
    """

    naming: NamingParameters
    num_people: int
    num_clips: int
    num_trials: int
    ece: float
    ece_before: float
    rates: tuple[ErrorRates, ...]
    equal_error: float
    equal_error_cosine: float


def recalibrate(clips: Sequence[HeardClip], naming: NamingParameters, *, seed: int = 7) -> OwnCalibration:
    """Fit to these clips. InvalidRequest where they cannot tell enough, saying what is missing."""
    people = _people_with_two_clips(clips)
    _refuse_overlap(clips)
    equal_error, cosine = equal_error_rate(*_cosines(clips))
    rng = np.random.default_rng(seed)
    order = [str(person) for person in rng.permutation(people)]
    parts: list[Trials] = []
    said: list[npt.NDArray[np.float64]] = []
    for fold in range(min(FOLDS, len(order))):
        held_out = set(order[fold::FOLDS])
        rest = [clip for clip in clips if clip.person not in held_out]
        learned = _fit(rest, naming, rng)
        parts.append(_trials(clips, held_out, learned, rng))
        said.append(parts[-1].probabilities(learned))
    trials, probabilities = join_trials(parts), np.concatenate(said)
    return OwnCalibration(
        naming=_fit(clips, naming, rng),
        num_people=len({clip.person for clip in clips}),
        num_clips=len(clips),
        num_trials=len(trials),
        ece=expected_calibration_error(probabilities, trials.match),
        ece_before=expected_calibration_error(trials.probabilities(naming), trials.match),
        rates=tuple(error_rates(trials, probabilities, naming.margin_min, THRESHOLDS)),
        equal_error=equal_error,
        equal_error_cosine=cosine,
    )


def _people_with_two_clips(clips: Sequence[HeardClip]) -> list[str]:
    counts: dict[str, int] = {}
    for clip in clips:
        counts[clip.person] = counts.get(clip.person, 0) + 1
    people = sorted(person for person, count in counts.items() if count >= 2)
    if len(people) < PEOPLE_MIN:
        raise InvalidRequest(
            f"{len(people)} people with two usable clips or more; {PEOPLE_MIN} are needed, 10 are better: "
            "add a folder a person, with recordings of other days and places"
        )
    if len(clips) < CLIPS_MIN:
        raise InvalidRequest(f"{len(clips)} usable clips; {CLIPS_MIN} are needed, 5 a person are better")
    return people


def _refuse_overlap(clips: Sequence[HeardClip]) -> None:
    same, different = _cosines(clips)
    error, _ = equal_error_rate(same, different)
    if error <= OVERLAP_MAX:
        return
    doubt = sorted(clips, key=lambda clip: _own_cosine(clip, clips) - _nearest_other(clip, clips))
    worst = ", ".join(clip.name for clip in doubt[:WORST_NAMED])
    raise InvalidRequest(
        f"own voices and others' overlap: at the best threshold {100 * error:.0f} % are taken wrongly, and no "
        f"calibration mends that. Check that each folder holds one person, and these clips first: {worst}"
    )


def _cosines(clips: Sequence[HeardClip]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each clip against its own voice made of the other clips, and against everybody else's."""
    same, different = [], []
    voices = {person: _voice(person, clips) for person in sorted({clip.person for clip in clips})}
    for clip in clips:
        own = _voice(clip.person, clips, without=clip)
        if own is not None:
            same.append(float(own.embedding @ clip.embedding))
        for person, voice in voices.items():
            if person != clip.person and voice is not None:
                different.append(float(voice.embedding @ clip.embedding))
    return np.array(same), np.array(different)


def _own_cosine(clip: HeardClip, clips: Sequence[HeardClip]) -> float:
    own = _voice(clip.person, clips, without=clip)
    return 1.0 if own is None else float(own.embedding @ clip.embedding)


def _nearest_other(clip: HeardClip, clips: Sequence[HeardClip]) -> float:
    others = [_voice(person, clips) for person in {other.person for other in clips} - {clip.person}]
    return max(float(voice.embedding @ clip.embedding) for voice in others if voice is not None)


def _voice(person: str, clips: Sequence[HeardClip], without: HeardClip | None = None) -> KnownVoice | None:
    """A person's voice of all their clips but one, as enrolment makes it; None where no clip is left."""
    mine = [clip for clip in clips if clip.person == person and clip is not without]
    if not mine:
        return None
    total = np.sum([clip.embedding * clip.net_speech_samples for clip in mine], axis=0)
    unit = (total / max(float(np.linalg.norm(total)), 1e-9)).astype(np.float32)
    return KnownVoice(person, unit, sum(clip.net_speech_samples for clip in mine))


def _fit(clips: Sequence[HeardClip], naming: NamingParameters, rng: np.random.Generator) -> NamingParameters:
    people = {clip.person for clip in clips}
    # Trials of one clip are much alike, so that a clip is worth two: one with its own voice in scope, one without.
    return fit_naming(_trials(clips, people, naming, rng), naming, trust=TRUST, worth=2.0 * len(clips))


def _trials(clips: Sequence[HeardClip], heard: set[str], naming: NamingParameters, rng: np.random.Generator) -> Trials:
    """Trials of these people's clips: each against its own voice made of the other clips, and everybody else's."""
    people = sorted({clip.person for clip in clips})
    voices = {person: _voice(person, clips) for person in people}
    sizes = [size for size in GALLERY_SIZES if size <= len(people)]
    parts = []
    for clip in clips:
        if clip.person in heard:
            own = _voice(clip.person, clips, without=clip)
            enrolled = [voice for person, voice in voices.items() if voice is not None and person != clip.person]
            speaker = KnownVoice(clip.person, clip.embedding, clip.net_speech_samples)
            parts.append(draw_trials([*enrolled, *([own] if own else [])], [speaker], naming, sizes, rng))
    return join_trials(parts)
