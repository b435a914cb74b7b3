"""Keys that lie in the data folder, each in a file of its own, readable by its owner alone.

A missing one is made; one that others can read is refused, because it may be known already.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import InvalidRequest

SECRET_BYTES = 32


@contextmanager
def only_ours() -> Iterator[None]:
    """What is written meanwhile is its user's alone, whatever the folders permit."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def prepare_data_folder(data: Path) -> None:
    """Make the data folder, for its owner alone. Raises InvalidRequest when it cannot be made or written."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidRequest(f"cannot make the data folder {data}: {error.strerror}") from None
    if not os.access(data, os.W_OK | os.X_OK):
        raise InvalidRequest(f"cannot write into the data folder {data}: give it to the user that runs this")


def read_or_make_text(path: Path, make: Callable[[], str]) -> str:
    """The text of a secret file, written whole and durably before it is relied on: a crash leaves all of it or none."""
    if not path.exists():
        _write(path, make())
    if path.stat().st_mode & 0o077:
        raise InvalidRequest(f"{path.name} can be read by other users: replace it, or chmod 600 it")
    text = path.read_text().strip()
    if not text:
        raise InvalidRequest(f"{path.name} is empty: restore it from your backup")
    return text


def read_or_make_bytes(path: Path) -> bytes:
    """32 random bytes, base64 on disk."""
    text = read_or_make_text(path, lambda: base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error:
        value = b""
    if len(value) != SECRET_BYTES:
        raise InvalidRequest(f"{path.name} is damaged: restore it from your backup")
    return value


def replace_text(path: Path, text: str) -> None:
    """Put a text in the place of a secret file's, whole and durably."""
    _temporary(path, text).replace(path)
    _settle(path.parent)


def _write(path: Path, text: str) -> None:
    temporary = _temporary(path, text)
    try:
        # Unlike a rename, a link never takes the place of what another process has just written and relies on.
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:
        temporary.replace(path)  # a file system without links
    temporary.unlink(missing_ok=True)
    _settle(path.parent)


def _temporary(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(number, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _settle(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
