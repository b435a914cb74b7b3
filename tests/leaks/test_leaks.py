"""Real daemons are used in every way, well and badly, killed and started again; then all that they wrote is searched.

Planted are names, consents, sound, voiceprints and keys. Keys may lie in the files of keys, and what is encrypted is
not found; beyond that they lie nowhere: not in logs at their most talkative, metrics, error answers, the database and
its log, Redis, blobs, temporary files, or cores (docs/privacy.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

from speakerd.client import Client
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import wav
from tests.edge.scai import ECHO, SPEAK
from tests.leaks.deployment import SECRET_FILES, opened
from tests.leaks.scanner import Secrets, files
from tests.speakerd.running import ADA, BOB, RATE, READY_S, environment, tones

NAMES = ("Zebulon Quartermaine", "Xanthippe Oglethorpe", "Balthasar Wriothesley")
CONSENT = {
    "consent_user_full_name": "Zebulon Ptolemy Quartermaine the Third",
    "consent_stated_purpose": "for the quarterly palaver of Saskatoon",
    "consent_text": "I hereby concur wholeheartedly with all of it",
}
SUBJECT = "badge-number-77412"
WORDS = ("Quartermaine", "Oglethorpe", "Wriothesley", "Saskatoon")
ENDS = ("succeeded", "failed", "canceled")
CAROL = (700.0, 1100.0, 2700.0)


class Up:
    """`speakerd up` whose every word is kept, with a folder for temporary files of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.temporary = root, root / "data", root / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.log = root / "daemons.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.words: dict[str, str] = {}

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "speakerd", "up", "--data", str(self.data), "--device", "null"],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.root,
                env={**environment(), "TMPDIR": str(self.temporary), "SPEAKERD_LOG_LEVEL": "debug"},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("ready "), self.log.read_text()[-3_000:]
        self.words = dict(word.split("=", 1) for word in line.split()[1:])

    def end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=READY_S)
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def key(self) -> str:
        return (self.data / "admin.key").read_text().strip()

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Everything, the key files themselves aside."""
        for name, content in files(self.root):
            if Path(name).name not in SECRET_FILES:
                yield name, content
        said = self.data / "redis" / "socket"
        redis = Redis(unix_socket_path=said.read_text().strip())
        for key in redis.scan_iter("*"):
            yield f"redis {key!r}", key + b" " + bytes(redis.dump(key) or b"") + _content(redis, key)
        redis.close()


def _content(redis: Redis, key: bytes) -> bytes:
    kind = redis.type(key)
    if kind == b"hash":
        return repr(redis.hgetall(key)).encode()
    if kind == b"zset":
        return repr(redis.zrange(key, 0, -1)).encode()
    if kind == b"stream":
        return repr(redis.xrange(key)).encode()
    return bytes(redis.get(key) or b"") if kind == b"string" else b""


@pytest.fixture
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    made = Up(tmp_path_factory.mktemp("leaks"))
    made.start()
    try:
        yield made
    finally:
        made.end(signal.SIGTERM)


async def use_well(up: Up, said: dict[str, bytes]) -> list[str]:
    """People are enrolled, heard and named in every dialect. Gives the ids of voices; `said` takes what others see."""
    ids: list[str] = []
    async with Client(up.words["grpc"], up.key) as client, _http(up) as http:
        spec = people_pb2.VoiceSpec(
            label=NAMES[0],
            subject=SUBJECT,
            consent=people_pb2.Consent(full_name=NAMES[0], purpose="palaver", text=CONSENT["consent_text"]),
            details=people_pb2.VoiceDetails(description="a baritone from Saskatoon"),
        )
        ids.append((await client.enroll_as(spec, [wav(tones(6.0, *ADA))])).voice.voice_id)
        form = {"display_name": NAMES[1], "language_primary": "en", **CONSENT}
        sound = {"reference": ("r.wav", wav(tones(6.0, *BOB)), "audio/wav")}
        sound["consent"] = ("c.wav", wav(tones(5.0, *BOB)), "audio/wav")
        answer = await http.post(f"{ECHO}/speakers", data=form, files=sound)
        assert answer.status_code == 201, answer.text
        ids.append(answer.json()["data"]["id"])
        media = "media://palaver/one.wav"
        talk = wav(np.concatenate([tones(5.0, *ADA), tones(5.0, *BOB), tones(5.0, *CAROL)]))
        put = (await http.post("/v1/media/input", json={"url": media})).json()["url"]
        assert (await http.put(put, content=talk)).is_success
        assert (await _ended(http, "diarize", {"url": media}))["status"] == "succeeded"
        alone = "media://palaver/alone.wav"
        put = (await http.post("/v1/media/input", json={"url": alone})).json()["url"]
        assert (await http.put(put, content=wav(tones(6.0, *CAROL)))).is_success
        blob = (await _ended(http, "voiceprint", {"url": alone}))["output"]["voiceprint"]
        sent = [{"label": NAMES[2], "voiceprint": blob}]
        assert NAMES[2] in json.dumps(await _ended(http, "identify", {"url": media, "voiceprints": sent}))
        async with await client.open_stream() as stream:
            data = (np.concatenate([tones(5.0, *ADA), tones(5.0, *BOB)]) * 32767).astype("<i2").tobytes()

            async def send() -> None:
                for at in range(0, len(data), RATE // 2):
                    await stream.send(data[at : at + RATE // 2])
                await stream.finish()

            sending = asyncio.create_task(send())
            events = [event async for event in stream]
            await sending
        assert NAMES[0] in str(events), "the stream named nobody"
        said["metrics"] = (await http.get("/metrics")).content
    return ids


async def _ended(http: httpx.AsyncClient, call: str, body: dict[str, Any]) -> Any:
    answer = await http.post(f"/v1/{call}", json=body)
    assert answer.is_success, answer.text
    async with asyncio.timeout(60):
        while (job := (await http.get(f"/v1/jobs/{answer.json()['jobId']}")).json())["status"] not in ENDS:
            await asyncio.sleep(0.1)
    return job


async def use_badly(up: Up, said: dict[str, bytes]) -> None:
    """What is refused is refused in words of ours; another tenant's caller learns nothing by any of it."""
    noise = np.random.default_rng(9).bytes(4_000)
    async with _http(up) as http, _http(up, "sk_0123456789ab_nobody-has-this-key-at-all") as stranger:
        form = {"display_name": "x" * 900, **CONSENT}
        broken = {"reference": ("Quartermaine.wav", noise, "audio/wav"), "consent": ("c.wav", noise, "audio/wav")}
        calls = [
            http.post(f"{ECHO}/speakers", data=form, files=broken),
            http.post(f"{SPEAK}/voices", data={"display_name": NAMES[2], **CONSENT}, files=broken),
            http.get(f"/v1/jobs/{NAMES[1]}"),
            http.post("/v1/diarize", content=b'{"url": "' + NAMES[2].encode() + b'", '),
            stranger.get(f"{ECHO}/speakers?name={NAMES[0]}"),
            stranger.post("/v1/diarize", json={"url": f"https://example.invalid/{NAMES[1]}"}),
            http.get(f"/{NAMES[1]}"),
        ]
        for number, answer in enumerate(await asyncio.gather(*calls)):
            assert 400 <= answer.status_code < 500, (number, answer.text)
        said["metrics after errors"] = (await http.get("/metrics")).content
    async with Client(up.words["grpc"], up.key) as client:
        for label, sound in ((NAMES[2], noise), (NAMES[2] * 40, wav(tones(6.0, *CAROL)))):
            with pytest.raises(Exception) as refused:
                await client.enroll_as(people_pb2.VoiceSpec(label=label), [sound])
            said[f"error {len(said)}"] = str(refused.value).encode()
        with pytest.raises(Exception) as missing:
            await client.voice(NAMES[1].replace(" ", "-"))
        said["error of an absent one"] = str(missing.value).encode()


