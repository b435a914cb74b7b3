"""`python -m tests.leaks FOLDER`: search what the daemons of a run of the suite wrote (`pytest --basetemp FOLDER`).

Each data folder below is opened with its own keys; keys, names and voiceprints that are found so are looked for in
everything that any daemon wrote there: data folders, logs, temporary files. Exits with 1 when something is found.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import SpeakerdError
from tests.leaks.deployment import SECRET_FILES, opened
from tests.leaks.scanner import WORD, Secrets

LOGS = (".log", ".err", ".out", ".stderr")


def deployments(root: Path) -> list[Path]:
    """Every data folder."""
    return sorted({path.parent for path in root.rglob("kek.key") if not path.parent.is_symlink()})


def secrets_of(folders: list[Path]) -> tuple[Secrets, int]:
    """What they hold in secret, and how many voices that is."""
    secrets, num_voices = Secrets(), 0
    for data in folders:
        for name in SECRET_FILES:
            path = data / name
            if path.is_file() and len(text := path.read_text(errors="replace").strip()) >= 2 * WORD:
                secrets.add_text(f"{name} of {data.parent.name}", text)
        try:
            people = opened(data)
        except (sqlite3.Error, SpeakerdError, ValueError, OSError):
            continue  # damaged on purpose, or of another key
        for one in people:
            num_voices += 1
            if len(one.label) > WORD:
                secrets.add_text(f"the name of {one.voice_id}", one.label)
            secrets.add_vector(f"the voiceprint of {one.voice_id}", one.embedding)
    return secrets, num_voices


def written(root: Path, folders: list[Path]) -> Iterator[tuple[str, bytes]]:
    """What daemons wrote: their folders, logs, and what is called as they call it."""
    inside = tuple(folders)
    for path in root.rglob("*"):
        if not path.is_file() or path.is_symlink() or path.name in SECRET_FILES:
            continue
        ours = any(path.is_relative_to(folder) for folder in inside)
        if ours or path.suffix in LOGS or path.name.startswith(("core", "speakerd-")):
            yield str(path.relative_to(root)), path.read_bytes()


def main(root: Path) -> int:
    """Search, and tell."""
    folders = deployments(root)
    secrets, num_voices = secrets_of(folders)
    contents = list(written(root, folders))
    leaks = secrets.search(contents)
    num_bytes = sum(len(content) for _, content in contents)
    print(
        f"{len(folders)} data folders, {num_voices} voices, {len(secrets)} needles; "
        f"{len(contents)} files of {num_bytes >> 20} MiB searched: {len(leaks)} leaks"
    )
    for leak in leaks:
        print(f"{leak.what}: {leak.where}")
    return 1 if leaks or not folders else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
