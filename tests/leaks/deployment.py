"""What a data folder holds in secret, opened with the deployment's own keys: what a scan then looks for elsewhere."""

from __future__ import annotations

import base64
import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controlplane.keys import KeyRing, VoiceAddress

SECRET_FILES = frozenset({"admin.key", "fleet.key", "kek.key", "audit.key"})
DATABASE = "speakerd.db"


@dataclass(frozen=True)
class Person:
    """An enrolled voice in the clear. embedding: (D,) float32."""

    voice_id: str
    label: str
    embedding: np.ndarray


def opened(data: Path) -> list[Person]:
    """The voices of a data folder with SQLite, read from a copy; [] where there is no database yet."""
    if not (data / DATABASE).is_file():
        return []
    ring = KeyRing(base64.b64decode((data / "kek.key").read_text()))
    with tempfile.TemporaryDirectory() as folder:
        for name in (DATABASE, f"{DATABASE}-wal"):
            if (data / name).exists():
                shutil.copy(data / name, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / DATABASE)) as connection:
            rows = connection.execute(
                "SELECT p.tenant_id, p.voice_id, p.model, p.generation, p.ciphertext, k.wrapped, v.label_ciphertext "
                "FROM voiceprints p JOIN data_keys k ON k.tenant_id = p.tenant_id AND k.voice_id = p.voice_id "
                "JOIN voices v ON v.tenant_id = p.tenant_id AND v.voice_id = p.voice_id"
            ).fetchall()
    found = []
    for tenant_id, voice_id, model, generation, ciphertext, wrapped, label in rows:
        key = ring.open(VoiceAddress(tenant_id, voice_id), wrapped)
        embedding = np.frombuffer(key.decrypt(ciphertext, "voiceprint", generation, model), "<f4")
        found.append(Person(voice_id, key.decrypt(label, "label").decode() if label else "", embedding))
    return found
