"""What the tests of ScaiGrid's dialects share: forms, recordings, and what an error looks like."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np

from tests.controlplane.conftest import speech, wav

ECHO = "/v1/modules/scaiecho"
SPEAK = "/v1/modules/scaispeak"
GOOD = wav(speech(1, 6.0))
SPOKEN = wav(speech(2, 5.0))
SILENCE = wav(np.zeros(6 * 16_000, dtype=np.float32))
CONSENT = {
    "consent_user_full_name": "Alice Example",
    "consent_stated_purpose": "Telling who said what",
    "consent_text": "I, Alice Example, agree.",
}
SPEAKER = {"display_name": "Alice Example", "language_primary": "en", "description": "Customer success", **CONSENT}
FILES = {"reference": ("reference.wav", GOOD, "audio/wav"), "consent": ("consent.wav", SPOKEN, "audio/wav")}


async def enrol(http: httpx.AsyncClient, seed: int = 1, **fields: str) -> dict[str, Any]:
    """A speaker of ScaiEcho's, as it is answered."""
    files = {**FILES, "reference": ("r.wav", wav(speech(seed, 6.0)), "audio/wav")}
    answer = await http.post(f"{ECHO}/speakers", data={**SPEAKER, **fields}, files=files)
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


async def clone(http: httpx.AsyncClient, seed: int = 1, **fields: str) -> dict[str, Any]:
    """A voice of ScaiSpeak's, as it is answered."""
    files = {**FILES, "reference": ("r.wav", wav(speech(seed, 6.0)), "audio/wav")}
    answer = await http.post(f"{SPEAK}/voices", data={**SPEAKER, **fields}, files=files)
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def refusal(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, whose envelope is whole."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"status", "error", "meta"}
    assert body["status"] == "error"
    assert body["meta"] == {"request_id": answer.headers["x-request-id"]}
    assert body["error"]["code"] == code, body
    assert body["error"]["message"]
    assert set(body["error"]) <= {"code", "message", "retry_after", "details", "preflight"}
    error: dict[str, Any] = body["error"]
    return error


def fields_of(error: dict[str, Any]) -> list[str]:
    """The fields that an error names."""
    assert all(set(detail) == {"field", "message"} and detail["message"] for detail in error["details"])
    return [detail["field"] for detail in error["details"]]
