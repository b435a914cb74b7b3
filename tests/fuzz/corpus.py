"""All targets by name, and their corpora: what is made of real data, and what failed once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.fuzz import rpcs, sockets, sounds, wires
from tests.fuzz.target import INPUT_BYTES_MAX, Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (wires, sounds, sockets, rpcs) for target in module.TARGETS
}


def corpus(target: Target) -> list[bytes]:
    """Seeds and what was found."""
    return [*(seed[:INPUT_BYTES_MAX] for seed in target.seeds()), *target.found()]


def write(target: Target, folder: Path) -> None:
    """The corpus as files, for a fuzzer that wants a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in corpus(target):
        (folder / hashlib.sha256(one).hexdigest()[:16]).write_bytes(one)
