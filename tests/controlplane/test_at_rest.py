"""What lies on disk, in Redis, in logs and metrics tells nobody's name, voice or voiceprint, before erasure or after.

A whole control plane runs as a process; known names, known sound and known embeddings are enrolled; then everything
that it has written is searched, as text and as bytes in every encoding that they might have been written in.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from controlplane.keys import KeyRing, VoiceAddress
from controlplane.secret_files import read_or_make_text
from speakerd.administration import Administration
from speakerd.client import Client
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import speech, until, wav
from tests.controlplane.fake_node import FakeNode, embedding_of

NAMES = ("Zebulon Quartermaine", "Xanthippe Oglethorpe")
CONSENTS = ("Zebulon Ptolemy Quartermaine the Third", "for the quarterly palaver", "I hereby concur wholeheartedly")
SUBJECT = "badge-number-7741"
DESCRIPTION = "a sonorous baritone from Saskatoon"


class Daemon:
    """`speakerd controlplane`, all that it says on its standard streams kept."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data.parent / "control.log"
        self.process: asyncio.subprocess.Process | None = None
        self.grpc = self.http = ""

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "speakerd", "controlplane", "--data", str(self.data), "--log-level", "debug"),
                *("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line = (await self.process.stdout.readline()).decode()
        words = dict(word.split("=", 1) for word in line.split()[1:])
        self.grpc, self.http = words["grpc"], words["http"]

    async def stop(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()


def needles(text: str) -> set[bytes]:
    """A text as it might have been written."""
    plain = text.encode()
    found = {plain, text.encode("utf-16-le"), plain.hex().encode(), base64.b64encode(plain)[:-4]}
    return found | {plain.lower(), plain.upper()}


def sound_needles(data: bytes) -> set[bytes]:
    """Pieces of sound or of a vector, as bytes, in hexadecimal and in base64."""
    pieces = {data[start : start + 24] for start in range(64, len(data) - 24, max(24, len(data) // 40))}
    pieces = {piece for piece in pieces if len(set(piece)) > 8}
    encoded = {base64.b64encode(data[start : start + 24]) for start in range(66, len(data) - 24, len(data) // 20)}
    return pieces | {piece.hex().encode() for piece in pieces} | encoded


async def written(daemon: Daemon) -> dict[str, bytes]:
    """Everything: files of the data folder, log, Redis, metrics."""
    found = {str(path): path.read_bytes() for path in daemon.data.rglob("*") if path.is_file()}
    found["log"] = daemon.log.read_bytes()
    sockets = [path for path in daemon.data.rglob("*") if path.is_socket()]
    if sockets:
        redis = Redis(unix_socket_path=str(sockets[0]))
        for key in redis.scan_iter("*"):
            found[f"redis {key!r}"] = key + bytes(redis.dump(key) or b"") + _content(redis, key)
        redis.close()
    reader, writer = await asyncio.open_connection(*daemon.http.removeprefix("http://").split(":"))
    writer.write(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
    found["metrics"] = await reader.read()
    writer.close()
    assert b"cp_enrolments" in found["metrics"]
    return found


def _content(redis: Redis, key: bytes) -> bytes:
    kind = redis.type(key)
    if kind == b"hash":
        return b" ".join(part for pair in redis.hgetall(key).items() for part in pair)
    return bytes(redis.get(key) or b"") if kind == b"string" else b""


def search(found: dict[str, bytes], wanted: set[bytes]) -> list[str]:
    return sorted({where for where, content in found.items() if any(needle in content for needle in wanted)})


async def test_names_sound_and_voiceprints_are_in_the_clear_nowhere_and_after_erasure_nothing_yields_them(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    daemon = Daemon(data)
    await daemon.start()
    node = None
    try:
        key = (data / "admin.key").read_text().strip()
        node = await FakeNode("node-1", daemon.grpc, (data / "fleet.key").read_text().strip()).start()
        async with Client(daemon.grpc, key) as client, Administration(daemon.grpc, key) as admin:
            await until(lambda: node.incarnation)
            sounds = [wav(speech(seed)) for seed in (11, 12)]
            ids = []
            for name, sound in zip(NAMES, sounds, strict=True):
                spec = people_pb2.VoiceSpec(
                    label=name,
                    subject=SUBJECT,
                    consent=people_pb2.Consent(full_name=CONSENTS[0], purpose=CONSENTS[1], text=CONSENTS[2]),
                    details=people_pb2.VoiceDetails(description=DESCRIPTION),
                )
                ids.append((await client.enroll_as(spec, [sound])).voice.voice_id)
            await until(lambda: len(node.voices) == 2)
            embeddings = [embedding for _, _, embedding in node.voices.values()]
            assert len({*embeddings}) == 2 and len(embeddings[0]) == len(embedding_of(b""))
            assert {voice.label for voice in await client.voices()} == set(NAMES)
            # Errors have texts, and labels are asked for: neither may leave a trace.
            assert not await client.voices(label=f"{NAMES[0]} Junior")
            with pytest.raises(Exception, match="no such voice"):
                await client.voice(NAMES[0].replace(" ", "-"))
            texts = set().union(*(needles(text) for text in (*NAMES, *CONSENTS, SUBJECT, DESCRIPTION)))
            # A word of each is enough to tell who it is.
            texts |= {b"Quartermaine", b"quartermaine", b"Oglethorpe", b"oglethorpe", b"Saskatoon"}
            bytes_of = set().union(*(sound_needles(part) for part in (*sounds, *embeddings)))
            floats = {f"{value:.6f}".encode() for part in embeddings for value in np.frombuffer(part, "<f4")[:8]}
            before = await written(daemon)
            assert any("blobs" in where for where in before) and any(where.endswith("-wal") for where in before)
            assert any(where.startswith("redis") for where in before)
            assert search(before, texts) == []
            assert search(before, bytes_of | floats) == []
            keys_before = wrapped_keys(data, before)
            assert len(keys_before) == 2
            for voice_id in ids:
                assert (await client.erase(voice_id, wait_s=20.0)).state == people_pb2.Erasure.STATE_ERASED

            async def swept() -> bool:
                return not list((data / "blobs" / "samples").iterdir())

            await until(swept, 20.0)
            assert not any(key.revoked_at.seconds for key in await admin.keys())
            after = await written(daemon)
        assert search(after, texts | bytes_of | floats) == []
        # Not a byte of the voices' wrapped keys is left, so that what was copied of their ciphertexts stays shut.
        ring = KeyRing(base64.b64decode(read_or_make_text(data / "kek.key", lambda: "never")))
        for voice, wrapped in keys_before.items():
            ring.open(voice, wrapped)
            assert search(after, {wrapped, wrapped[12:36], wrapped.hex().encode()}) == []
        assert wrapped_keys(data, after) == {}
    finally:
        if node is not None:
            await node.stop()
        await daemon.stop()


def wrapped_keys(data: Path, found: dict[str, bytes]) -> dict[VoiceAddress, bytes]:
    """The wrapped data keys, read from a copy of the database as it was."""
    copy = data.parent / f"copy-{len(list(data.parent.iterdir()))}"
    copy.mkdir()
    for name in ("speakerd.db", "speakerd.db-wal"):
        if (content := found.get(str(data / name))) is not None:
            (copy / name).write_bytes(content)
    connection = sqlite3.connect(copy / "speakerd.db")
    try:
        rows = connection.execute("SELECT tenant_id, voice_id, wrapped FROM data_keys").fetchall()
        return {VoiceAddress(tenant_id, voice_id): bytes(wrapped) for tenant_id, voice_id, wrapped in rows}
    finally:
        connection.close()
