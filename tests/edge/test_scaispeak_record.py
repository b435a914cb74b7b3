"""WS /voices/record: two phases, the checks of POST /voices, and nothing stored before they are passed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import websockets

from tests.controlplane.conftest import speech, wav
from tests.edge.conftest import Served

PATH = "/v1/modules/scaispeak/voices/record"
SAID = {
    "type": "open",
    "display_name": "Ada",
    "language_primary": "en",
    "style_tags_json": ["warm", "calm"],
    "gender_hint": None,
    "consent_user_full_name": "Ada Lovelace",
    "consent_stated_purpose": "audiobooks",
    "consent_text": "I agree that my voice is cloned.",
}
END = {"type": "end_phase"}


class Recorder:
    """A client that records."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket

    async def say(self, *frames: dict[str, Any] | bytes | str) -> None:
        for frame in frames:
            await self._socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def hears(self) -> dict[str, Any]:
        return json.loads(await self._socket.recv())  # type: ignore[no-any-return]

    async def record(self, data: bytes) -> None:
        for at in range(0, len(data), 64_000):
            await self.say(data[at : at + 64_000])
        await self.say(END)

    async def ends(self) -> int | None:
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await self._socket.recv()
        await self._socket.wait_closed()
        return self._socket.close_code


@asynccontextmanager
async def recorder(served: Served, token: str | None = None, *, query: str = "") -> AsyncIterator[Recorder]:
    headers = {} if token == "" else {"authorization": f"Bearer {token or served.admin_key}"}
    url = served.url.replace("http", "ws", 1) + PATH + query
    async with websockets.connect(url, additional_headers=headers) as socket:
        yield Recorder(socket)


async def voices(served: Served) -> list[dict[str, Any]]:
    return (await (await served.http()).get("/v1/modules/scaispeak/voices")).json()["data"]  # type: ignore[no-any-return]


async def test_a_voice_is_recorded_in_two_phases_and_answered_as_an_upload_is(served: Served) -> None:
    await served.tenant("studio", "u1")
    key = await served.key("voice.read", "voice.write", tenant_id="studio", user_id="u1")
    async with recorder(served, "", query=f"?token={key}") as client:
        await client.say(SAID)
        ready = await client.hears()
        assert ready == {"type": "ready", "phase": "reference", "min_seconds": 5.0, "max_seconds": 30.0, "attempt": 1}
        # Too short: told what is wrong with it, and recorded anew.
        await client.record(wav(speech(1, 2.0)))
        failed = await client.hears()
        assert (failed["type"], failed["passed"]) == ("preflight", False)
        assert "duration_below_minimum" in failed["preflight"]["fail_reasons"]
        assert (await client.hears())["attempt"] == 2
        await client.record(wav(speech(1, 8.0)))
        passed = await client.hears()
        assert passed["passed"] and passed["preflight"]["duration_ms"] == 8000
        assert await client.hears() == {"type": "ready", "phase": "consent", "consent_text": SAID["consent_text"]}
        assert await voices(served) == []
        await client.record(wav(speech(2, 4.0)))
        made = await client.hears()
        assert made["type"] == "voice" and await client.ends() == 1000
    http = await served.http(key)
    form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in SAID.items() if value}
    files = {"reference": ("r.wav", wav(speech(3, 8.0))), "consent": ("c.wav", wav(speech(4, 4.0)))}
    uploaded = (await http.post("/v1/modules/scaispeak/voices", data=form, files=files)).json()["data"]
    assert set(made["data"]) == set(uploaded)
    measured = {"duration_ms", "sample_rate", "channels", "peak_dbfs", "snr_db", "voice_activity_ratio"}
    assert all(made["data"]["preflight"][name] == passed["preflight"][name] for name in measured)
    found = (await http.get(f"/v1/modules/scaispeak/voices/{made['data']['id']}")).json()["data"]
    assert (found["display_name"], found["scope"], found["style_tags"]) == ("Ada", "user", ["warm", "calm"])
    assert found["consent"]["user_full_name"] == "Ada Lovelace"


async def test_raw_samples_are_recorded_either_way_round(served: Served) -> None:
    for number, order in enumerate(("<i2", ">i2")):
        async with recorder(served) as client:
            await client.say({**SAID, "media_type": "audio/L16;rate=16000;channels=1"})
            await client.hears()
            await client.record((speech(5 + number, 8.0) * 32767).astype(order).tobytes())
            checked = await client.hears()
            assert checked["passed"], checked
            await client.hears()
            await client.record((speech(7 + number, 4.0) * 32767).astype(order).tobytes())
            assert (await client.hears())["type"] == "voice"
    assert len(await voices(served)) == 2


async def test_whoever_cancels_leaves_or_fails_leaves_nothing(served: Served) -> None:
    async with recorder(served) as client:
        await client.say(SAID)
        await client.hears()
        await client.record(wav(speech(1, 8.0)))
        await client.hears()
        await client.hears()
        await client.say(b"\0" * 1000, {"type": "cancel"})
        assert await client.hears() == {"type": "canceled"} and await client.ends() == 1000
    async with recorder(served) as client:
        await client.say(SAID)
        await client.hears()
        await client.say(wav(speech(1, 8.0))[:64_000])
    quiet = wav((np.random.default_rng(0).standard_normal(8 * 16_000) * 1e-4).astype(np.float32))
    async with recorder(served) as client:
        await client.say(SAID)
        for attempt in range(1, 6):
            assert (await client.hears())["attempt"] == attempt
            await client.record(quiet)
            failed = await client.hears()
            assert not failed.get("passed")
        assert (failed["type"], failed["code"]) == ("error", "SCAISPEAK_VOICE_PREFLIGHT_FAILED")
        assert failed["preflight"]["fail_reasons"] and await client.ends() == 1008
    assert await voices(served) == []


async def test_what_is_wrong_with_the_opening_or_a_frame_is_told_by_code(served: Served) -> None:
    for first, code in (
        (b"sound", "VALIDATION_ERROR"),
        ("no json", "VALIDATION_ERROR"),
        ("[1]", "VALIDATION_ERROR"),
        (END, "VALIDATION_ERROR"),
        ({**SAID, "media_type": "video/mp4"}, "VALIDATION_ERROR"),
        ({**SAID, "style_tags_json": "no list"}, "VALIDATION_ERROR"),
        ({**SAID, "display_name": "half a character: \ud800"}, "VALIDATION_ERROR"),
    ):
        async with recorder(served) as client:
            await client.say(first)
            said = await client.hears()
            assert (said["type"], said["code"]) == ("error", code), first
            assert await client.ends() == 1008
    async with recorder(served) as client:
        await client.say({"type": "open", "display_name": " "})
        wrong = {one["field"] for one in (await client.hears())["details"]}
        assert wrong >= {"display_name", "consent_user_full_name", "consent_stated_purpose", "consent_text"}
    async with recorder(served) as client:
        await client.say(SAID)
        await client.hears()
        await client.record(b"this is no sound" * 100)
        assert (await client.hears())["code"] == "VALIDATION_ERROR"
    async with recorder(served, await served.key("voice.read")) as client:
        assert (await client.hears())["code"] == "AUTHZ_PERMISSION_DENIED" and await client.ends() == 4403
    for token in ("", "sk_wrong_key"):
        async with recorder(served, token) as client:
            assert await client.ends() == 4401
    assert await voices(served) == []
