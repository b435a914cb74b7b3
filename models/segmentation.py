"""Local segmentation: PyanNet, pyannote.audio's network, written out in torch.

In come windows of samples; out come log probabilities of the powerset classes of three local speakers, at most two at
once, for each frame of 270 samples. The module takes the tensors of a pyannote checkpoint by their own names and gives
what pyannote's own module gives, without importing it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SINC_TAPS = 251
SINC_STRIDE = 10
SCALED_AT_ONCE = 2
"""Windows whose filtered sound is handled together on a CPU: as many as its caches hold."""
FRAME_STEP_SAMPLES = 270
FRAME_FIELD_SAMPLES = 991
NUM_CLASSES = 7  # nobody, one of three, two of three: models.local_speakers.POWERSET


class PyanNet(nn.Module):
    """SincNet, bidirectional LSTM, two linear layers, powerset classifier (Bredin, "pyannote.audio 2.1", 2023)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Build from a checkpoint's tensors, which say how deep and wide it is; RuntimeError if they do not fit."""
        super().__init__()
        layers = sum(1 for name in weights if name.startswith("lstm.weight_hh") and not name.endswith("reverse"))
        hidden = weights["lstm.weight_hh_l0"].shape[1]
        width = weights["linear.0.weight"].shape[0]
        self.wav_norm = nn.InstanceNorm1d(1, affine=True)
        self.convs = nn.ModuleList([nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norms = nn.ModuleList([nn.InstanceNorm1d(channels, affine=True) for channels in (80, 60, 60)])
        self.lstm = nn.LSTM(60, hidden, num_layers=layers, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(2 * hidden, width), nn.Linear(width, width)])
        self.classifier = nn.Linear(width, NUM_CLASSES)
        self.sinc: Tensor
        self.register_buffer("sinc", _sinc_filters(weights), persistent=False)
        self.load_state_dict({_own_name(name): weights[name] for name in weights if "filterbank" not in name})
        self.eval()

    def forward(self, windows: Tensor) -> Tensor:
        """Log probabilities (B, F, 7) of windows (B, N); frame f is centred on sample 495 + 270 f."""
        filtered = functional.conv1d(self.wav_norm(windows.unsqueeze(1)), self.sinc, stride=SINC_STRIDE)
        return self._classes(_pooled(filtered))

    def overlapping(self, sound: Tensor, window_samples: int, hop_samples: int) -> Tensor:
        """Log probabilities (B, F, 7) of the windows of (N,) samples that begin every `hop_samples`.

        The same as `forward` of the windows, up to rounding. Half of the network's work is its first filters. Scaling a
        window before them is scaling and shifting what comes of them, so that sound is filtered once, however many
        windows it is in. hop_samples is a multiple of SINC_STRIDE.
        """
        windows = sound.unfold(0, window_samples, hop_samples)  # (B, N)
        variance, mean = torch.var_mean(windows, dim=1, correction=0)
        scale = self.wav_norm.weight / (variance + self.wav_norm.eps).sqrt()  # (B,)
        shift = (self.wav_norm.bias - mean * scale)[:, None] * self.sinc.sum(dim=(1, 2))  # (B, 80)
        filtered = functional.conv1d(sound[None, None], self.sinc, stride=SINC_STRIDE)[0]  # (80, T)
        length = (window_samples - SINC_TAPS) // SINC_STRIDE + 1
        each = filtered.unfold(1, length, hop_samples // SINC_STRIDE).transpose(0, 1)  # (B, 80, T')
        at_once = len(windows) if sound.is_cuda else SCALED_AT_ONCE
        groups = [slice(at, at + at_once) for at in range(0, len(windows), at_once)]
        pooled = [_pooled(torch.addcmul(shift[g, :, None], each[g], scale[g, None, None])) for g in groups]
        return self._classes(torch.cat(pooled))

    def _classes(self, pooled: Tensor) -> Tensor:
        """Log probabilities (B, F, 7) of windows after the first layer's pooling, (B, 80, T)."""
        x = functional.leaky_relu(self.norms[0](pooled))
        for conv, norm in zip(self.convs, list(self.norms)[1:], strict=True):
            x = functional.leaky_relu(norm(functional.max_pool1d(conv(x), 3)))
        x, _ = self.lstm(x.transpose(1, 2))  # (B, F, 2H)
        for linear in self.linear:
            x = functional.leaky_relu(linear(x))
        return functional.log_softmax(self.classifier(x), dim=-1)


def _pooled(filtered: Tensor) -> Tensor:
    return functional.max_pool1d(filtered.abs(), 3)


def frame_positions(num_grid_frames: int, step_samples: int, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the centres of grid frames fall among PyanNet's frames: (index of the frame before, weight of the next)."""
    centres = (np.arange(num_grid_frames) + 0.5) * step_samples
    position = np.clip((centres - FRAME_FIELD_SAMPLES / 2) / FRAME_STEP_SAMPLES, 0, num_frames - 1)
    before = position.astype(np.int64)
    return before, (position - before).astype(np.float32)


def _own_name(name: str) -> str:
    """pyannote's name of a tensor, as it is called in this module."""
    for old, new in (("sincnet.wav_norm1d", "wav_norm"), ("sincnet.norm1d", "norms")):
        if name.startswith(old):
            return name.replace(old, new)
    for layer in (1, 2):
        name = name.replace(f"sincnet.conv1d.{layer}.", f"convs.{layer - 1}.")
    return name


def _sinc_filters(weights: Mapping[str, Tensor]) -> Tensor:
    """The learned band-pass filters, even and odd: (80, 1, 251) (Ravanelli and Bengio, arXiv 1808.00158)."""
    prefix = "sincnet.conv1d.0.filterbank."
    low = 50.0 + weights[prefix + "low_hz_"].abs()  # (40, 1)
    high = (low + 50.0 + weights[prefix + "band_hz_"].abs()).clamp(50.0, 8000.0)
    half = SINC_TAPS // 2
    n = 2 * math.pi * torch.arange(-half, 0.0).view(1, -1) / 16_000  # (1, 125)
    window = torch.from_numpy(np.hamming(SINC_TAPS)[:half].astype(np.float32))
    even = (torch.sin(high @ n) - torch.sin(low @ n)) / (n / 2) * window
    odd = (torch.cos(low @ n) - torch.cos(high @ n)) / (n / 2) * window
    band = high - low
    filters = [
        torch.cat([even, 2 * band, even.flip(1)], dim=1),
        torch.cat([odd, torch.zeros_like(band), -odd.flip(1)], dim=1),
    ]
    return (torch.cat(filters) / (2 * band.repeat(2, 1))).unsqueeze(1)
