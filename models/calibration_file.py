"""Calibrations as files: what `speakerd calibrate` writes, and nodes and `diarize` are given with --calibration.

In comes a TOML file and a bundle; out comes the bundle with the file's [naming]. What always holds: a calibration made
with another model's embeddings is refused, and so is one with unknown or missing parameters.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

from models.bundle import AnyBundle
from models.naming import NamingParameters
from models.recalibrate import OwnCalibration
from runtime.errors import InvalidRequest, NotFound

CALIBRATION_BYTES_MAX = 64 * 1024
LATER = ("live_probability_min", "live_speech_samples")


def with_calibration(bundle: AnyBundle, path: Path) -> AnyBundle:
    """The bundle, naming as the file says. NotFound or InvalidRequest, saying what to mend."""
    if not path.is_file():
        raise NotFound(f"no calibration {path}; make one with `speakerd calibrate DIR --out {path.name}`")
    if path.stat().st_size > CALIBRATION_BYTES_MAX:
        raise InvalidRequest(f"{path} is no calibration: it is larger than {CALIBRATION_BYTES_MAX // 1024} KiB")
    try:
        table = tomllib.loads(path.read_text())
        model, said = table["calibration"]["model"], table["naming"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{path} is no calibration: {error}") from error
    wanted = f"{bundle.model_id}@{bundle.model_revision}"
    if model != wanted:
        raise InvalidRequest(
            f"{path} was made with embeddings of {model}, bundle {bundle.id} has those of {wanted}: calibrate again"
        )
    return replace(bundle, naming=_naming(said, path))


def calibration_text(found: OwnCalibration, bundle: AnyBundle) -> str:
    """A calibration as the TOML that with_calibration reads. It names nobody."""
    lines = [
        "# Made by `speakerd calibrate`; give it to nodes and to `speakerd diarize` with --calibration.",
        f"# Calibration error on people not heard: {found.ece:.3f}; with the bundle's own {found.ece_before:.3f}.",
        "[calibration]",
        f'bundle = "{bundle.id}"',
        f'model = "{bundle.model_id}@{bundle.model_revision}"',
        f"people = {found.num_people}",
        f"clips = {found.num_clips}",
        f"ece = {found.ece:.4f}",
        "",
        "[naming]",
        *(f"{name} = {value}" for name, value in asdict(found.naming).items()),
    ]
    return "\n".join(lines) + "\n"


def _naming(said: object, path: Path) -> NamingParameters:
    names = {field.name for field in fields(NamingParameters)}
    # How streams look at it was added later: a file from before has them look as recordings do.
    if not isinstance(said, dict) or {*said, *LATER} != names:
        wrong = sorted({*said, *LATER} ^ names) if isinstance(said, dict) else ["naming"]
        raise InvalidRequest(f"{path}: [naming] has missing or unknown parameters: {', '.join(wrong)[:200]}")
    for name, value in said.items():
        whole = name.endswith(("_samples", "_samples_min", "_samples_max"))
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or (whole and value < 0):
            raise InvalidRequest(
                f"{path}: {name} is {value!r}, which is no {'number of samples' if whole else 'number'}"
            )
    return NamingParameters(**said)
