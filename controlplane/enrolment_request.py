"""What an enrolment asks for, and what is wrong with it when it is malformed.

In: the fields as they came. Out: a validated Request, and the digest that tells a repeated request from a changed one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.intake import Clip
from runtime.errors import InvalidRequest

LABEL_CHARS_MAX = 200
CONSENT_CHARS_MAX = 20_000
IDEMPOTENCY_KEY_CHARS_MAX = 255
STRANGER = re.compile(r"spk_\d+")


@dataclass(frozen=True, slots=True)
class Consent:
    """What the person agreed to. All empty: not recorded."""

    full_name: str = ""
    purpose: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. voice_id "": a new voice. idempotency_key "": not repeatable."""

    voice_id: str
    label: str
    consent: Consent
    idempotency_key: str
    clips: Sequence[Clip]


def validate(request: Request) -> None:
    """Raises InvalidRequest, naming the field."""
    if not request.label.strip() and (request.label or not request.voice_id):
        raise InvalidRequest("label: 1 to 200 characters, what the person's turns are to be labelled with")
    if len(request.label) > LABEL_CHARS_MAX or any(ord(character) < 32 for character in request.label):
        raise InvalidRequest(f"label: 1 to {LABEL_CHARS_MAX} characters, no control characters")
    if STRANGER.fullmatch(request.label.strip()):
        raise InvalidRequest("label: spk_0, spk_1 and so on are what strangers are called; choose another name")
    if len(request.idempotency_key) > IDEMPOTENCY_KEY_CHARS_MAX:
        raise InvalidRequest(f"idempotency_key: at most {IDEMPOTENCY_KEY_CHARS_MAX} characters")
    consent = request.consent
    if len(consent.full_name) + len(consent.purpose) + len(consent.text) > CONSENT_CHARS_MAX:
        raise InvalidRequest(f"consent: at most {CONSENT_CHARS_MAX} characters in all")


def request_digest(request: Request) -> bytes:
    """The same for the same request."""
    digest = hashlib.sha256()
    consent = request.consent
    parts = [request.voice_id, request.label, consent.full_name, consent.purpose, consent.text]
    for part in [*(part.encode() for part in parts), *(clip.data for clip in request.clips)]:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
