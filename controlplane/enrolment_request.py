"""What an enrolment asks for, and what is wrong with it when it is malformed.

In: the fields as they came. Out: a validated Request, and the digest that tells a repeated request from a changed one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from controlplane.agreements import Consent, Licence, LicenceKind
from controlplane.intake import Clip
from controlplane.policy import VoiceScope
from runtime.errors import InvalidRequest
from runtime.media import PreflightLimits

LABEL_CHARS_MAX = 200
SUBJECT_CHARS_MAX = 200
CONSENT_CHARS_MAX = 20_000
IDEMPOTENCY_KEY_CHARS_MAX = 255
DETAILS_CHARS_MAX = 4_000
UNITS = ("characters", "seconds", "matches")
INSTANT_MAX_S = 253_370_764_800.0
"""The year 9999, in whatever zone it is said: what lies beyond cannot be told as a date."""
STRANGER = re.compile(r"(?:spk|speaker)[\s_]+\d+", re.IGNORECASE)
"""What strangers are called in one dialect or another, also where a blank is written as an underscore."""
_LANGUAGE = re.compile(r"[A-Za-z0-9-]{0,35}")
_GENDER = re.compile(r"[A-Za-z_-]{0,16}")


@dataclass(frozen=True, slots=True)
class Details:
    """What a library shows beside the label."""

    language: str = ""
    gender: str = ""
    description: str = ""
    languages: tuple[str, ...] = ()
    style_tags: tuple[str, ...] = ()
    age: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. voice_id "": a new voice. idempotency_key "": not repeatable. subject "": not said.

    scope and licence count for a new voice; add_clips: keep the recordings that the voice has. preflight: the limits of
    whoever asks, in place of the configured ones.
    """

    voice_id: str
    label: str
    consent: Consent
    idempotency_key: str
    clips: Sequence[Clip]
    scope: VoiceScope = VoiceScope.TENANT
    subject: str = ""
    licence: Licence | None = None
    details: Details | None = None
    add_clips: bool = False
    preflight: PreflightLimits | None = None


def validate(request: Request, *, consent_required: bool = False) -> None:
    """Raises InvalidRequest, naming the field."""
    if request.label or not request.voice_id:
        require_label(request.label)
    if len(request.idempotency_key) > IDEMPOTENCY_KEY_CHARS_MAX:
        raise InvalidRequest(f"idempotency_key: at most {IDEMPOTENCY_KEY_CHARS_MAX} characters")
    if len(request.subject) > SUBJECT_CHARS_MAX:
        raise InvalidRequest(f"subject: at most {SUBJECT_CHARS_MAX} characters")
    if request.add_clips and not request.voice_id:
        raise InvalidRequest("add_clips: say which voice they are added to (voice_id)")
    is_global = request.scope is VoiceScope.GLOBAL and not request.voice_id
    if is_global != (request.licence is not None):
        raise InvalidRequest("licence: a new global voice has one, and no other voice does")
    if request.licence is not None:
        _require_licence(request.licence)
    require_consent(request.consent, whole=consent_required and not is_global)
    if request.details is not None:
        require_details(request.details)


def require_label(label: str) -> None:
    """Raises InvalidRequest for what no voice may be called."""
    if not label.strip():
        raise InvalidRequest("label: 1 to 200 characters, what the person's turns are to be labelled with")
    if len(label) > LABEL_CHARS_MAX or any(ord(character) < 32 for character in label):
        raise InvalidRequest(f"label: 1 to {LABEL_CHARS_MAX} characters, no control characters")
    if STRANGER.fullmatch(label.strip()):
        raise InvalidRequest("label: spk_0, SPEAKER_00 and so on are what strangers are called; choose another name")


def require_consent(consent: Consent, *, whole: bool) -> None:
    """Raises InvalidRequest. whole: it has to say who agreed, what for, and to what."""
    if len(consent.full_name) + len(consent.purpose) + len(consent.text) > CONSENT_CHARS_MAX:
        raise InvalidRequest(f"consent: at most {CONSENT_CHARS_MAX} characters in all")
    if len(consent.version) > 64:
        raise InvalidRequest("consent.version: at most 64 characters")
    if whole and not consent.is_whole:
        raise InvalidRequest("consent: full_name, purpose and text are required: who agreed, what for, and to what")


def require_details(details: Details) -> None:
    """Raises InvalidRequest, naming the field."""
    if _LANGUAGE.fullmatch(details.language) is None:
        raise InvalidRequest('details.language: a tag such as "de" or "pt-BR"')
    if _GENDER.fullmatch(details.gender) is None:
        raise InvalidRequest("details.gender: at most 16 letters")
    if len(details_text(details)) > DETAILS_CHARS_MAX:
        raise InvalidRequest(f"details: at most {DETAILS_CHARS_MAX} characters in all")


def details_text(details: Details) -> str:
    """Details as they are sealed."""
    return json.dumps(asdict(details), ensure_ascii=False, separators=(",", ":"))


def details_of(text: bytes) -> Details:
    """What `details_text` made."""
    values: dict[str, Any] = json.loads(text)
    said: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Details(**said)


def request_digest(request: Request) -> bytes:
    """The same for the same request."""
    digest = hashlib.sha256()
    licence = request.licence
    parts = [
        request.voice_id,
        request.label,
        *(str(part) for part in asdict(request.consent).values()),
        request.scope.value,
        request.subject,
        "" if licence is None else json.dumps({**asdict(licence), "kind": licence.kind.value}, sort_keys=True),
        "" if request.details is None else details_text(request.details),
        str(request.add_clips),
        *(f"{clip.url} {clip.drive}" for clip in request.clips if clip.url or clip.drive is not None),
    ]
    for part in [*(part.encode() for part in parts), *(clip.data for clip in request.clips)]:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _require_licence(licence: Licence) -> None:
    if not licence.licensor.strip() or len(licence.licensor) + len(licence.terms) > CONSENT_CHARS_MAX:
        raise InvalidRequest(f"licence: a licensor, and at most {CONSENT_CHARS_MAX} characters in all")
    if (licence.kind is LicenceKind.TIME_BOUND) != (licence.expires_at_s is not None):
        raise InvalidRequest("licence.expires_at: a time-bound licence has it, and no other does")
    if licence.expires_at_s is not None and not 0 <= licence.expires_at_s < INSTANT_MAX_S:
        raise InvalidRequest("licence.expires_at: between the years 1970 and 9999")
    is_counted = licence.usage_max is not None and licence.unit in UNITS
    if licence.kind is LicenceKind.USAGE_BOUND and not is_counted:
        raise InvalidRequest(f"licence: a usage-bound one says usage_max and a unit of {', '.join(UNITS)}")
    if licence.kind is not LicenceKind.USAGE_BOUND and (licence.usage_max is not None or licence.unit):
        raise InvalidRequest("licence: only a usage-bound one says unit and usage_max")
