"""Finds secrets in bytes, however they were written down.

In: secrets, and contents by where they lie. Out: which secret lies where. What always holds: a text is found as it is,
in upper and lower case, in UTF-16, in hexadecimal, in base64 at any alignment, escaped in JSON and in urls; sound and
vectors by pieces of them, as integers, floats of any width and in the encodings of bytes; archives and compressed
files are looked into.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

import numpy as np

WORD = 8
"""Needles begin with so many bytes, by which they are looked up."""
PIECE_BYTES = 24
PIECES = 60
UNPACKED_MAX = 256 << 20


@dataclass(frozen=True)
class Leak:
    """A secret where it must not be."""

    what: str
    where: str


class Secrets:
    """What is looked for."""

    def __init__(self) -> None:
        self._needles: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._needles)

    def add_text(self, what: str, text: str) -> None:
        """A name, a key, a sentence: at least WORD characters, as short ones are found everywhere."""
        assert len(text) >= WORD, "too short to be told from chance"
        for form in {text, text.lower(), text.upper()}:
            plain = form.encode()
            spelled = {plain, form.encode("utf-16-le"), form.encode("utf-16-be"), form.encode("latin-1", "replace")}
            spelled |= {json.dumps(form)[1:-1].encode(), quote(form).encode(), quote_plus(form).encode()}
            spelled |= {repr(plain)[2:-1].encode()}
            for one in spelled | _encoded(plain):
                self._add(one, what)

    def add_bytes(self, what: str, data: bytes) -> None:
        """Pieces of data, as bytes, in hexadecimal and base64. Pieces that say little are passed over."""
        last = max(1, len(data) - PIECE_BYTES)
        for start in range(0, last, max(1, last // PIECES)):
            piece = data[start : start + PIECE_BYTES]
            if len(piece) >= WORD and len(set(piece)) > WORD:
                for one in {piece, *_encoded(piece)}:
                    self._add(one, what)

    def add_sound(self, what: str, samples: np.ndarray) -> None:
        """Samples (N,) in [-1, 1]: as 16-bit integers of both orders, and floats."""
        scaled = np.asarray(samples, np.float64) * 32767
        for whole in (np.round(scaled), np.trunc(scaled)):
            for data in (whole.astype("<i2"), whole.astype(">i2"), (whole / 32768).astype("<f4")):
                self.add_bytes(what, data.tobytes())
        self.add_bytes(what, np.asarray(samples, "<f4").tobytes())

    def add_vector(self, what: str, vector: np.ndarray) -> None:
        """An embedding (D,): floats of each width, and as text."""
        for kind in ("<f2", "<f4", "<f8", ">f4"):
            self.add_bytes(what, vector.astype(kind).tobytes())
        for value in np.asarray(vector, np.float32)[:32]:
            for text in (repr(float(value)), str(value), f"{value:.6f}", f"{value:.8f}"):
                if len(text.lstrip("-0.")) >= 6 and len(text) >= WORD:
                    self._add(text.encode(), what)

    def search(self, contents: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> list[Leak]:
        """Every secret that is found, once for each place."""
        by_word: dict[int, list[bytes]] = {}
        for needle in self._needles:
            by_word.setdefault(int.from_bytes(needle[:WORD], "little"), []).append(needle)
        words = np.array(sorted(by_word), np.uint64)
        found: set[Leak] = set()
        pairs = contents.items() if isinstance(contents, Mapping) else contents
        for where, content in pairs:
            for name, plain in unpacked(where, content):
                for at in _places(plain, words):
                    word = int.from_bytes(plain[at : at + WORD], "little")
                    for needle in by_word[word]:
                        if plain.startswith(needle, at):
                            found.add(Leak(self._needles[needle], name))
        return sorted(found, key=lambda leak: (leak.where, leak.what))

    def _add(self, needle: bytes, what: str) -> None:
        if len(needle) >= WORD:
            self._needles.setdefault(needle, what)


def _encoded(plain: bytes) -> set[bytes]:
    """In hexadecimal, and in base64 wherever it may begin within three bytes."""
    forms = {plain.hex().encode(), plain.hex().upper().encode()}
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + plain)
        # What is mixed with the bytes before and after it is cut off.
        inner = encoded[(4 if shift else 0) : len(encoded) - 4]
        forms |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in forms if len(form) >= WORD}


def _places(content: bytes, words: np.ndarray) -> Iterator[int]:
    """Where one of these words of eight bytes begins."""
    for shift in range(WORD):
        count = (len(content) - shift) // WORD
        if count > 0:
            here = np.frombuffer(content, "<u8", count, shift)
            index = np.searchsorted(words, here)
            index[index == len(words)] = 0
            yield from (shift + WORD * int(at) for at in np.nonzero(words[index] == here)[0])


def unpacked(where: str, content: bytes, depth: int = 3) -> Iterator[tuple[str, bytes]]:
    """The content, and what is inside of it, should it be packed."""
    yield where, content
    if depth == 0 or len(content) < 4:
        return
    inner: list[tuple[str, bytes]] = []
    try:
        if content[:2] == b"\x1f\x8b":
            inner.append(("gunzipped", gzip.decompress(content)))
        elif content[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                inner += [(name, archive.read(name)) for name in archive.namelist()]
        elif content[:1] == b"\x78" and content[1:2] in b"\x01\x5e\x9c\xda":
            inner.append(("inflated", zlib.decompressobj().decompress(content, UNPACKED_MAX)))
        elif content[257:262] == b"ustar":
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    inner.append((member.name, file.read() if file else b""))
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError):
        return
    for name, plain in inner:
        yield from unpacked(f"{where}!{name}", plain, depth - 1)


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and its name, which may tell something as well."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        yield f"name of {name}", str(path.name).encode()
        if path.is_file() and not path.is_symlink():
            yield name, path.read_bytes()
