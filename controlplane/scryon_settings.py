"""The settings of Scryon's voice profiles, under their own names too: SCRYON_VOICE_EMBEDDING_ENABLED and the like.

In: the file's [controlplane] table (`scryon_voice_…`), the environment (SCRYON_VOICE_… or SPEAKERD_SCRYON_VOICE_…).
Out: part of the control plane's settings.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import AliasChoices, Field, model_validator

from runtime.config import DaemonSettings


def _scryon(name: str, default: Any, description: str, **bounds: float) -> Any:
    named = AliasChoices(name, f"SPEAKERD_{name.upper()}", name.upper())
    return Field(default, validation_alias=named, description=description, **bounds)  # type: ignore[call-overload]


class ScryonSettings(DaemonSettings):
    """What of a control plane is Scryon's."""

    scryon_voice_embedding_enabled: bool = _scryon(
        "scryon_voice_embedding_enabled", False, "Offer voice profiles; without it, every call of theirs is 404."
    )
    scryon_voice_delete_when_disabled: bool = _scryon(
        "scryon_voice_delete_when_disabled", False, "Let users delete their profile although the feature is off."
    )
    scryon_voice_consent_version: str = _scryon(
        "scryon_voice_consent_version", "v1", "Which wording users agree to now; stamped on each profile."
    )
    scryon_voice_sample_min_seconds: float = _scryon(
        "scryon_voice_sample_min_seconds", 15.0, "Shorter samples are refused.", ge=1.0
    )
    scryon_voice_sample_max_seconds: float = _scryon(
        "scryon_voice_sample_max_seconds", 45.0, "Longer samples are refused.", le=120.0
    )
    scryon_voice_sample_max_size_mb: float = _scryon(
        "scryon_voice_sample_max_size_mb", 10.0, "Larger samples are refused; MiB.", gt=0.0, le=32.0
    )
    scryon_voice_match_high: float = _scryon(
        "scryon_voice_match_high", 0.85, "Probability from which a speaker is the user.", ge=0.0, le=1.0
    )
    scryon_voice_match_medium: float = _scryon(
        "scryon_voice_match_medium", 0.75, "The same, for callers that can bear a mistake.", ge=0.0, le=1.0
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scryon_voice_sample_min_seconds > self.scryon_voice_sample_max_seconds:
            raise ValueError("scryon_voice_sample_min_seconds is more than scryon_voice_sample_max_seconds")
        if self.scryon_voice_match_medium > self.scryon_voice_match_high:
            raise ValueError("scryon_voice_match_medium is more than scryon_voice_match_high")
        if not 1 <= len(self.scryon_voice_consent_version) <= 64:
            raise ValueError("scryon_voice_consent_version: 1 to 64 characters")
        return self
