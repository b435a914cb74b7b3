"""What the engine adds to the command `speakerd`: `models list|verify`, `calibrate`.

The command line finds it through an entry point and imports nothing of ours itself. Importing this module does not load
torch.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from models.bundle import AnyBundle, list_bundles, load_bundle
from models.calibrate_command import calibrate
from runtime.errors import SpeakerdError, Unavailable
from speakerd.cli.output import JsonFlag, Output


def register(app: typer.Typer) -> None:
    """Add `speakerd models` and `speakerd calibrate`."""
    models = typer.Typer(no_args_is_help=True, help="Bundles of weights: what is there, and whether it is intact.")
    models.command("list")(list_models)
    models.command("verify")(verify_models)
    app.add_typer(models, name="models")
    app.command("calibrate")(calibrate)


def list_models(*, as_json: JsonFlag = False) -> None:
    """List the bundles that this installation brings."""
    out = Output(as_json=as_json)
    bundles = [load_bundle(name) for name in list_bundles()]
    out.table(
        ("bundle", "revision", "voiceprints of", "window", "step"),
        (
            (bundle.id, bundle.revision, _model(bundle), f"{_seconds(bundle)[0]} s", f"{_seconds(bundle)[1]} s")
            for bundle in bundles
        ),
    )
    out.result(
        {
            "bundles": [
                {"id": bundle.id, "revision": bundle.revision, "model": _model(bundle), "weights": list(bundle.weights)}
                for bundle in bundles
            ]
        }
    )


def verify_models(
    name: Annotated[str | None, typer.Argument(metavar="[BUNDLE]", help="Default: every bundle.")] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Check the weights of bundles against the digests that they are pinned to, and name the devices there are."""
    out = Output(as_json=as_json)
    found = [_verified(load_bundle(bundle)) for bundle in ([name] if name else list_bundles())]
    with out.working("looking for devices"):
        devices = _devices()
    for bundle in found:
        for weights in bundle["weights"]:
            line = f"{bundle['id']}  {weights['name']:16} {weights['sha256'][:16]}…"
            out.say(
                f"{line}  ok" if weights["ok"] else f"{line}  {weights['problem']}",
                style="" if weights["ok"] else "red",
            )
    out.say(f"devices: {', '.join(devices)}")
    out.result({"bundles": found, "devices": devices})
    bad = [weights for bundle in found for weights in bundle["weights"] if not weights["ok"]]
    if bad and not as_json:
        raise Unavailable(f"{len(bad)} of the weights cannot be used: install the packages that bring them again")
    if bad:
        raise typer.Exit(1)


def _verified(bundle: AnyBundle) -> dict[str, Any]:
    checked = []
    for name, weights in bundle.weights.items():
        row: dict[str, Any] = {"name": name, "sha256": weights.sha256, "ok": True}
        try:
            weights.verified_path()
        except SpeakerdError as error:
            row |= {"ok": False, "problem": str(error)}
        checked.append(row)
    return {"id": bundle.id, "revision": bundle.revision, "model": _model(bundle), "weights": checked}


def _devices() -> list[str]:
    """What torch can run on: "cpu", "cuda:0 (NAME)", ..."""
    import torch

    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return ["cpu", *(f"cuda:{card} ({torch.cuda.get_device_name(card)})" for card in cards)]


def _model(bundle: AnyBundle) -> str:
    return f"{bundle.model_id}@{bundle.model_revision}"


def _seconds(bundle: AnyBundle) -> tuple[float, float]:
    from runtime.units import seconds_from_samples

    return seconds_from_samples(bundle.grid.window_samples), seconds_from_samples(bundle.grid.hop_samples)
