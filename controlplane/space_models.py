"""The models that a voiceprint may be computed with, and what each asks of its audios. Pure.

There is one, which stands for whatever engine the fleet runs: its requirements are what callers rely on.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.errors import BadAudio, NotFound

VOICE_MS_MIN = 4_500
AUDIO_MS_MAX = 120_000
SAMPLE_RATE_HZ_MIN = 8_000
MIN_AUDIOS_MAX = 10


@dataclass(frozen=True, slots=True)
class Model:
    """A model. Durations are milliseconds. voice_ms_min: clean speech in all, divided by a voiceprint's minAudios."""

    handle: str
    version: str
    voice_ms_min: int = VOICE_MS_MIN
    audio_ms_max: int = AUDIO_MS_MAX
    sample_rate_hz_min: int = SAMPLE_RATE_HZ_MIN


DEFAULT = Model("default", "v1")
MODELS = (DEFAULT,)


class AudioUnfit(BadAudio):
    """An audio that a model's requirements refuse. reasons: each of them, in words."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of an audio. Durations are milliseconds."""

    duration_ms: int
    voice_ms: int
    num_speakers: int
    sample_rate_hz: int


def model_of(handle: str, version: str) -> Model:
    """A model of the index. Raises NotFound."""
    for model in MODELS:
        if (model.handle, model.version) == (handle, version):
            return model
    raise NotFound("no such model: the index has default/v1")


def require_fit(model: Model, heard: Heard, min_audios: int) -> None:
    """Raises AudioUnfit for an audio that may not be added to a voiceprint of so many."""
    least_ms = model.voice_ms_min / min_audios
    reasons = _measured(model, heard)
    if heard.voice_ms < least_ms:
        reasons.append(
            f"{heard.voice_ms / 1000:.1f} s of voice: with minAudios {min_audios} an audio has at least "
            f"{least_ms / 1000:g} s"
        )
    if reasons:
        raise AudioUnfit(*reasons)


def require_comparable(model: Model, heard: Heard) -> None:
    """Raises AudioUnfit for an audio that cannot be verified."""
    reasons = _measured(model, heard)
    if not heard.voice_ms:
        reasons.append("no voice is heard in it")
    if reasons:
        raise AudioUnfit(*reasons)


def _measured(model: Model, heard: Heard) -> list[str]:
    reasons = []
    if heard.duration_ms > model.audio_ms_max:
        reasons.append(f"{heard.duration_ms / 1000:.1f} s long: at most {model.audio_ms_max / 1000:g} s are taken")
    if heard.sample_rate_hz < model.sample_rate_hz_min:
        reasons.append(f"{heard.sample_rate_hz} Hz: at least {model.sample_rate_hz_min} Hz are needed")
    if heard.num_speakers > 1:
        reasons.append(f"{heard.num_speakers} different voices are heard in it: one is needed")
    return reasons
