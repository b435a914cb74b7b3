"""What the engine adds to the command `speakerd`: `models list|pull|import|verify`, `calibrate`.

The command line finds it through an entry point and imports nothing of ours itself. Importing this module does not load
torch.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from models.bundle import AnyBundle, list_bundles, list_published, load_bundle, models_folder
from models.calibrate_command import calibrate
from runtime.errors import SpeakerdError, Unavailable
from runtime.units import seconds_from_samples
from speakerd.cli.output import JsonFlag, Output

ReplaceFlag = Annotated[bool, typer.Option("--replace", help="Take the place of a bundle of that name.")]


def register(app: typer.Typer) -> None:
    """Add `speakerd models` and `speakerd calibrate`."""
    models = typer.Typer(no_args_is_help=True, help="Bundles of weights: what is there, and whether it is intact.")
    models.command("list")(list_models)
    models.command("pull")(pull_model)
    models.command("import")(import_model)
    models.command("verify")(verify_models)
    app.add_typer(models, name="models")
    app.command("calibrate")(calibrate)


def list_models(*, as_json: JsonFlag = False) -> None:
    """List the bundles of this installation, and those that can be pulled or imported."""
    out = Output(as_json=as_json)
    rows = [_listed(name) for name in list_bundles()]
    absent = [name for name in list_published() if name not in {row["id"] for row in rows}]
    rows += [{"id": name, "state": "not here: pull or import it"} for name in absent]
    out.table(
        ("bundle", "state", "revision", "voiceprints of", "window", "step"),
        ([str(row.get(key, "")) for key in ("id", "state", "revision", "model", "window", "step")] for row in rows),
    )
    out.note(f"imported bundles live in {models_folder()}")
    out.result({"bundles": rows, "folder": str(models_folder())})


def pull_model(
    name: Annotated[str, typer.Argument(metavar="BUNDLE", help="community-1 or 3.1.")],
    *,
    save_as: Annotated[str, typer.Option("--as", metavar="NAME", help="Call it so. Default: its own name.")] = "",
    revision: Annotated[str, typer.Option(help="Commit of its repository. Default: the newest.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(help="File with your token of the hub. Default: $HF_TOKEN.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="The hub, or a mirror of it.")] = "https://huggingface.co",
    replace: ReplaceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fetch a bundle from its publisher's hub with your token, and import it.

    You accept its conditions on its page first. Machines without a network take a copy with `speakerd models import`.
    """
    from models.bundle_hub import HuggingFaceHub, fetch_bundle, read_token
    from models.bundle_import import check_name, import_bundle

    out = Output(as_json=as_json)
    check_name(save_as or name, replace=replace)
    hub = HuggingFaceHub(read_token(token_file), endpoint)
    with tempfile.TemporaryDirectory(prefix="speakerd-pull-") as scratch:
        commit = fetch_bundle(hub, name, Path(scratch), lambda file: out.note(f"fetching {file}"), revision)
        with out.working("importing"):
            bundle = import_bundle(
                Path(scratch), save_as or name, replace=replace, revision=commit, origin=f"{endpoint} {name}@{commit}"
            )
    _tell(bundle, out)


def import_model(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|TARBALL", help="A copy of a pyannote pipeline's repository.")
    ],
    *,
    save_as: Annotated[str, typer.Option("--as", metavar="NAME", help="Call it so. Default: the source's name.")] = "",
    replace: ReplaceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Import a pyannote pipeline from disk: config.yaml, its networks, its PLDA. Needs no network.

    Checkpoints are read without running anything of them, and kept as safetensors with their digests.
    """
    from models.bundle_import import check_name, import_bundle

    out = Output(as_json=as_json)
    name = save_as or _name_of(source)
    check_name(name, replace=replace)
    with out.working(f"importing {source.name} as {name}"):
        bundle = import_bundle(source, name, replace=replace, origin=source.name)
    _tell(bundle, out)


def verify_models(
    name: Annotated[str | None, typer.Argument(metavar="[BUNDLE]", help="Default: every bundle.")] = None,
    *,
    as_json: JsonFlag = False,
) -> None:
    """Check the weights of bundles against the digests that they are pinned to, and name the devices there are."""
    out = Output(as_json=as_json)
    found = [_verified(load_bundle(name))] if name else [_verified_or_why_not(bundle) for bundle in list_bundles()]
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
    out.result({"bundles": found, "devices": devices, "device_memory": _device_memory()})
    bad = [weights for bundle in found for weights in bundle["weights"] if not weights["ok"]]
    if bad and not as_json:
        raise Unavailable(
            f"{len(bad)} of the weights cannot be used: install the packages that bring them again, or import again"
        )
    if bad:
        raise typer.Exit(1)


def _listed(name: str) -> dict[str, Any]:
    try:
        bundle = load_bundle(name)
    except SpeakerdError as error:
        return {"id": name, "state": f"broken: {error}"}
    window_s, step_s = seconds_from_samples(bundle.grid.window_samples), seconds_from_samples(bundle.grid.hop_samples)
    return {
        "id": name,
        "state": "ready",
        "revision": bundle.revision,
        "model": _model(bundle),
        "window": f"{window_s:g} s",
        "step": f"{step_s:g} s",
        "weights": list(bundle.weights),
    }


def _name_of(source: Path) -> str:
    """A name for what is imported: the file's or folder's own, as far as names go."""
    stem = re.sub(r"\.(tar(\.\w+)?|tgz|txz)$", "", source.resolve().name)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:64] or "imported"


def _tell(bundle: AnyBundle, out: Output) -> None:
    out.say(f"imported as {bundle.id}: use it with --bundle {bundle.id}", style="green")
    for name, weights in bundle.weights.items():
        out.say(f"  {name:16} {weights.sha256[:16]}…")
    out.say("  names people with a calibration that was not fitted on it: see `speakerd calibrate`", style="yellow")
    out.result(
        {
            "id": bundle.id,
            "revision": bundle.revision,
            "model": _model(bundle),
            "folder": str(models_folder() / bundle.id),
            "weights": {name: weights.sha256 for name, weights in bundle.weights.items()},
        }
    )


def _verified_or_why_not(name: str) -> dict[str, Any]:
    try:
        return _verified(load_bundle(name))
    except SpeakerdError as error:
        broken = {"name": "manifest", "sha256": "", "ok": False, "problem": str(error)}
        return {"id": name, "weights": [broken]}


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


def _device_memory() -> dict[str, tuple[int, int]]:
    """Bytes free and in all of each card."""
    import torch

    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return {f"cuda:{card}": torch.cuda.mem_get_info(card) for card in cards}


def _model(bundle: AnyBundle) -> str:
    return f"{bundle.model_id}@{bundle.model_revision}"
