"""Endpoints of OpenAI's dialect: what they say is understood as far as it goes, and what they do wrong is one error."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import numpy as np
import pytest

from controlplane.transcribers import OpenAiTranscriber, SpokenWord, Transcript
from runtime.errors import Unavailable

SOUND = np.zeros(32_000, np.float32)


def answering(content: bytes, status: int = 200, asked: list[httpx.Request] | None = None) -> OpenAiTranscriber:
    def answer(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(request)
        return httpx.Response(status, content=content)

    made = OpenAiTranscriber("http://localhost:1/v1/", model="large", key="secret")
    made._http = httpx.AsyncClient(transport=httpx.MockTransport(answer), headers=made._http.headers)
    return made


async def heard(**said: Any) -> Transcript:
    return await answering(json.dumps(said).encode()).transcribe(SOUND, language="")


async def test_words_segments_or_text_alone_are_all_understood() -> None:
    words = [{"word": " Hello", "start": 0.1, "end": 0.4}, {"word": "there", "start": 0.5, "end": 9.0}]
    segments = [{"text": " Hello there.", "start": 0, "end": 1.5, "avg_logprob": math.log(0.5)}]
    both = await heard(text=" Hello there. ", words=words, segments=segments)
    assert both.text == "Hello there." and both.confidence == pytest.approx(0.5)
    assert both.words == (SpokenWord("Hello", 100, 400), SpokenWord("there", 500, 2_000)), "within what was sent"
    parts = await heard(text="Hello there.", segments=segments, words=None)
    assert parts.words == (SpokenWord("Hello there.", 0, 1_500),)
    assert (await heard(text="Hello.")).words == (SpokenWord("Hello.", 0, 2_000),)
    assert await heard(text="", words=[], segments=[]) == Transcript("", ())
    assert (await heard(text="a", segments=[{"text": "a", "start": 0, "end": 1}])).confidence is None


async def test_it_is_asked_as_openai_is() -> None:
    asked: list[httpx.Request] = []
    await answering(b'{"text": ""}', asked=asked).transcribe(SOUND, language="nl")
    (request,) = asked
    assert str(request.url) == "http://localhost:1/v1/audio/transcriptions"
    assert request.headers["authorization"] == "Bearer secret"
    body = request.content
    for part in (b'name="model"\r\n\r\nlarge', b'name="language"\r\n\r\nnl', b'filename="sound.wav"', b"RIFF"):
        assert part in body
    assert body.count(b'name="timestamp_granularities[]"') == 2


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"[]",
        b'"text"',
        b'{"words": [{"word": "a"}]}',
        b'{"words": 7}',
        b'{"words": [{"word": "a", "start": "x", "end": 1}]}',
        b'{"words": [{"word": "a", "start": Infinity, "end": 1}]}',
        b'{"segments": [{"start": 0, "end": 1}]}',
        b'{"text": "a", "segments": [1]}',
    ],
)
async def test_what_is_not_openais_dialect_is_a_backend_that_is_away(content: bytes) -> None:
    with pytest.raises(Unavailable, match="transcriber"):
        await answering(content).transcribe(SOUND, language="")


async def test_a_status_and_nobody_at_home_are_told_without_what_was_said() -> None:
    with pytest.raises(Unavailable, match="status 500") as refused:
        await answering(b'{"error": "hidden words"}', 500).transcribe(SOUND, language="")
    assert "hidden" not in str(refused.value)
    away = OpenAiTranscriber("http://127.0.0.1:1/v1", model="m")
    with pytest.raises(Unavailable, match="away"):
        await away.transcribe(SOUND, language="")
    await away.close()
    assert "secret" not in repr(OpenAiTranscriber("http://h/v1", model="m", key="secret"))
