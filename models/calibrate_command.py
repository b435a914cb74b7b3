"""`speakerd calibrate`: refit the probabilities behind names on one's own labelled clips.

In comes a folder with a sub-folder of recordings a person; out go error rates at thresholds, and a TOML for
--calibration. Nothing is kept of the clips. Importing this module does not load torch.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from models.bundle import load_bundle
from models.calibration_file import calibration_text
from models.recalibrate import OwnCalibration, recalibrate
from speakerd.cli.output import JsonFlag, Output
from speakerd.rttm import write_whole

UNFIT_SHOWN = 10


def calibrate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A sub-folder a person, with recordings of them alone.")
    ],
    *,
    bundle: Annotated[str, typer.Option(help="Bundle of weights to calibrate.")] = "builtin",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.toml", help="Write the calibration here.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit the probabilities of names to your own people, microphones and rooms.

    At least 4 people with 2 recordings or more, of different days where possible; 10 people with 5 are better. What is
    printed was measured on people whom the fit had not heard. Give the file to `speakerd node` and `speakerd diarize`
    with --calibration.
    """
    from models.in_process import open_device
    from models.labelled_clips import find_clips, hear_clips

    out = Output(as_json=as_json)
    clips = find_clips(folder)
    loaded = load_bundle(bundle)
    with out.working("loading the engine"):
        engine = open_device(loaded, device)
    with out.progress() as progress:
        task = progress.add_task("listening", total=len(clips))
        heard, unfit = hear_clips(engine, clips, lambda done, _: progress.update(task, completed=done))
    for clip in unfit[:UNFIT_SHOWN]:
        out.note(f"left out: {clip.name}: {clip.reason}", style="yellow")
    if len(unfit) > UNFIT_SHOWN:
        out.note(f"left out: {len(unfit) - UNFIT_SHOWN} more", style="yellow")
    with out.working("fitting"):
        found = recalibrate(heard, loaded.naming)
    if out_file is not None:
        write_whole(out_file, calibration_text(found, loaded))
    _show(found, out)
    if out_file is not None:
        out.note(f"written to {out_file}; use it with --calibration {out_file}")
    out.result(_as_json(found, out_file) | {"left_out": [asdict(clip) for clip in unfit]})


def _show(found: OwnCalibration, out: Output) -> None:
    out.say(f"{found.num_people} people, {found.num_clips} clips, {found.num_trials} trials", style="bold")
    out.table(
        ("probability", "strangers named (FAR)", "people not named (FRR)", "named as another"),
        ((f"{rate.threshold:.2f}", f"{rate.far:.1%}", f"{rate.frr:.1%}", f"{rate.wrong:.1%}") for rate in found.rates),
    )
    out.say(
        f"calibration error {found.ece:.3f} (with the bundle's own {found.ece_before:.3f}); names are given from a "
        f"probability of {found.naming.probability_min:g}"
    )
    out.say(
        f"bare cosines: {found.equal_error:.1%} are taken wrongly at the best threshold, {found.equal_error_cosine:.2f}"
    )


def _as_json(found: OwnCalibration, out_file: Path | None) -> dict[str, Any]:
    return {
        "people": found.num_people,
        "clips": found.num_clips,
        "trials": found.num_trials,
        "ece": found.ece,
        "ece_before": found.ece_before,
        "equal_error_rate": found.equal_error,
        "equal_error_cosine": found.equal_error_cosine,
        "thresholds": [asdict(rate) for rate in found.rates],
        "naming": asdict(found.naming),
        "out": None if out_file is None else str(out_file),
    }
