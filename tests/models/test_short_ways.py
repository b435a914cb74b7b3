"""Short ways of a live stream's decisions end where the long ones do, and are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest

import models.clustering
import models.online_clustering
from models.online import StepOutcome, Turn
from models.online_clustering import SessionClustering
from runtime.units import samples_from_seconds
from tests.models.test_online import Speech, open_stream, windows_of

END_S = 60.0
NUM_SCENES = 6


def scene_of(seed: int) -> list[Speech]:
    """People who take turns, now and then over each other, and fragments too short for an embedding."""
    rng = np.random.default_rng([23, seed])
    people = int(rng.integers(2, 6))
    scene, at_s = [], 0.0
    while at_s < END_S - 1:
        length_s = float(rng.choice([0.15, 1.0, 4.0, 9.0]))
        scene.append(Speech(int(rng.integers(people)), at_s, min(at_s + length_s, END_S)))
        at_s += max(0.2, length_s + float(rng.choice([-1.5, 0.0, 0.5, 3.0])))
    return scene


def told(seed: int) -> list[StepOutcome]:
    """All that a stream of a scene tells: with places for few or for all, windows left out now and then, and noise."""
    stream = open_stream(num_speakers_max=2 + seed % 3)
    rng = np.random.default_rng([29, seed])
    windows = []
    for window in windows_of(scene_of(seed), END_S):
        noise = (0.0, 0.06, 0.12)[seed // 2] * rng.standard_normal(window.embeddings.shape)
        noisy = window.embeddings + noise * window.embeddings.any(axis=1, keepdims=True)
        unit = noisy / np.maximum(np.linalg.norm(noisy, axis=1, keepdims=True), 1e-9)
        if seed % 2 == 0 or rng.random() > 0.1:
            windows.append(replace(window, embeddings=np.asarray(unit, np.float32)))
    return [*[stream.step(window) for window in windows], stream.finish(samples_from_seconds(END_S))]


def turns_of(outcomes: Sequence[StepOutcome]) -> list[Turn]:
    return [*chain.from_iterable(outcome.turns for outcome in outcomes)]


@pytest.mark.parametrize(
    ("owner", "name", "takes_the_long_way"),
    [
        (SessionClustering, "_whatever_others_say", None),
        (models.online_clustering, "_is_each_somebody_else", False),
        (models.online_clustering, "_are_whole_speakers", False),
        (models.clustering, "_cliques", None),
    ],
)
def test_what_is_told_is_the_same_without_it(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, takes_the_long_way: object
) -> None:
    short: Callable[..., object] = getattr(owner, name)
    was_taken: list[bool] = []

    def watched(*given: Any) -> object:
        found = short(*given)
        was_taken.append(found is not takes_the_long_way)
        return found

    monkeypatch.setattr(owner, name, watched)
    found = [told(seed) for seed in range(NUM_SCENES)]
    assert any(was_taken) and not all(was_taken)
    assert len({turn.speaker for turn in turns_of(found[0])}) >= 2

    monkeypatch.setattr(owner, name, lambda *_: takes_the_long_way)
    assert [told(seed) for seed in range(NUM_SCENES)] == found
