"""Train the local segmentation network (pyannote.audio's PyanNet, powerset) on simulated conversations.

    python -m scripts.train_segmentation --voices DIR [DIR ...] --out OUT [--init WEIGHTS] [--device cuda] ...

In come folders of single voices; out come OUT/best.safetensors (the averaged weights that did best on voices held out),
OUT/checkpoint.pt (all that --resume needs) and OUT/NOTES (one line an improvement). Everything is drawn from --seed:
batch n is the same in every run, and a run taken up again goes on as if it had never stopped. --evaluate measures
weights without training; only there may voices kept for tests be heard.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from scripts.segmentation_error import windows_of_recordings
from scripts.segmentation_trainer import Batch, Recipe, Trainer, build_network, export, measure
from scripts.simulate_mixtures import RATE, Simulator, Voices, load_any_voices, load_voices

TRAINING, VALIDATION, SPLIT = 1, 2, 3  # streams of random numbers, told apart by their first word


class MixtureBatches(Dataset[Batch]):
    """Batch n of a training run. It depends on the seed and n alone."""

    def __init__(self, simulator: Simulator, recipe: Recipe) -> None:
        self._simulator = simulator
        self._recipe = recipe

    def __getitem__(self, step: int) -> Batch:
        """Mixtures of about `batch_seconds` in all, in windows of one of the durations."""
        recipe = self._recipe
        rng = np.random.default_rng([TRAINING, recipe.seed, step])
        duration_s = float(rng.choice(recipe.durations))
        arrays = self._simulator.batch(rng, max(1, round(recipe.batch_seconds / duration_s)), round(duration_s * RATE))
        mixtures, target, scored = map(torch.from_numpy, arrays)
        return mixtures, target, scored


def validation_windows(voices: Voices, seed: int, duration_s: float, seconds: float) -> Batch:
    """The windows a run is judged by: the same for a seed, at ordinary speed and full band."""
    rng = np.random.default_rng([VALIDATION, seed, round(duration_s * 1000)])
    arrays = Simulator(voices, augment=False).batch(rng, max(1, round(seconds / duration_s)), round(duration_s * RATE))
    mixtures, target, scored = map(torch.from_numpy, arrays)
    return mixtures, target, scored


def train(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """The whole run: data, steps, validation, the best weights kept."""
    device = torch.device(arguments.device)
    voices, held_out = load_voices(arguments.voices).split(
        np.random.default_rng([SPLIT, recipe.seed]), arguments.held_out
    )
    judged = {
        duration_s: validation_windows(held_out, recipe.seed, duration_s, arguments.validation_seconds)
        for duration_s in arguments.validation_durations
    }
    trainer = Trainer(recipe, device)
    if arguments.init:
        trainer.initialise(arguments.init)
    if arguments.resume:
        trainer.resume(arguments.resume)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(voices.chunks)} voices, {voices.hours:.2f} h of speech, {len(held_out.chunks)} held out", flush=True)

    def judge() -> None:
        errors = {
            duration_s: measure(trainer.network, trainer.average, windows, device)
            for duration_s, windows in judged.items()
        }
        rate = float(np.mean([one.rate for one in errors.values()]))
        told = "; ".join(f"{duration_s:g} s {one}" for duration_s, one in errors.items())
        print(f"step {trainer.step} held out: {told}", flush=True)
        if rate >= trainer.best_rate:
            return
        trainer.best_rate = rate
        metadata = {
            "family": "PyanNet",
            "sample_rate": RATE,
            "classes": "powerset 3 speakers max 2",
            "lstm": f"hidden {recipe.hidden}, {recipe.layers} layers, bidirectional",
            "linear": "128 x 2",
            "layers": recipe.layers,
            "trained_window_s": " ".join(f"{duration_s:g}" for duration_s in recipe.durations),
            "seed": recipe.seed,
            "steps": trainer.step,
            "voices": len(voices.chunks),
            "speech_hours": f"{voices.hours:.2f}",
            "simulated_hours": f"{trainer.step * recipe.batch_seconds / 3600:.1f}",
            "held_out_frame_der": f"{rate:.4f}",
        }
        export(trainer.average, out / "best.safetensors", metadata)
        with (out / "NOTES").open("a") as notes:
            notes.write(f"step {trainer.step}: {told}\n")

    if not arguments.resume:
        judge()
    batches = DataLoader(
        MixtureBatches(Simulator(voices), recipe),
        batch_size=None,
        sampler=range(trainer.step, recipe.steps),
        num_workers=arguments.workers,
        prefetch_factor=4 if arguments.workers else None,
        # A generator of its own leaves torch's alone, on which resuming exactly depends.
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    began, first, recent = time.monotonic(), trainer.step, 0.0
    for batch in batches:
        loss = trainer.learn(batch)
        recent = loss if trainer.step == first + 1 else 0.98 * recent + 0.02 * loss
        if trainer.step % 50 == 0:
            pace_s = (time.monotonic() - began) / (trainer.step - first)
            rate = trainer.learning_rate()
            print(f"step {trainer.step} loss {recent:.3f} rate {rate:.1e} pace {pace_s:.2f} s", flush=True)
        if trainer.step % arguments.evaluate_steps == 0 or trainer.step == recipe.steps:
            judge()
            trainer.save(out / "checkpoint.pt")


def evaluate(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Print the errors of --evaluate WEIGHTS on simulated windows of --voices and on labelled --recordings."""
    device = torch.device(arguments.device)
    weights = load_file(arguments.evaluate)
    with safe_open(arguments.evaluate, framework="pt") as opened:
        print(arguments.evaluate, opened.metadata() or {}, flush=True)
    network = build_network(recipe.layers, recipe.hidden).to(device)
    voices = load_any_voices(arguments.voices) if arguments.voices else None
    for duration_s in arguments.validation_durations:
        if voices:
            windows = validation_windows(voices, recipe.seed, duration_s, arguments.validation_seconds)
            print(f"simulated, {duration_s:g} s: {measure(network, weights, windows, device)}", flush=True)
        for folder in arguments.recordings:
            arrays = windows_of_recordings(folder, round(duration_s * RATE))
            mixtures, target, scored = map(torch.from_numpy, arrays)
            errors = measure(network, weights, (mixtures, target, scored), device)
            print(f"{folder}, {duration_s:g} s: {errors}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train, or evaluate."""
    default = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--voices", type=Path, nargs="+", default=[], metavar="DIR", help="folders with a sub-folder a speaker")
    add("--out", type=Path, help="folder for weights, checkpoint and notes")
    add("--init", type=Path, help="begin from these weights (.safetensors)")
    add("--resume", type=Path, metavar="CHECKPOINT", help="go on from a checkpoint of the same recipe")
    add("--evaluate", type=Path, metavar="WEIGHTS", help="only measure these weights")
    add("--recordings", type=Path, nargs="+", default=[], metavar="DIR", help="NAME.flac + NAME.rttm, for --evaluate")
    add("--seed", type=int, default=default.seed)
    add("--duration", type=float, nargs="+", default=list(default.durations), help="of a window, in seconds")
    add("--layers", type=int, default=default.layers, choices=(2, 4))
    add("--batch-seconds", type=float, default=default.batch_seconds)
    add("--steps", type=int, default=default.steps)
    add("--warm-up-steps", type=int, default=default.warm_up_steps)
    add("--learning-rate", type=float, default=default.learning_rate)
    add("--average-decay", type=float, default=default.average_decay)
    add("--freeze-filters", action="store_true", help="leave the first stage as it is (with --init: far faster)")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--workers", type=int, default=1, help="processes that simulate")
    add("--held-out", type=int, default=12, help="speakers kept for validation")
    add("--validation-durations", type=float, nargs="+", default=[5.0, 10.0])
    add("--validation-seconds", type=float, default=800.0, help="of each duration")
    add("--evaluate-steps", type=int, default=250)
    arguments = parser.parse_args(argv)
    if not arguments.evaluate and not (arguments.voices and arguments.out):
        parser.error("training needs --voices and --out")
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(
        seed=arguments.seed,
        durations=tuple(arguments.duration),
        layers=arguments.layers,
        batch_seconds=arguments.batch_seconds,
        steps=arguments.steps,
        warm_up_steps=arguments.warm_up_steps,
        learning_rate=arguments.learning_rate,
        average_decay=arguments.average_decay,
        bf16=arguments.bf16,
        freeze_filters=arguments.freeze_filters,
    )
    (evaluate if arguments.evaluate else train)(arguments, recipe)


if __name__ == "__main__":
    main()
