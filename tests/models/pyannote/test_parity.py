"""`exact` gives pyannote.audio's own result: turns and exclusive turns to the frame, embeddings of speakers to 1e-4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.pyannote import assembly, clustering, device, embedding, file
from tests.models.pyannote.reference import Answer, Case, conversation, meeting, ours, sample

AGGLOMERATIVE = "AgglomerativeClustering"
THREE_PEOPLE = Case("three people", conversation(3, 45, seed=3))
CROWD = Case("crowd", conversation(6, 52, seed=7))
CASES = (
    Case("sample", sample),
    Case("three people", conversation(3, 31, seed=3), "other", AGGLOMERATIVE),
    Case("sample", sample, "other", AGGLOMERATIVE, (3, None, None)),
    Case("meeting", meeting("dev00", 21.3), "other"),
    THREE_PEOPLE,
    Case("short", meeting("trn01", 4.7), "plain", "VBxClustering", (None, 2, None)),
    CROWD,
)
LONG = conversation(5, 630, seed=11)
ALL_RECORDINGS = {
    "sample": sample,
    "dev00": meeting("dev00"),
    "dev01": meeting("dev01"),
    "trn05": meeting("trn05", 27.77),
    "trn08": meeting("trn08"),
    "two": conversation(2, 61, seed=5),
    "six": conversation(6, 180.4, seed=9),
    "long": LONG,
}
ASKED = {"sample": (4, None, None), "trn05": (None, None, 1), "six": (3, None, None), "dev01": (None, 3, 5)}


def parity(case: Case, audio: Path, checkpoints: Path, change: Callable[[Any], Any] = lambda bundle: bundle) -> Answer:
    folder = checkpoints / case.checkpoint / f"bundle-{case.method}"
    return ours(folder, case.recording(audio), case.bounds, change)


def same(found: Answer, wanted: Answer) -> None:
    assert found.turns == wanted.turns
    assert found.exclusive == wanted.exclusive
    np.testing.assert_allclose(found.embeddings, wanted.embeddings, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_turns_and_embeddings_are_those_of_pyannote(
    case: Case, audio: Path, checkpoints: Path, reference: Callable[[Case], Answer]
) -> None:
    same(parity(case, audio, checkpoints), reference(case))


@pytest.mark.parametrize("cut", [(110_000, 110_991), (0, 159_999), (0, 160_001), (300_000, 480_000)], ids=str)
def test_recordings_of_any_length_are_cut_into_windows_as_pyannote_does(
    cut: tuple[int, int], audio: Path, checkpoints: Path, reference: Callable[[Case], Answer]
) -> None:
    case = Case(f"cut{cut}", lambda folder: sample(folder)[slice(*cut)], "other", AGGLOMERATIVE)
    same(parity(case, audio, checkpoints), reference(case))


def test_nobody_speaks_in_silence(audio: Path, checkpoints: Path, reference: Callable[[Case], Answer]) -> None:
    case = Case("silence", lambda _: np.zeros(11 * 16_000, np.float32))
    same(parity(case, audio, checkpoints), reference(case))
    assert not reference(case).turns


def test_the_cases_are_not_degenerate(reference: Callable[[Case], Answer]) -> None:
    answers = [reference(case) for case in CASES]
    assert max(len(answer.embeddings) for answer in answers) >= 4, "several speakers"
    assert sum(answer.turns != answer.exclusive for answer in answers) >= 4, "overlap"
    assert sum(len(answer.turns) for answer in answers) >= 60


@pytest.mark.deep
@pytest.mark.parametrize("checkpoint", ["plain", "other"])
@pytest.mark.parametrize("method", ["VBxClustering", AGGLOMERATIVE])
@pytest.mark.parametrize("name", ALL_RECORDINGS)
def test_eight_recordings_two_checkpoints_and_both_methods_agree(
    name: str, method: str, checkpoint: str, audio: Path, checkpoints: Path, reference: Callable[[Case], Answer]
) -> None:
    for asked in {(None, None, None), ASKED.get(name, (None, None, None))}:
        case = Case(name, ALL_RECORDINGS[name], checkpoint, method, asked)
        same(parity(case, audio, checkpoints), reference(case))


def linear_masks(masks: torch.Tensor, num_trunk_frames: int) -> torch.Tensor:
    return functional.interpolate(masks, size=num_trunk_frames, mode="linear")


def overlap_kept(speech: torch.Tensor, **_: Any) -> torch.Tensor:
    return speech.transpose(1, 2)


def counted_up(speech: Any, clock: Any) -> Any:
    return np.minimum(COUNT(speech, clock) + (SCORES_ANY(speech, clock) > 0), 2)


def unconstrained(scores: Any) -> Any:
    return np.asarray(scores).argmax(axis=2)


def by_presence(scores: Any, count: Any) -> Any:
    return CHOOSE((scores > 0).astype(np.uint16), count)


COUNT, CHOOSE = assembly.count_speakers, assembly.choose_speakers


def SCORES_ANY(speech: Any, clock: Any) -> Any:
    labels = np.zeros(speech.shape[::2], np.int64)
    return assembly.speaker_scores(speech, labels, clock)[:, 0]


MUTATIONS = {
    "mask grid": (THREE_PEOPLE, embedding, "mask_on_trunk", linear_masks),
    "overlap exclusion": (THREE_PEOPLE, device, "voice_masks", overlap_kept),
    "count": (THREE_PEOPLE, assembly, "count_speakers", counted_up),
    "assignment": (CROWD, clustering, "constrained_argmax", unconstrained),
    "reconstruction": (THREE_PEOPLE, assembly, "choose_speakers", by_presence),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_parity_fails_once_a_step_is_another(
    mutation: str,
    audio: Path,
    checkpoints: Path,
    reference: Callable[[Case], Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case, module, name, changed = MUTATIONS[mutation]
    monkeypatch.setattr(module, name, changed)
    assert not parity(case, audio, checkpoints).equals(reference(case))


def test_parity_fails_once_the_threshold_is_another(
    audio: Path, checkpoints: Path, reference: Callable[[Case], Answer]
) -> None:
    case = CASES[1]

    def looser(bundle: Any) -> Any:
        parameters = replace(bundle.pipeline.clustering, threshold=bundle.pipeline.clustering.threshold * 0.6)
        return replace(bundle, pipeline=replace(bundle.pipeline, clustering=parameters))

    assert not parity(case, audio, checkpoints, looser).equals(reference(case))
    assert file.clustering is clustering
