"""One training run of the segmentation network: its recipe, its state, one step, and its way to disk and back.

In come batches of mixtures with the truth; out come weights. A run that was saved and resumed goes on as if it had
never stopped.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scripts.segmentation_error import FrameErrors, frame_errors, powerset_loss

Batch = tuple[Tensor, Tensor, Tensor]  # mixtures (B, 1, N), speakers (B, F, S), frames that count (B, F)

EVALUATION_BATCH = 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that shapes a training run besides its data. Durations are seconds."""

    seed: int = 0
    durations: tuple[float, ...] = (5.0,)  # each batch takes one
    layers: int = 2
    hidden: int = 128
    batch_seconds: float = 160.0
    steps: int = 6000
    warm_up_steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    gradient_norm_max: float = 0.5
    dropout: float = 0.1
    average_decay: float = 0.995
    bf16: bool = False
    freeze_filters: bool = False


def build_network(layers: int, hidden: int = 128, dropout: float = 0.1) -> nn.Module:
    """PyanNet with three local speakers, two at once; weights are drawn from torch's generator."""
    # Training is nobody's business but ours: telemetry is off before the package is imported.
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyannote.audio.core.task import Problem, Resolution, Specifications
        from pyannote.audio.models.segmentation import PyanNet

        network: nn.Module = PyanNet(
            lstm={
                "hidden_size": hidden,
                "num_layers": layers,
                "bidirectional": True,
                "monolithic": True,
                "dropout": dropout,
            },
            linear={"hidden_size": 128, "num_layers": 2},
        )
        specifications: Any = Specifications(
            problem=Problem.MONO_LABEL_CLASSIFICATION,
            resolution=Resolution.FRAME,
            duration=10.0,
            warm_up=(0.0, 0.0),
            classes=["speaker#1", "speaker#2", "speaker#3"],
            powerset_max_classes=2,
            permutation_invariant=True,
        )
        network.specifications = specifications
        build: Any = network.build
        build()
    return network


class Trainer:
    """One training run: the network, its running average, its optimiser, and how far it has come."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.step = 0
        self.best_rate = math.inf
        self.network = build_network(recipe.layers, recipe.hidden, recipe.dropout).to(device)
        self.average = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        if recipe.freeze_filters:
            # The first stage costs more than half of a step and learns least: on a CPU it is better left alone.
            sincnet: Any = self.network.sincnet
            for stage in (sincnet.wav_norm1d, sincnet.conv1d[0], sincnet.norm1d[0]):
                stage.requires_grad_(False)
        self._optimiser = torch.optim.AdamW(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )

    def __repr__(self) -> str:
        return f"Trainer(step={self.step} of {self.recipe.steps}, best_rate={self.best_rate:.4f})"

    def initialise(self, weights: Path) -> None:
        """Begin from the weights of an earlier run."""
        self.network.load_state_dict(load_file(weights))
        self.average = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def learn(self, batch: Batch) -> float:
        """One step of AdamW. Returns the loss."""
        mixtures, target, scored = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        for group in self._optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            log_probabilities = self.network(mixtures)  # (B, F, K)
        loss = powerset_loss(log_probabilities, target, scored)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_norm_max)
        self._optimiser.step()
        self.step += 1
        # Young averages forget faster, so that the first steps of a run from scratch do not linger.
        decay = min(self.recipe.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                self.average[name].lerp_(tensor, 1 - decay)
        return float(loss.detach())

    def learning_rate(self) -> float:
        """Of the step to come: linear warm-up, then half a cosine down to nothing."""
        recipe = self.recipe
        warm_up = min(1.0, (self.step + 1) / max(1, recipe.warm_up_steps))
        return recipe.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / recipe.steps)))

    def save(self, path: Path) -> None:
        """Everything that `resume` needs, written at once or not at all."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "best_rate": self.best_rate,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on where `save` was called, random numbers included."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self._optimiser.load_state_dict(state["optimiser"])
        self.step, self.best_rate = state["step"], state["best_rate"]
        torch.set_rng_state(state["torch_rng"].cpu())
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)


def measure(network: nn.Module, weights: Mapping[str, Tensor], windows: Batch, device: torch.device) -> FrameErrors:
    """Errors of weights on windows, in full precision. The network's own weights and mode come back afterwards."""
    own = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    was_training = network.training
    network.load_state_dict(dict(weights))
    network.eval()
    errors = FrameErrors()
    with torch.inference_mode():
        for parts in zip(*(torch.split(tensor, EVALUATION_BATCH) for tensor in windows), strict=True):
            mixtures, target, scored = (part.to(device) for part in parts)
            errors += frame_errors(network(mixtures), target, scored)
    network.load_state_dict(own)
    network.train(was_training)
    return errors


def export(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, object]) -> None:
    """Write weights as safetensors, at once or not at all."""
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, partial, {name: str(value) for name, value in metadata.items()})
    partial.replace(path)
