"""What `speakerd diarize` tells of a recording: turns, speakers, and why each of them has a name or has none.

In come an engine's own results or the contract's messages; out come plain values for JSON. Times inside are
milliseconds, in JSON seconds. Embeddings are biometric data: they are written only where JSON is asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speakerd.timeline import SpokenTurn, turn_as_json
from speakerd.v1 import common_pb2

OUTCOMES = {
    common_pb2.MatchReport.OUTCOME_MATCHED: "matched",
    common_pb2.MatchReport.OUTCOME_BELOW_THRESHOLD: "below_threshold",
    common_pb2.MatchReport.OUTCOME_THIN_MARGIN: "thin_margin",
    common_pb2.MatchReport.OUTCOME_TOO_LITTLE_SPEECH: "too_little_speech",
    common_pb2.MatchReport.OUTCOME_TAKEN: "taken",
    common_pb2.MatchReport.OUTCOME_NO_CANDIDATES: "no_voices",
}


@dataclass(frozen=True, slots=True)
class MatchSummary:
    """Why a speaker has a name, or has none. outcome: "matched", or the gate that failed.

    best, runner_up: voice ids, empty where there is none. margin: of cosines. net_speech_ms: clean speech of the
    speaker; best_net_speech_ms: that which the best voice stands on.
    """

    outcome: str
    best: str
    best_probability: float
    best_cosine: float
    best_net_speech_ms: int
    runner_up: str
    runner_up_probability: float
    runner_up_cosine: float
    margin: float
    net_speech_ms: int


@dataclass(frozen=True, slots=True)
class HeardSpeaker:
    """A speaker of a recording. confidence: None where it is not said; embedding: empty where there is none."""

    speaker: str
    label: str
    voice_id: str
    probability: float
    speech_ms: int
    net_speech_ms: int
    match: MatchSummary | None
    confidence: float | None
    embedding: Sequence[float]


@dataclass(frozen=True, slots=True)
class Diarized:
    """What was heard: turns by start, the same without overlap, and what to know before relying on it.

    frame_confidence: percent, one a frame of `frame_ms`, of all that the turns say of the frame being right; empty
    where that is not said.
    """

    turns: Sequence[SpokenTurn]
    exclusive_turns: Sequence[SpokenTurn]
    duration_ms: int
    warnings: Sequence[str]
    speakers: Sequence[HeardSpeaker] = ()
    frame_ms: int = 0
    frame_confidence: bytes = b""


def heard_speaker(speaker: common_pb2.Speaker) -> HeardSpeaker:
    """A speaker of the contract."""
    vector = speaker.voiceprint.embedding
    return HeardSpeaker(
        speaker=speaker.speaker,
        label=speaker.label,
        voice_id=speaker.voice_id,
        probability=speaker.probability,
        speech_ms=speaker.speech_ms,
        net_speech_ms=speaker.net_speech_ms,
        match=_match_summary(speaker.match) if speaker.HasField("match") else None,
        confidence=speaker.confidence if speaker.HasField("confidence") else None,
        embedding=struct.unpack(f"<{len(vector) // 4}f", vector),
    )


def percent(values: bytes) -> bytes:
    """Shares of 255 as percent, a byte each."""
    return values.translate(bytes(round(value * 100 / 255) for value in range(256)))


def diarized_as_json(heard: Diarized) -> dict[str, Any]:
    """All of it as plain values; what is not known is left out."""
    found: dict[str, Any] = {
        "duration": heard.duration_ms / 1000,
        "speakers": sorted({turn.label for turn in heard.turns}),
        "turns": [turn_as_json(turn) for turn in heard.turns],
        "exclusive_turns": [turn_as_json(turn) for turn in heard.exclusive_turns],
        "speaker_details": [_speaker_as_json(speaker) for speaker in heard.speakers],
        "warnings": list(heard.warnings),
    }
    if heard.frame_confidence:
        found["frame_confidence"] = {"step": heard.frame_ms / 1000, "percent": list(heard.frame_confidence)}
    return found


def _speaker_as_json(speaker: HeardSpeaker) -> dict[str, Any]:
    found: dict[str, Any] = {
        "speaker": speaker.speaker,
        "label": speaker.label,
        "speech": speaker.speech_ms / 1000,
        "net_speech": speaker.net_speech_ms / 1000,
    }
    if speaker.voice_id:
        found |= {"voice_id": speaker.voice_id, "probability": round(speaker.probability, 4)}
    if speaker.confidence is not None:
        found["confidence"] = round(speaker.confidence, 4)
    if speaker.match is not None:
        found["match"] = _match_as_json(speaker.match)
    if speaker.embedding:
        found["embedding"] = [round(value, 6) for value in speaker.embedding]
    return found


def _match_as_json(match: MatchSummary) -> dict[str, Any]:
    found: dict[str, Any] = {"outcome": match.outcome, "net_speech": match.net_speech_ms / 1000}
    if match.best:
        found["best"] = {
            "voice_id": match.best,
            "probability": round(match.best_probability, 4),
            "cosine": round(match.best_cosine, 4),
            "net_speech": match.best_net_speech_ms / 1000,
        }
        found["margin"] = round(match.margin, 4)
    if match.runner_up:
        found["runner_up"] = {
            "voice_id": match.runner_up,
            "probability": round(match.runner_up_probability, 4),
            "cosine": round(match.runner_up_cosine, 4),
        }
    return found


def _match_summary(match: common_pb2.MatchReport) -> MatchSummary:
    return MatchSummary(
        outcome=OUTCOMES.get(match.outcome, "unknown"),
        best=match.best_voice_id,
        best_probability=match.best_probability,
        best_cosine=match.best_cosine,
        best_net_speech_ms=match.best_net_speech_ms,
        runner_up=match.runner_up_voice_id,
        runner_up_probability=match.runner_up_probability,
        runner_up_cosine=match.runner_up_cosine,
        margin=match.margin,
        net_speech_ms=match.net_speech_ms,
    )
