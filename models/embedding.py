"""Voice embeddings: the GE2E encoder of Resemblyzer, its mel front end included.

In come mel frames, or the samples to make them of; out come unit vectors of 256. The front end is librosa's power mel
spectrogram (25 ms frames each 10 ms, 40 bands, Slaney's scale and norm, no logarithm) written out, on a grid of frames
that end at multiples of 160 samples, so that a stream computes each frame once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FRAME_SAMPLES = 400
FRAME_STEP_SAMPLES = 160
NUM_BANDS = 40
PARTIAL_FRAMES = 160
PARTIAL_SAMPLES = (PARTIAL_FRAMES - 1) * FRAME_STEP_SAMPLES + FRAME_SAMPLES
EMBEDDING_DIM = 256


def mel_filters(rate_hz: int = 16_000, num_bands: int = NUM_BANDS, fft_samples: int = FRAME_SAMPLES) -> np.ndarray:
    """Triangular filters on Slaney's mel scale, each of unit area in hertz: (num_bands, fft_samples // 2 + 1).

    The scale is linear to 1 kHz (200/3 Hz a mel) and logarithmic above it (M. Slaney, Auditory Toolbox, 1998).
    """
    linear_hz, log_start_mel, log_step = 200.0 / 3, 15.0, np.log(6.4) / 27
    top_mel = log_start_mel + np.log(rate_hz / 2 / 1000.0) / log_step
    mels = np.linspace(0.0, top_mel, num_bands + 2)
    edges_hz = np.where(mels < log_start_mel, mels * linear_hz, 1000.0 * np.exp(log_step * (mels - log_start_mel)))
    bins_hz = np.arange(fft_samples // 2 + 1) * rate_hz / fft_samples
    left, centre, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - left) / (centre - left)
    falling = (right - bins_hz) / (right - centre)
    filters: np.ndarray = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (right - left))
    return filters


class MelFrontEnd(nn.Module):
    """Samples to mel power."""

    def __init__(self) -> None:
        super().__init__()
        self.filters: Tensor
        self.window: Tensor
        self.register_buffer("filters", torch.from_numpy(mel_filters().T.astype(np.float32)), persistent=False)
        self.register_buffer("window", torch.hann_window(FRAME_SAMPLES), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Mel power of (..., N) samples: (..., T, 40), T = (N - 400) // 160 + 1; frame t begins at sample 160 t."""
        frames = samples.unfold(-1, FRAME_SAMPLES, FRAME_STEP_SAMPLES) * self.window  # (..., T, 400)
        spectrum = torch.fft.rfft(frames)
        mels: Tensor = (spectrum.real**2 + spectrum.imag**2) @ self.filters  # (..., T, 40)
        return mels


class Ge2eEncoder(nn.Module):
    """Three LSTM layers, one linear layer and a ReLU over 1.6 s of mel frames (Wan et al., arXiv 1710.10467)."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """Build from the `model_state` of Resemblyzer's checkpoint; RuntimeError if tensors are missing."""
        super().__init__()
        self.lstm = nn.LSTM(NUM_BANDS, EMBEDDING_DIM, num_layers=3, batch_first=True)
        self.linear = nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM)
        self.load_state_dict({name: weights[name] for name in self.state_dict()})
        self.eval()

    def forward(self, mels: Tensor) -> Tensor:
        """Unit vectors (P, 256) of partials (P, T, 40); T is 160 for what the encoder was trained on."""
        _, (hidden, _) = self.lstm(mels)
        return functional.normalize(self.linear(hidden[-1]).relu(), dim=-1, eps=1e-6)
