"""/voices: cloning, listing, reading, sharing, taking up again, erasing.

Each handler translates, makes one call of the core, and translates back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel

from controlplane.agreement_reading import ConsentRecord
from controlplane.agreements import Consent
from controlplane.enrolment_request import Details
from controlplane.intake import CLIP_BYTES_MAX
from controlplane.policy import Principal, VoiceScope
from controlplane.voices import Voice
from edge.dialect import Edge
from edge.scaigrid.erasures import Erased, erase, erased
from edge.scaigrid.forms import Fields
from edge.scaispeak.cloning import Cloning, clone
from edge.scaispeak.permissions import READ, SHARE, WRITE
from edge.scaispeak.sources import clip_of
from edge.scaispeak.voice_body import (
    ClonedAnswer,
    PageMeta,
    Scope,
    Status,
    VoiceAnswer,
    VoiceList,
    cloned_body,
    filter_of,
    voice_body,
)
from edge.terms import Caller, TheEdge, TurnName, tells_of, terms
from edge.uploads import multipart
from runtime.errors import Denied

PREFIX = "/v1/modules/scaispeak"
FORM_BYTES_MAX = 2 * CLIP_BYTES_MAX + (1 << 20)
"""Two recordings, and what is said of them."""
TEXT = {"type": "string"}
FILE = {"type": "string", "format": "binary"}
OF_VOICE = {
    "display_name": TEXT,
    "language_primary": TEXT,
    "language_supported_json": TEXT,
    "description": TEXT,
    "gender_hint": TEXT,
    "age_hint": TEXT,
    "style_tags_json": TEXT,
    "reference": FILE,
    "reference_scaidrive_json": TEXT,
}
OF_CONSENT = {
    "consent_user_full_name": TEXT,
    "consent_stated_purpose": TEXT,
    "consent_text": TEXT,
    "consent": FILE,
    "consent_scaidrive_json": TEXT,
}


class ErasedAnswer(BaseModel):
    """What became of an erasure."""

    data: Erased


def form_schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """What OpenAPI says of a form."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


CLONE = form_schema(
    {**OF_VOICE, **OF_CONSENT},
    "display_name",
    "language_primary",
    "consent_user_full_name",
    "consent_stated_purpose",
    "consent_text",
)


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.get(f"{PREFIX}/voices", response_model_exclude_unset=True)
    @terms(READ)
    async def list_voices(
        *,
        caller: Caller,
        edge: TheEdge,
        language: Annotated[str, Query(max_length=35)] = "",
        scope: Scope | None = None,
        gender: Annotated[str, Query(max_length=16)] = "",
        embedding_status: Status | None = None,
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str, Query(max_length=64)] = "",
    ) -> VoiceList:
        """The caller's own voices, its tenant's and the global ones. q: in name, description or style tags."""
        wanted = replace(
            filter_of(embedding_status),
            language=language,
            gender=gender,
            text=q,
            scope=None if scope is None else VoiceScope(scope),
        )
        found, token = await edge.core.library.list(caller, page_size=limit, page_token=cursor, wanted=wanted)
        licences = await edge.core.people.agreements.licences(_global(found))
        return VoiceList(
            data=[voice_body(voice, licence=licences.get(voice.voice_id)) for voice in found],
            meta=PageMeta(next_cursor=token or None),
        )

    @app.post(f"{PREFIX}/voices", status_code=201, openapi_extra=CLONE, response_model_exclude_unset=True)
    @terms(WRITE, rate="scaispeak.clone", body_bytes_max=FORM_BYTES_MAX, idempotent=True)
    async def create(request: Request, caller: Caller, edge: TheEdge, turn: TurnName) -> ClonedAnswer:
        """Clone a voice from a reference and a recorded consent."""
        async with multipart(request, edge.uploads, files_max=2, bytes_max=FORM_BYTES_MAX) as form:
            fields = Fields(form)
            label, details = said_of(fields)
            consent = Consent(
                full_name=fields.required("consent_user_full_name"),
                purpose=fields.required("consent_stated_purpose"),
                text=fields.required("consent_text"),
            )
            reference, spoken = clip_of(form, fields, "reference"), clip_of(form, fields, "consent")
            fields.require_good()
            assert reference is not None
            assert spoken is not None
            cloning = Cloning(label, details, consent, turn)
            enrolled = await clone(edge, caller, cloning, reference=reference, consent=spoken)
        tells_of(request, caller.tenant_id, enrolled.voice.voice_id)
        return ClonedAnswer(data=cloned_body(enrolled))

    @app.get(f"{PREFIX}/voices/{{voice_id}}", response_model_exclude_unset=True)
    @terms(READ)
    async def read(voice_id: str, caller: Caller, edge: TheEdge) -> VoiceAnswer:
        """One voice, with its licence, or with its consent for who may change it."""
        voice = await edge.core.library.present(caller, voice_id)
        licences = await edge.core.people.agreements.licences(_global([voice]))
        consent = await _consent(edge, caller, voice)
        return VoiceAnswer(data=voice_body(voice, licence=licences.get(voice_id), consent=consent))

    @app.post(f"{PREFIX}/voices/{{voice_id}}/share", response_model_exclude_unset=True)
    @terms(SHARE)
    async def share(voice_id: str, caller: Caller, edge: TheEdge) -> VoiceAnswer:
        """Give a user's voice to the tenant. One that the tenant has already stays as it is."""
        return VoiceAnswer(data=voice_body(await edge.core.people.changes.share(caller, voice_id)))

    @app.post(f"{PREFIX}/voices/{{voice_id}}/repromote", response_model_exclude_unset=True)
    @terms(WRITE)
    async def repromote(voice_id: str, caller: Caller, edge: TheEdge) -> VoiceAnswer:
        """Run the intake of a voice that is stuck again. Nothing happens to one that is ready."""
        return VoiceAnswer(data=voice_body(await edge.core.people.repromotion.repromote(caller, voice_id)))

    @app.delete(f"{PREFIX}/voices/{{voice_id}}")
    @terms(WRITE)
    async def delete(voice_id: str, caller: Caller, edge: TheEdge) -> ErasedAnswer:
        """Erase a voice: tombstone, every node, recordings, audit. Asked again, the answer is the same erasure."""
        return ErasedAnswer(data=erased(await erase(edge, caller, voice_id)))


def said_of(fields: Fields) -> tuple[str, Details]:
    """A voice's name and details."""
    label = fields.required("display_name")
    return label, Details(
        language=fields.required("language_primary"),
        gender=fields.optional("gender_hint"),
        description=fields.optional("description"),
        languages=fields.words("language_supported_json"),
        style_tags=fields.words("style_tags_json"),
        age=fields.optional("age_hint"),
    )


def _global(voices: list[Voice]) -> list[str]:
    return [voice.voice_id for voice in voices if voice.scope is VoiceScope.GLOBAL]


async def _consent(edge: Edge, caller: Principal, voice: Voice) -> ConsentRecord | None:
    try:
        return await edge.core.people.agreements.consent(caller, voice.voice_id)
    except Denied:
        return None  # it may be seen, and what its person said is not for everybody who sees it
