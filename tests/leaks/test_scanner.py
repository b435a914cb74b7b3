"""The scanner finds what is planted on purpose, however it is written down; else its silence would say nothing."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from tests.leaks.scanner import Secrets, files

NAME = "Zebulon Quartermaine-Ålesund"
VECTOR = np.random.default_rng(1).standard_normal(192).astype(np.float32)
SOUND = (np.random.default_rng(2).standard_normal(16_000) * 0.2).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    made = Secrets()
    made.add_text("a name", NAME)
    made.add_vector("a voiceprint", VECTOR / np.linalg.norm(VECTOR))
    made.add_sound("sound", SOUND)
    return made


TEXTS: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda text: text.encode(),
    "in capitals": lambda text: text.upper().encode(),
    "in UTF-16": lambda text: text.encode("utf-16"),
    "in hexadecimal": lambda text: text.encode().hex().encode(),
    "in base64, after a byte": lambda text: base64.b64encode(b"x" + text.encode() + b"y"),
    "in a url": lambda text: f"GET /voices?label={quote(text)}".encode(),
    "in JSON": lambda text: json.dumps({"label": text}).encode(),
    "as Python writes bytes": lambda text: repr(text.encode()).encode(),
    "packed": lambda text: gzip.compress(b"log " + text.encode()),
}


@pytest.mark.parametrize("way", TEXTS)
def test_a_planted_name_is_found(secrets: Secrets, way: str) -> None:
    found = secrets.search({"log": b"a line before " + TEXTS[way](NAME) if way != "packed" else TEXTS[way](NAME)})
    assert {leak.what for leak in found} == {"a name"}


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
def test_a_planted_voiceprint_is_found(secrets: Secrets, kind: str) -> None:
    data = (VECTOR / np.linalg.norm(VECTOR)).astype(kind).tobytes()
    for content in (b"core" + data + b"dump", data.hex().encode(), base64.b64encode(b"ab" + data)):
        assert {leak.what for leak in secrets.search({"core": content})} == {"a voiceprint"}


def test_a_voiceprint_in_words_is_found(secrets: Secrets) -> None:
    said = str([float(value) for value in (VECTOR / np.linalg.norm(VECTOR))[:4]]).encode()
    assert [leak.what for leak in secrets.search({"error": said})] == ["a voiceprint"]


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4"])
def test_a_second_of_planted_sound_is_found(secrets: Secrets, kind: str) -> None:
    data = np.round(SOUND.astype(np.float64) * 32767).astype(kind) if "i" in kind else SOUND.astype(kind)
    piece = data[1_000:12_000].tobytes()
    assert {leak.what for leak in secrets.search({"spool": b"\0" * 13 + piece})} == {"sound"}


def test_what_lies_in_files_databases_and_archives_is_found(secrets: Secrets, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE t (x TEXT)")
        database.execute("INSERT INTO t VALUES (?)", (NAME,))
    database.close()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", NAME)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.zip").write_bytes(packed.getvalue())
    (tmp_path / f"{NAME}.wav").write_bytes(b"")
    where = {leak.where for leak in secrets.search(files(tmp_path))}
    assert where == {"a.db", "deep/a.zip!inner.txt", f"name of {NAME}.wav"}


def test_what_is_sealed_or_another_persons_is_not_found(secrets: Secrets) -> None:
    noise = np.random.default_rng(3).bytes(1 << 20)
    others = np.random.default_rng(4).standard_normal(48_000).astype("<f4").tobytes()
    assert secrets.search({"noise": noise, "others": others, "text": b"Zebulon Smith and Ada Quarter " * 99}) == []