def _http(up: Up, key: str | None = None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key or up.key}"}
    return httpx.AsyncClient(base_url=up.words["http"], headers=headers, timeout=60)


async def die_in_the_middle(up: Up) -> None:
    """All of them are killed while recordings come in: over HTTP, into the media store, and as a stream."""
    talk = wav(tones(20.0, *CAROL))

    async def slowly() -> Any:
        for at in range(0, len(talk) // 2, 64 << 10):
            yield talk[at : at + (64 << 10)]
            await asyncio.sleep(0.02)
        await asyncio.sleep(60)
        yield talk[len(talk) // 2 :]

    async with _http(up) as http:
        put = (await http.post("/v1/media/input", json={"url": "media://palaver/two.wav"})).json()["url"]
        sending = [
            asyncio.create_task(http.put(put, content=slowly())),
            asyncio.create_task(http.post(f"{ECHO}/diarize", content=slowly(), headers={"content-type": "audio/wav"})),
        ]
        await asyncio.sleep(1.5)
        up.end(signal.SIGKILL)
        for task in sending:
            task.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await task


def planted(up: Up, ids: list[str]) -> Secrets:
    """What must be found nowhere."""
    secrets = Secrets()
    for text in (*NAMES, *WORDS, *CONSENT.values(), SUBJECT):
        secrets.add_text(f"the text {text!r}", text)
    for name in sorted(SECRET_FILES):
        path = up.data / name
        if path.is_file() and len(text := path.read_text(errors="replace").strip()) >= 16:
            secrets.add_text(f"the key in {name}", text)
    for who, voice in (("ada", ADA), ("bob", BOB), ("carol", CAROL)):
        secrets.add_sound(f"the sound of {who}", tones(6.0, *voice))
    people = opened(up.data)
    assert {one.voice_id for one in people} == set(ids)
    for one in people:
        secrets.add_vector("a voiceprint", one.embedding)
    return secrets


@pytest.mark.timeout(600)
async def test_nothing_that_daemons_write_tells_who_spoke_or_how_they_sound(up: Up) -> None:
    said: dict[str, bytes] = {}
    ids = await use_well(up, said)
    await use_badly(up, said)
    secrets = planted(up, ids)
    assert secrets.search(up.written()) == []
    assert secrets.search(said) == []
    await die_in_the_middle(up)
    os.sync()
    up.start()
    assert secrets.search(up.written()) == []
    left = [path for path in up.temporary.rglob("*") if path.is_file()]
    assert not left, left
    assert not [path for path in up.root.rglob("core*") if path.is_file()]
    async with Client(up.words["grpc"], up.key) as client:
        for voice_id in ids:
            assert (await client.erase(voice_id, wait_s=30.0)).state == people_pb2.Erasure.STATE_ERASED
    assert secrets.search(up.written()) == []
    # And had there been something, it would have been found.
    (up.data / "canary.log").write_text(f"enrolled {NAMES[1]} with {up.key}")
    found = {leak.what for leak in secrets.search(up.written())}
    assert {"the key in admin.key", f"the text {NAMES[1]!r}"} <= found
