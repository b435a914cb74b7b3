"""Where key-encryption keys come from: a file, the environment, or a key service behind the same seam.

Out: keys of 32 bytes, the one that wraps first, then those that still open what was wrapped before. A key service (KMS)
is an entry point of the group `speakerd.kek`: called with the settings, it gives a KekSource, for example one that asks
the service to decrypt a sealed file. Keys are asked for as the daemon starts and when they are rotated.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from controlplane.config import ControlPlaneSettings
from controlplane.secret_files import SECRET_BYTES, read_or_make_text, replace_text
from runtime.errors import Conflict, InvalidRequest

KEK_GROUP = "speakerd.kek"
FILE = "file"


class KekSource(Protocol):
    """Gives the keys, and takes a new one where it can."""

    def load(self) -> tuple[bytes, ...]:
        """The keys, the one that wraps first. Raises InvalidRequest when there is none that is whole."""
        ...

    def add_new(self) -> tuple[bytes, ...]:
        """Put a fresh key first, durably, and keep the others. Raises Conflict where keys are made elsewhere."""
        ...

    def drop_old(self) -> tuple[bytes, ...]:
        """Forget all but the first, where they are kept here."""
        ...


class FileKek:
    """A file of one key a line, base64; made when it is absent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __repr__(self) -> str:
        return f"FileKek({self._path.name})"

    def load(self) -> tuple[bytes, ...]:
        """See KekSource."""
        text = read_or_make_text(self._path, _fresh)
        return _keys(text.split(), f"{self._path.name} is damaged: restore it from your backup")

    def add_new(self) -> tuple[bytes, ...]:
        """See KekSource."""
        keys = (secrets.token_bytes(SECRET_BYTES), *self.load())
        self._store(keys)
        return keys

    def drop_old(self) -> tuple[bytes, ...]:
        """See KekSource."""
        keys = self.load()[:1]
        self._store(keys)
        return keys

    def _store(self, keys: tuple[bytes, ...]) -> None:
        replace_text(self._path, "\n".join(base64.b64encode(key).decode() for key in keys))


class GivenKek:
    """Keys that were handed over with the settings (SPEAKERD_KEK): base64, separated by commas."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "GivenKek()"

    def load(self) -> tuple[bytes, ...]:
        """See KekSource."""
        return _keys(
            self._text.replace(",", " ").split(), "SPEAKERD_KEK: write 32 bytes in base64, commas between keys"
        )

    def add_new(self) -> tuple[bytes, ...]:
        """See KekSource."""
        raise Conflict(
            "the key-encryption key comes from SPEAKERD_KEK: put the new key before the old one, with a comma, on "
            "every control plane, start them again, and rotate then"
        )

    def drop_old(self) -> tuple[bytes, ...]:
        """See KekSource."""
        return self.load()


def kek_source(settings: ControlPlaneSettings) -> KekSource:
    """The source that the settings name. Raises InvalidRequest."""
    if settings.kek is not None:
        return GivenKek(settings.kek.get_secret_value())
    if settings.kek_source == FILE:
        return FileKek(settings.kek_file or settings.data / "kek.key")
    for point in entry_points(group=KEK_GROUP, name=settings.kek_source):
        source: KekSource = point.load()(settings)
        return source
    raise InvalidRequest(f"kek_source: no installed package gives {settings.kek_source!r} in the group {KEK_GROUP}")


def _fresh() -> str:
    return base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def _keys(texts: list[str], complaint: str) -> tuple[bytes, ...]:
    try:
        keys = tuple(base64.b64decode(text, validate=True) for text in texts)
    except binascii.Error:
        keys = ()
    if not keys or any(len(key) != SECRET_BYTES for key in keys):
        raise InvalidRequest(complaint)
    return keys
