"""What puts sound into words: a seam, nobody by default, and an adapter to endpoints that speak OpenAI's dialect.

In: mono sound at 16 kHz. Out: words with their times in it. What always holds: the endpoint is the operator's choice,
never a caller's; it is asked within a bound; neither sound nor words are kept, or written into logs and errors.
"""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np

from runtime.errors import Unavailable
from runtime.pcm import FloatArray
from runtime.units import SAMPLE_RATE_HZ

ASK_S = 30.0
WORDS_MAX = 5_000
ANSWER_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word, or as little as the endpoint tells apart. Times: milliseconds from the start of what was sent."""

    text: str
    start_ms: int
    end_ms: int

    def __repr__(self) -> str:
        return f"SpokenWord({self.start_ms}..{self.end_ms})"


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, by time. text: all of it, with its punctuation. confidence: in [0, 1]; None: not told."""

    text: str
    words: tuple[SpokenWord, ...]
    confidence: float | None = None

    def __repr__(self) -> str:
        return f"Transcript({len(self.words)} words)"


class Transcriber(Protocol):
    """Whoever puts sound into words."""

    async def transcribe(self, samples: FloatArray, *, language: str) -> Transcript:
        """The words of (N,) samples. language: a hint, "" for none. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class OpenAiTranscriber:
    """POST {base_url}/audio/transcriptions, as OpenAI has it and many servers beside it.

    base_url: as in "http://127.0.0.1:8000/v1". key: sent as a bearer token; "" for none.
    """

    def __init__(self, base_url: str, *, model: str, key: str = "", timeout_s: float = ASK_S) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._url = f"{base_url.rstrip('/')}/audio/transcriptions"
        self._model = model
        # Neither proxies nor anything else of the environment is asked.
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout_s, trust_env=False)

    def __repr__(self) -> str:
        return f"OpenAiTranscriber(model={self._model!r})"

    async def transcribe(self, samples: FloatArray, *, language: str) -> Transcript:
        """Ask."""
        fields: dict[str, Any] = {
            "model": self._model,
            "response_format": "verbose_json",
            "timestamp_granularities[]": ["word", "segment"],
        }
        if language:
            fields["language"] = language
        try:
            answer = await self._http.post(
                self._url, data=fields, files={"file": ("sound.wav", _wav(samples), "audio/wav")}
            )
            if answer.status_code != 200 or len(answer.content) > ANSWER_BYTES_MAX:
                raise Unavailable(f"the transcriber answers with HTTP status {answer.status_code}", retry_after_s=1.0)
            said = answer.json()
        except (httpx.HTTPError, ValueError):
            raise Unavailable(
                "the transcriber is away, or does not speak OpenAI's dialect", retry_after_s=1.0
            ) from None
        length_ms = len(samples) * 1000 // SAMPLE_RATE_HZ
        try:
            return _transcript(said, length_ms)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise Unavailable("the transcriber does not speak OpenAI's dialect", retry_after_s=1.0) from None

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()


def _transcript(said: dict[str, Any], length_ms: int) -> Transcript:
    text = str(said.get("text") or "").strip()
    segments: Sequence[dict[str, Any]] = said.get("segments") or ()
    timed = [(one["word"], one) for one in said.get("words") or ()] or [(one["text"], one) for one in segments]
    words = [
        SpokenWord(str(word).strip(), _ms(one["start"], length_ms), _ms(one["end"], length_ms))
        for word, one in timed[:WORDS_MAX]
    ]
    if not words and text:
        words = [SpokenWord(text, 0, length_ms)]  # it tells no times
    return Transcript(text, tuple(word for word in words if word.text), _confidence(segments))


def _confidence(segments: Sequence[dict[str, Any]]) -> float | None:
    """The probability of a token, on average, as the segments tell it."""
    logs = [float(one["avg_logprob"]) for one in segments if one.get("avg_logprob") is not None]
    if not logs or not all(math.isfinite(log) for log in logs):
        return None
    return min(1.0, math.exp(sum(logs) / len(logs)))


def _ms(at_s: Any, length_ms: int) -> int:
    return max(0, min(length_ms, round(float(at_s) * 1000)))


def _wav(samples: FloatArray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes((np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
