"""Fit the linear backend of the builtin bundle's embeddings, and the calibration of its names.

    python -m scripts.fit_backend --voices FOLDER [FOLDER …] --out models/bundles/builtin/backend.safetensors

GE2E moves with room and noise more than speakers differ; linear discriminant analysis over the same voices under many
conditions takes out what is not the speaker. The calibration that it prints goes into the bundle's [naming]: it is
fitted on speakers that its backend was not fitted on, in three folds, so that it holds for strangers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from scipy.linalg import eigh
from scipy.optimize import minimize

from models.backend import Backend
from models.bundle import Bundle, load_bundle
from models.naming import margins
from models.torch_device import TorchDevice
from scripts.voice_conditions import NUM_CONDITIONS, VoicePartials, load_partials

FloatArray = npt.NDArray[np.float32]
DIMENSIONS = 120
SHRINKAGE = 0.2  # of the covariance within speakers, towards its mean variance
NUM_FOLDS = 3
ENROLMENT_FRAMES = 700
FRAMES_PER_SECOND = 100
# The bundle's net_speech_samples_max. One utterance a speaker cannot show how far other days' voices lie from it, and
# would have long sessions match more closely than they do.
SESSION_SECONDS_MAX = 4.0


def fit_backend(voices: Sequence[VoicePartials]) -> Backend:
    """Mean, projection and variances: what sets speakers apart, in units of what varies within one."""
    means = np.stack([voice.vectors.astype(np.float64).mean(axis=0) for voice in voices])  # (speakers, 256)
    within = np.zeros((means.shape[1], means.shape[1]))
    for voice, mean in zip(voices, means, strict=True):
        centred = voice.vectors - mean
        within += centred.T @ centred
    within /= sum(len(voice.vectors) - 1 for voice in voices)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    ratios, vectors = eigh(np.cov(means.T), within)
    projection = vectors[:, np.argsort(-ratios)[:DIMENSIONS]]
    flat = np.ones(DIMENSIONS, np.float32)
    backend = Backend(means.mean(axis=0).astype(np.float32), projection.astype(np.float32), flat, flat)
    # Variances are those of projected vectors of unit length, which is what clustering sees.
    projected = [backend.project(voice.vectors).astype(np.float64) for voice in voices]
    centres = np.stack([vectors.mean(axis=0) for vectors in projected])
    spread = sum(((vectors - centre) ** 2).sum(axis=0) for vectors, centre in zip(projected, centres, strict=True))
    within_variance = spread / (sum(map(len, projected)) - len(projected))
    return Backend(
        backend.mean,
        backend.projection,
        within_variance.astype(np.float32),
        np.maximum(centres.var(axis=0), 1e-5).astype(np.float32),
    )


def trials(voices: Sequence[VoicePartials], backend: Backend, seed: int) -> FloatArray:
    """Rows (cosine, margin, log of seconds, match) of speakers in rooms against galleries of clean enrolments."""
    rng = np.random.default_rng(seed)
    names, enrolled, sessions = [], [], []
    for voice in voices:
        projected = backend.project(voice.vectors)
        clean = projected[(voice.condition == 0) & (voice.end_frame < ENROLMENT_FRAMES)]
        if len(clean) == 0:
            continue
        names.append(voice.speaker)
        enrolled.append(clean.mean(axis=0) / np.linalg.norm(clean.mean(axis=0)))
        for condition in range(1, NUM_CONDITIONS):
            # The session's speech begins where the enrolment's has ended: the two share no sound.
            later = (voice.condition == condition) & (voice.end_frame >= ENROLMENT_FRAMES + 160)
            parts, ends = projected[later], voice.end_frame[later]
            if len(parts):
                count = int(rng.integers(1, len(parts) + 1))
                mean = parts[:count].mean(axis=0)
                seconds = min(SESSION_SECONDS_MAX, (ends[count - 1] - ends[0] + 160) / FRAMES_PER_SECOND)
                sessions.append((len(names) - 1, mean / np.linalg.norm(mean), seconds))
    gallery = np.stack(enrolled)
    rows = []
    for speaker, embedding, seconds in sessions:
        others = np.delete(np.arange(len(names)), speaker)
        size = min(int(rng.integers(1, 11)), len(others))
        for own in (True, False):
            chosen = rng.choice(others, size=size, replace=False)
            if own:
                chosen[0] = speaker
            cosines = (gallery[chosen] @ embedding)[None].astype(np.float32)
            margin = margins(cosines, 0.0)[0]
            best = int(np.argmax(cosines[0]))
            rows.append((cosines[0, best], margin[best], np.log(seconds), float(chosen[best] == speaker)))
    return np.array(rows, np.float32)


def fit_calibration(rows: FloatArray) -> FloatArray:
    """Weights (bias, cosine, margin, log seconds) of a logistic regression with a light ridge."""
    x = np.column_stack([np.ones(len(rows)), rows[:, :3]]).astype(np.float64)
    y = rows[:, 3]

    def loss(w: npt.NDArray[np.float64]) -> float:
        odds = x @ w
        return float(np.mean(np.logaddexp(0, odds) - y * odds) + 1e-5 * (w[1:] ** 2).sum())

    found: FloatArray = minimize(loss, np.zeros(x.shape[1]), method="BFGS").x.astype(np.float32)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", type=Path, nargs="+", required=True, help="folders with a sub-folder a speaker")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    builtin = load_bundle("builtin")
    assert isinstance(builtin, Bundle)
    voices = load_partials(arguments.voices, TorchDevice(builtin), arguments.seed)
    rows = []
    for fold in range(NUM_FOLDS):
        rest = [voice for n, voice in enumerate(voices) if n % NUM_FOLDS != fold]
        rows.append(trials(voices[fold::NUM_FOLDS], fit_backend(rest), arguments.seed + fold))
    table = np.concatenate(rows)
    weights = fit_calibration(table)
    odds = np.column_stack([np.ones(len(table)), table[:, :3]]) @ weights
    names = ("bias", "cosine_weight", "margin_weight", "speech_weight")
    print("\n".join(f"{name} = {value:.3f}" for name, value in zip(names, weights, strict=True)))
    matched = table[:, 3] > 0
    print(
        f"{len(table)} trials: misses {np.mean(odds[matched] < 0):.4f}, false names {np.mean(odds[~matched] >= 0):.4f}"
    )
    backend = fit_backend(voices)
    tensors = {
        "mean": backend.mean,
        "projection": backend.projection,
        "within_variance": backend.within_variance,
        "between_variance": backend.between_variance,
    }
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, arguments.out)


if __name__ == "__main__":
    main()
