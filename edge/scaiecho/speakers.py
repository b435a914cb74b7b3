"""/speakers: enrolling, listing, reading, deleting.

Each handler translates, makes one call of the core, and translates back.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel

from controlplane.agreements import Consent
from controlplane.enrolment_request import Details
from controlplane.enrolment_request import Request as Enrolling
from controlplane.intake import CLIP_BYTES_MAX, Clip
from controlplane.voices import Filter
from edge.scaiecho.permissions import ENROLL
from edge.scaiecho.speaker_body import (
    STATES,
    EnrolmentAnswer,
    PageMeta,
    SpeakerAnswer,
    SpeakerList,
    Status,
    enrolment_of,
    speaker_of,
)
from edge.scaigrid.erasures import Erased, erase, erased
from edge.scaigrid.forms import Fields
from edge.terms import Caller, TheEdge, TurnName, tells_of, terms
from edge.uploads import Form, UploadedFile, multipart

PREFIX = "/v1/modules/scaiecho"
FORM_BYTES_MAX = 2 * CLIP_BYTES_MAX + (1 << 20)
"""Two recordings, and what is said of them."""
TEXT = {"type": "string"}
FILE = {"type": "string", "format": "binary"}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [
                        "display_name",
                        "language_primary",
                        "consent_user_full_name",
                        "consent_stated_purpose",
                        "consent_text",
                        "reference",
                        "consent",
                    ],
                    "properties": {
                        "display_name": TEXT,
                        "language_primary": TEXT,
                        "description": TEXT,
                        "consent_user_full_name": TEXT,
                        "consent_stated_purpose": TEXT,
                        "consent_text": TEXT,
                        "reference": FILE,
                        "consent": FILE,
                    },
                }
            }
        },
    }
}


class ErasedAnswer(BaseModel):
    """What became of a deletion."""

    data: Erased


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post(f"{PREFIX}/speakers", status_code=201, openapi_extra=FORM, response_model_exclude_unset=True)
    @terms(ENROLL, rate="scaiecho.enroll", body_bytes_max=FORM_BYTES_MAX, idempotent=True)
    async def enrol(request: Request, caller: Caller, edge: TheEdge, turn: TurnName) -> EnrolmentAnswer:
        """Enrol a speaker from a reference recording and a recording of the consent."""
        async with multipart(request, edge.uploads, files_max=2, bytes_max=FORM_BYTES_MAX) as form:
            enrolled = await edge.core.enrolment.enrol(caller, _enrolling(form, turn))
        tells_of(request, caller.tenant_id, enrolled.voice.voice_id)
        return EnrolmentAnswer(data=enrolment_of(enrolled))

    @app.get(f"{PREFIX}/speakers")
    @terms(ENROLL)
    async def list_speakers(
        *,
        caller: Caller,
        edge: TheEdge,
        enrollment_status: Status | None = None,
        language: Annotated[str, Query(max_length=35)] = "",
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str, Query(max_length=64)] = "",
    ) -> SpeakerList:
        """Every speaker that the caller's streams may name or that the caller may see, a page at a time."""
        states = (
            STATES[enrollment_status] if enrollment_status else tuple(one for two in STATES.values() for one in two)
        )
        found, token = await edge.core.library.list(
            caller, page_size=limit, page_token=cursor, wanted=Filter(language=language, text=q, states=states)
        )
        return SpeakerList(data=[speaker_of(voice) for voice in found], meta=PageMeta(next_cursor=token or None))

    @app.get(f"{PREFIX}/speakers/{{speaker_id}}")
    @terms(ENROLL)
    async def read(speaker_id: str, caller: Caller, edge: TheEdge) -> SpeakerAnswer:
        """One speaker."""
        return SpeakerAnswer(data=speaker_of(await edge.core.library.present(caller, speaker_id)))

    @app.delete(f"{PREFIX}/speakers/{{speaker_id}}")
    @terms(ENROLL)
    async def delete(speaker_id: str, caller: Caller, edge: TheEdge) -> ErasedAnswer:
        """Erase a speaker: tombstone, every node, recordings, audit. Asked again, the answer is the same erasure."""
        return ErasedAnswer(data=erased(await erase(edge, caller, speaker_id)))


def _enrolling(form: Form, turn: str) -> Enrolling:
    """What a form asks for. Raises InvalidFields with all that is missing."""
    fields = Fields(form)
    label, language = fields.required("display_name"), fields.required("language_primary")
    consent = Consent(
        full_name=fields.required("consent_user_full_name"),
        purpose=fields.required("consent_stated_purpose"),
        text=fields.required("consent_text"),
    )
    files: dict[str, UploadedFile] = {}
    for name in ("reference", "consent"):
        if name in form.files:
            files[name] = form.files[name]
        else:
            fields.refuse(name, "required: send the recording as a file")
    fields.require_good()
    return Enrolling(
        voice_id="",
        label=label,
        consent=consent,
        idempotency_key=turn,
        clips=(Clip(files["reference"].data), Clip(files["consent"].data, is_consent=True)),
        details=Details(language=language, description=fields.optional("description")),
    )
