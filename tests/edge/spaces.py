"""Loccus' guide in one call, for tests of several dialects together."""

from __future__ import annotations

import base64
from typing import Any

import httpx

from tests.controlplane.conftest import speech, wav


def sound(seed: int) -> str:
    """A recording in base64."""
    return base64.b64encode(wav(speech(seed, 6.0))).decode()


async def did(http: httpx.AsyncClient, path: str, body: Any = None) -> Any:
    """A POST that has to succeed."""
    answer = await http.post(path, json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def computed(http: httpx.AsyncClient, space: str, identity: str, seed: int) -> dict[str, Any]:
    """An identity with a computed voiceprint `main`, in a space that is there; the identity."""
    await did(http, f"{space}/identities", {"handle": identity, "alias": "Ada Private"})
    audio = await did(http, f"{space}/audios", {"file": sound(seed), "identity": identity})
    voiceprint = {"handle": "main", "model": "default/v1", "identity": identity, "minAudios": 1}
    await did(http, f"{space}/voiceprints", voiceprint)
    one = f"{space}/voiceprints/{identity}/main"
    await did(http, f"{one}/audios/{audio['id']}")
    await did(http, f"{one}:compute")
    found: dict[str, Any] = (await http.get(f"{space}/identities/{identity}")).json()
    return found
