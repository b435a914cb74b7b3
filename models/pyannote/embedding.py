"""WeSpeaker's embedding network in three steps: mel frames, trunk, pooling under masks.

In come samples; out come embeddings (B, S, D) of a window's local speakers. The steps are those of pyannote's model,
cut where work can be shared: mel frames are made once a recording, since windows begin on their grid; the trunk, which
a mask never touches, runs once a window for all of its speakers; only pooling is done for each. What always holds: in
float32 the embeddings are pyannote's within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

SAMPLE_SCALE = 1 << 15
TRUNK_STRIDE = 8  # mel frames a trunk frame: three halvings


class MelFrames:
    """Mel frames of samples, as the network takes them before a window's mean is taken off.

    Frame t looks at samples [t * step, t * step + length): frames do not depend on where a piece of sound begins.
    """

    def __init__(self, network: Any) -> None:
        self._fbank = network._fbank
        self.step_samples = int(network.hparams.sample_rate * network.hparams.frame_shift * 0.001)
        self.length_samples = int(network.hparams.sample_rate * network.hparams.frame_length * 0.001)
        self.num_bands = int(network.hparams.num_mel_bins)

    def __call__(self, samples: Tensor) -> Tensor:
        """Frames (T, M) of samples (N,)."""
        frames: Tensor = self._fbank((samples * SAMPLE_SCALE)[None])
        return frames

    def count(self, num_samples: int) -> int:
        """How many frames so many samples make."""
        return max(0, (num_samples - self.length_samples) // self.step_samples + 1)


class Trunk(nn.Module):
    """The convolutions of one of pyannote's ResNets, batch norms folded into them.

    Mel frames (B, T, M) less their mean become maps (B, C, H, T / 8). Weights lie channels last: the CPU's and the
    tensor cores' kernels for that order are the faster ones, whatever the order of the input.
    """

    def __init__(self, resnet: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem = _folded(resnet.conv1, resnet.bn1)
        self.blocks = nn.ModuleList(
            _Block(block) for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4) for block in layer
        )
        self.dtype = dtype
        self.to(dtype)
        for weight in self.parameters():
            weight.data = (
                weight.data.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight.data
            )
        self.eval()

    def forward(self, mels: Tensor) -> Tensor:
        """Maps (B, C, H, T / 8), in float32, of mel frames (B, T, M)."""
        x = mels.to(self.dtype).permute(0, 2, 1).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        x = self.stem(x).relu_()
        for block in self.blocks:
            x = block(x)
        maps: Tensor = x.float()
        return maps


class _Block(nn.Module):
    """A residual block, basic or bottleneck."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        names = ("1", "2", "3") if hasattr(block, "conv3") else ("1", "2")
        self.convs = nn.ModuleList(_folded(getattr(block, "conv" + n), getattr(block, "bn" + n)) for n in names)
        self.shortcut = _folded(block.shortcut[0], block.shortcut[1]) if len(block.shortcut) else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs[:-1]:
            y = conv(y).relu_()
        y = self.convs[-1](y)
        y += x if self.shortcut is None else self.shortcut(x)
        out: Tensor = y.relu_()
        return out


class Pooling(nn.Module):
    """Statistics of the trunk's maps under each local speaker's mask, and the last layer: maps to embeddings."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.last = resnet.seg_1
        self.eval()

    def forward(self, frames: Tensor, masks: Tensor) -> Tensor:
        """Embeddings (B, S, D) of frames (B, C, T') under masks (B, S, F); of an empty mask, the last layer's bias."""
        return self.embed(frames, mask_on_trunk(masks, frames.shape[-1]))

    def embed(self, frames: Tensor, weights: Tensor) -> Tensor:
        """Embeddings (B, S, D) of frames (B, C, T') under weights (B, S, T'): weighted mean and unbiased deviation."""
        total = weights.sum(dim=2, keepdim=True) + 1e-8  # (B, S, 1)
        mean = torch.einsum("bct,bst->bsc", frames, weights) / total
        rest = total - weights.square().sum(dim=2, keepdim=True) / total + 1e-8
        statistics = []
        for speaker in range(weights.shape[1]):
            # Deviations from the speaker's own mean first, then squares: the other way round cancels badly.
            off = (frames - mean[:, speaker, :, None]).square_()
            variance = torch.einsum("bct,bt->bc", off, weights[:, speaker]) / rest[:, speaker]
            statistics.append(torch.cat([mean[:, speaker], variance.sqrt()], dim=1))
        embeddings: Tensor = self.last(torch.stack(statistics, dim=1))
        return embeddings


def mask_on_trunk(masks: Tensor, num_trunk_frames: int) -> Tensor:
    """Masks (B, S, F) on the trunk's frames, each that of the nearest frame before: (B, S, T')."""
    return functional.interpolate(masks, size=num_trunk_frames, mode="nearest")


def centred(mels: Tensor) -> Tensor:
    """Mel frames of windows (B, T, M), less the mean of each window."""
    return mels - mels.mean(dim=1, keepdim=True)


def _folded(conv: Any, norm: Any) -> nn.Module:
    folded: nn.Module = fuse_conv_bn_eval(conv, norm)
    return folded
