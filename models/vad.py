"""Voice activity: Silero VAD's 16 kHz network, written out in torch, with its state carried by the caller.

In come chunks of 512 samples with the 64 samples before them; out come speech probabilities, one a chunk, and the state
for the next chunk of the same sound. The probabilities equal those of the package's own model, chunk by chunk, however
many chunks are given at once: only the small LSTM is sequential, the rest is one batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK_SAMPLES = 512
CONTEXT_SAMPLES = 64
STATE_DIM = 128
MEMORY_CHUNKS = 125
"""4 s. The LSTM never quite forgets: begun 26 s ago or a minute ago it differs by 0.02, which moves the end of a turn
by a frame. Where a stream has to come out the same after it went on elsewhere, a state is used for so long, after it
has heard as much before: whatever it says depends on the last 8 s alone."""

VadState = tuple[Tensor, Tensor]


class SileroVad(nn.Module):
    """STFT magnitudes, four convolutions, one LSTM, one linear unit (Silero Team, "Silero VAD", MIT)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Build from the tensors of the package's `silero_vad.jit`; KeyError or RuntimeError if they do not fit."""
        super().__init__()
        self.stft = nn.Conv1d(1, 258, kernel_size=256, stride=128, bias=False)
        self.convs = nn.ModuleList(
            [
                nn.Conv1d(129, 128, kernel_size=3, padding=1),
                nn.Conv1d(128, 64, kernel_size=3, stride=2, padding=1),
                nn.Conv1d(64, 64, kernel_size=3, stride=2, padding=1),
                nn.Conv1d(64, 128, kernel_size=3, padding=1),
            ]
        )
        self.lstm = nn.LSTM(128, STATE_DIM, batch_first=True)
        self.final = nn.Conv1d(STATE_DIM, 1, kernel_size=1)
        own = {"stft.weight": weights["_model.stft.forward_basis_buffer"]}
        for part in ("weight", "bias"):
            for layer in range(4):
                own[f"convs.{layer}.{part}"] = weights[f"_model.encoder.{layer}.reparam_conv.{part}"]
            for gate in ("ih", "hh"):
                own[f"lstm.{part}_{gate}_l0"] = weights[f"_model.decoder.rnn.{part}_{gate}"]
            own[f"final.{part}"] = weights[f"_model.decoder.decoder.2.{part}"]
        self.load_state_dict(own)
        self.eval()

    def initial_state(self, batch: int, device: torch.device) -> VadState:
        """The state before any sound: two tensors of zeros, (1, batch, 128)."""
        zeros = torch.zeros(1, batch, STATE_DIM, device=device)
        return zeros, zeros.clone()

    def forward(self, chunks: Tensor, state: VadState) -> tuple[Tensor, VadState]:
        """Speech probabilities of successive chunks.

        chunks: (B, C, 576) float32, each the 64 samples before a chunk and its 512 samples; with B = 1 the state may be
        of several rows, all of which hear the same. Returns (B, C), or a row a state, in [0, 1] and the state after
        the last chunk.
        """
        batch, count, _ = chunks.shape
        x = functional.pad(chunks.reshape(batch * count, 1, -1), (0, CONTEXT_SAMPLES), mode="reflect")
        x = self.stft(x)  # (B * C, 258, 4)
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for conv in self.convs:
            x = conv(x).relu()
        x = x.reshape(batch, count, -1)
        x, state = self.lstm(x.expand(state[0].shape[1], -1, -1), state)  # (B, C, 128)
        x = self.final(x.relu().transpose(1, 2)).sigmoid()  # (B, 1, C)
        return x.squeeze(1), state
