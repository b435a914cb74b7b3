"""Our writings-out of published networks against their twins: the packages' own, or the same thing done plainly."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from models.embedding import Ge2eEncoder, MelFrontEnd, mel_filters
from models.ring import Ring
from models.vad import CHUNK_SAMPLES, CONTEXT_SAMPLES, SileroVad
from tests.models.builtin_engine import bundle, conversation


def _jit() -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(bundle().weights["voice_activity"].verified_path())


@torch.inference_mode()
def test_voice_activity_equals_the_packages_own_model_chunk_by_chunk():
    package = _jit()
    ours = SileroVad(package.state_dict())
    count = 60
    sound = torch.from_numpy(conversation()[96_000 : 96_000 + count * CHUNK_SAMPLES])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = [package(chunk, 16_000).item() for chunk in sound.split(CHUNK_SAMPLES)]
    padded = torch.cat([torch.zeros(CONTEXT_SAMPLES), sound])
    chunks = padded.unfold(0, CONTEXT_SAMPLES + CHUNK_SAMPLES, CHUNK_SAMPLES)[None]
    state = ours.initial_state(1, torch.device("cpu"))
    first, state = ours(chunks[:, :23], state)
    second, _ = ours(chunks[:, 23:], state)
    np.testing.assert_allclose(torch.cat([first, second], dim=1)[0], theirs, atol=1e-5)


def test_mel_filters_have_unit_area_and_cover_the_band():
    filters = mel_filters()
    assert filters.shape == (40, 201)
    # Each triangle has an area of 1 in hertz; bins are 40 Hz apart, and the narrow low ones are sampled coarsely.
    np.testing.assert_allclose(filters[20:].sum(axis=1) * 40.0, 1.0, atol=0.05)
    peaks = filters.argmax(axis=1) * 40.0
    assert np.all(np.diff(peaks) > 0)
    np.testing.assert_allclose(peaks[-1], 7_440, atol=80)


@torch.inference_mode()
def test_mel_frames_equal_a_plain_discrete_fourier_transform():
    sound = conversation()[96_000:98_000].astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    frames = np.stack([sound[at : at + 400] * window for at in range(0, 1_601, 160)])
    plain = np.abs(frames @ basis.T) ** 2 @ mel_filters().T
    ours = MelFrontEnd()(torch.from_numpy(sound.astype(np.float32)))
    np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-6)


@torch.inference_mode()
def test_a_batch_of_partials_is_encoded_as_each_alone():
    checkpoint = torch.load(bundle().weights["embedding"].verified_path(), map_location="cpu", weights_only=True)
    encoder = Ge2eEncoder(checkpoint["model_state"])
    mels = MelFrontEnd()(torch.from_numpy(conversation()[96_000:160_000]))
    partials = mels.unfold(0, 160, 40).transpose(1, 2)[:5]
    batch = encoder(partials)
    alone = torch.cat([encoder(partial[None]) for partial in partials])
    np.testing.assert_allclose(batch, alone, atol=1e-5)
    np.testing.assert_allclose(batch.norm(dim=1), 1.0, atol=1e-5)
    assert batch.min() >= 0.0  # GE2E's vectors are rectified: a wrong layer order would show here


def test_a_ring_gives_the_newest_rows_and_silence_before_the_first():
    ring = Ring(5, (), torch.device("cpu"))
    ring.append(torch.arange(1.0, 4.0))
    assert ring.read(-2, 3).tolist() == [0, 0, 1, 2, 3]
    ring.append(torch.arange(4.0, 12.0))
    assert ring.read(6, 11).tolist() == [7, 8, 9, 10, 11]
    assert ring.read(8, 10).tolist() == [9, 10]
