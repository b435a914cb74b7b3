"""Calls of the pyannoteAI dialect that its tests make over and over."""

from __future__ import annotations

from typing import Any

import httpx

from tests.controlplane.conftest import speech, until, wav

TALK = "media://talks/one.wav"
ENDS = ("succeeded", "failed", "canceled")


async def upload(http: httpx.AsyncClient, url: str = TALK, data: bytes | None = None) -> str:
    answer = await http.post("/v1/media/input", json={"url": url})
    assert answer.status_code == 201, answer.text
    async with httpx.AsyncClient(timeout=60) as anybody:
        put = await anybody.put(answer.json()["url"], content=wav(speech()) if data is None else data)
    assert put.is_success, put.text
    return url


async def submit(http: httpx.AsyncClient, call: str = "diarize", **fields: Any) -> httpx.Response:
    return await http.post(f"/v1/{call}", json={"url": TALK, **fields})


async def ended(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        found.update((await http.get(f"/v1/jobs/{job_id}")).json())
        return found["status"] in ENDS

    await until(has_ended, 60)
    return found


async def voiceprint(http: httpx.AsyncClient) -> str:
    job = await ended(http, (await submit(http, "voiceprint")).json()["jobId"])
    assert job["status"] == "succeeded", job
    return str(job["output"]["voiceprint"])


def refused(answer: httpx.Response) -> list[str]:
    """The fields that a 400 names."""
    assert answer.status_code == 400, (answer.status_code, answer.text)
    body = answer.json()
    assert (set(body), body["message"]) == ({"message", "errors"}, "Invalid request")
    assert all(set(error) == {"field", "message"} and error["message"] for error in body["errors"])
    return [error["field"] for error in body["errors"]]
