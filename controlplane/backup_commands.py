"""`speakerd backup` and `speakerd restore`, on the machine that holds the data folder."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from controlplane.backup import KEYS_DAYS, back_up
from controlplane.config import ControlPlaneSettings
from controlplane.restore import restore
from runtime.config import load

DataOption = Annotated[
    Path | None, typer.Option(help="Data folder of the control plane.", envvar="SPEAKERD_DATA", show_default=False)
]
DatabaseOption = Annotated[str | None, typer.Option(help="SQLAlchemy URL. Default: SQLite in the data folder.")]
JournalOption = Annotated[str | None, typer.Option(help="Erasure journal, if not DATA/erasure-journal.")]
ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with a table `controlplane`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("backup", help="Copy what may be kept, and apart from it the voices' keys, which may not for long.")(
        backup_command
    )
    app.command("restore", help="Bring a backup back, and nobody who was erased since.")(restore_command)


def backup_command(
    *,
    out: Annotated[Path, typer.Option(help="Folder to make: OUT/data is the backup, OUT/keys the voices' keys.")],
    data: DataOption = None,
    database_url: DatabaseOption = None,
    keys_days: Annotated[
        int, typer.Option(min=1, max=3650, help="After so many days the keys are not to be used: the erasure horizon.")
    ] = KEYS_DAYS,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy database and recordings while the daemon runs or not."""
    settings = _settings(config, data, database_url, None, accept_journal_loss=None)
    made = asyncio.run(back_up(settings, out, keys_days=keys_days, now_s=time.time()))
    if as_json:
        print(json.dumps(asdict(made)))
        return
    print(f"{made.backup_id}: {made.database}, {made.num_blobs} recordings, {made.num_keys} keys")
    print(f"the keys, in {out / 'keys'}, expire on {made.keys_expire_at[:10]}: delete them, and every copy, by then")
    for name in made.pruned:
        print(f"deleted expired keys: {name}")


def restore_command(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="What `speakerd backup --out` made.")],
    *,
    data: DataOption = None,
    keys: Annotated[Path | None, typer.Option(help="File of the voices' keys, if not DIR/keys/ID.json.")] = None,
    database_url: DatabaseOption = None,
    erasure_journal: JournalOption = None,
    accept_expired_keys: Annotated[
        bool, typer.Option("--accept-expired-keys", help="Use keys that should have been deleted.")
    ] = False,
    accept_journal_loss: Annotated[
        bool | None,
        typer.Option("--accept-journal-loss", help="Go on without the erasure journal.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore into a data folder that holds the key-encryption key and the erasure journal, and no database."""
    settings = _settings(config, data, database_url, erasure_journal, accept_journal_loss=accept_journal_loss)
    done = asyncio.run(
        restore(settings, source, keys_file=keys, accept_expired_keys=accept_expired_keys, now_s=time.time())
    )
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(f"{done.backup_id}: {done.num_keys} keys, {done.num_blobs} recordings")
    if done.num_erased:
        print(f"left out the keys of {done.num_erased} voices that were erased since")
    print("the erasure journal is replayed when the control plane starts, before its ports open")


def _settings(
    config: Path | None,
    data: Path | None,
    database_url: str | None,
    erasure_journal: str | None,
    *,
    accept_journal_loss: bool | None,
) -> ControlPlaneSettings:
    # As the rest of the command line has it; the daemon's own settings may name another one.
    default = Path.home() / ".local" / "share" / "speakerd" if config is None else None
    flags = {
        "data": data or (default if "SPEAKERD_DATA" not in os.environ else None),
        "database_url": database_url,
        "erasure_journal": erasure_journal,
        "accept_journal_loss": accept_journal_loss,
    }
    return load(ControlPlaneSettings, section="controlplane", file=config, flags=flags)
