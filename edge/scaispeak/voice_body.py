"""A voice as ScaiSpeak tells it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from controlplane.agreement_reading import ConsentRecord, LicenceRecord
from controlplane.enrolment import Enrolled
from controlplane.voices import Filter, Voice
from edge.scaigrid.preflight import Preflight, preflight_of
from edge.scaigrid.times import instant, maybe_instant

Status = Literal["pending", "processing", "ready", "failed", "evicted"]
Scope = Literal["user", "tenant", "global"]
NO_NODE = "no_node_online"
NOT_HELD = "no_node_holds_it_yet"


class Licence(BaseModel):
    """By what right a global voice is used."""

    licensor_name: str
    license_type: Literal["perpetual", "time_bound", "usage_bound"]
    license_terms: str
    license_expires_at: str | None
    license_character_cap: int | None


class Consent(BaseModel):
    """What the person agreed to. The digests are SHA-256, in hex; evidence is the audit's keyed digest of all of it."""

    user_full_name: str
    stated_purpose: str
    consent_text: str
    consent_text_sha256: str
    consent_audio_sha256: str | None = Field(description="Of the consent's recording; null when none came with it.")
    recorded_at: str
    evidence: str


class VoiceBody(BaseModel):
    """A voice of the library. id and voice_id are the same."""

    id: str
    voice_id: str
    display_name: str
    description: str
    scope: Scope
    owner_user_id: str | None
    language_primary: str
    language_supported: list[str]
    gender_hint: str
    age_hint: str
    style_tags: list[str]
    embedding_status: Status
    embedding_status_reason: str | None = Field(description="A short tag; null when the voice is ready.")
    created_at: str
    updated_at: str
    license: Licence | None = Field(default=None, description="Of a global voice; left out of others.")
    consent: Consent | None = Field(default=None, description="Where one voice is read by who may change it.")


class VoiceAnswer(BaseModel):
    """One voice."""

    data: VoiceBody


class PageMeta(BaseModel):
    """Where a list goes on."""

    next_cursor: str | None = Field(description="Ours: send it as `cursor`; null: that was all.")


class VoiceList(BaseModel):
    """The caller's own voices, its tenant's and the global ones, in one list."""

    data: list[VoiceBody]
    meta: PageMeta


class Cloned(VoiceBody):
    """A new voice: its own fields, the same again as `voice`, and what came of the intake."""

    voice: VoiceBody
    preflight: Preflight | None = Field(description="null when the answer to an earlier request is repeated.")
    note: str | None = Field(default=None, description="What it waits for; left out when there is nothing to say.")


class ClonedAnswer(BaseModel):
    """A new voice."""

    data: Cloned


def voice_body(
    voice: Voice, *, licence: LicenceRecord | None = None, consent: ConsentRecord | None = None
) -> VoiceBody:
    """A voice of the core's, with its licence or consent where there is one to tell."""
    status = status_of(voice)
    body = VoiceBody(
        id=voice.voice_id,
        voice_id=voice.voice_id,
        display_name=voice.label or "",
        description=voice.details.description,
        scope=voice.scope.value,
        owner_user_id=voice.owner_user_id,
        language_primary=voice.details.language,
        language_supported=list(voice.details.languages),
        gender_hint=voice.details.gender,
        age_hint=voice.details.age,
        style_tags=list(voice.details.style_tags),
        embedding_status=status,
        embedding_status_reason=_reason_of(voice, status),
        created_at=instant(voice.created_at_s),
        updated_at=instant(voice.updated_at_s),
    )
    if licence is not None:
        body.license = Licence(
            licensor_name=licence.licensor,
            license_type=licence.kind.value,
            license_terms=licence.terms,
            license_expires_at=maybe_instant(licence.expires_at_s),
            license_character_cap=licence.usage_max if licence.unit == "characters" else None,
        )
    if consent is not None:
        body.consent = Consent(
            user_full_name=consent.full_name,
            stated_purpose=consent.purpose,
            consent_text=consent.text,
            consent_text_sha256=consent.text_sha256,
            consent_audio_sha256=consent.spoken_sha256,
            recorded_at=instant(consent.recorded_at_s),
            evidence=consent.evidence,
        )
    return body


def cloned_body(enrolled: Enrolled, *, licence: LicenceRecord | None = None) -> Cloned:
    """A new voice, as it is answered."""
    voice = voice_body(enrolled.voice, licence=licence)
    said = {**voice.model_dump(exclude_unset=True), "voice": voice, "preflight": None}
    if enrolled.preflight is not None:
        said["preflight"] = preflight_of(enrolled.preflight, enrolled.findings)
    if enrolled.note:
        said["note"] = enrolled.note
    return Cloned(**said)


def status_of(voice: Voice) -> Status:
    """embedding_status: pending waits for a node to listen, processing for nodes to hold what was heard."""
    if voice.state == "pending":
        return "processing" if voice.revision else "pending"
    if voice.state in ("ready", "failed"):
        return "ready" if voice.state == "ready" else "failed"
    return "evicted"


def filter_of(status: Status | None) -> Filter:
    """The voices of the core's that have a status; None: of all that are listed."""
    match status:
        case "pending" | "processing":
            return Filter(states=("pending",), heard=status == "processing")
        case "ready" | "failed":
            return Filter(states=(status,))
        case "evicted":
            # Whose consent was withdrawn. Who was erased is in no list.
            return Filter(states=("frozen",))
        case None:
            return Filter(states=("pending", "ready", "failed", "frozen"))


def _reason_of(voice: Voice, status: Status) -> str | None:
    match status:
        case "ready":
            return None
        case "pending":
            return NO_NODE
        case "processing":
            return NOT_HELD
        case _:
            return voice.state_code or None
