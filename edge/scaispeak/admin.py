"""/admin: global voices under licences, and the erasure audit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, get_args

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel

from controlplane.agreements import Licence, LicenceKind
from controlplane.policy import GLOBAL_TENANT, VoiceScope
from edge.failures import FieldError, InvalidFields
from edge.scaigrid.erasures import ERASE_WAIT_S, ErasureBody, asking_of, erased, erasure_body
from edge.scaigrid.forms import Fields
from edge.scaispeak.cloning import take_in
from edge.scaispeak.permissions import SUPER_ADMIN, TENANT_ADMIN
from edge.scaispeak.sources import clip_of
from edge.scaispeak.voice_body import ClonedAnswer, PageMeta, cloned_body
from edge.scaispeak.voices import FORM_BYTES_MAX, OF_VOICE, PREFIX, TEXT, ErasedAnswer, form_schema, said_of
from edge.terms import Caller, TheEdge, TurnName, tells_of, terms
from edge.uploads import multipart
from runtime.errors import NotFound

Trigger = Literal["license_revoked", "license_expired", "platform_decision"]
CHARACTERS = "characters"
CAP_MAX = 1 << 40
IMPORT = form_schema(
    {
        **OF_VOICE,
        "licensor_name": TEXT,
        "license_type": {"type": "string", "enum": [kind.value for kind in LicenceKind]},
        "license_terms": TEXT,
        "license_expires_at": {"type": "string", "format": "date-time"},
        "license_character_cap": {"type": "integer"},
    },
    "display_name",
    "language_primary",
    "licensor_name",
    "license_type",
)


class Ending(BaseModel):
    """Why a global voice is erased."""

    trigger: Trigger | None = None


class ErasureList(BaseModel):
    """Erasures, newest first."""

    data: list[ErasureBody]
    meta: PageMeta


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.post(f"{PREFIX}/admin/voices/global", status_code=201, openapi_extra=IMPORT, response_model_exclude_unset=True)
    @terms(SUPER_ADMIN, rate="scaispeak.clone", body_bytes_max=FORM_BYTES_MAX, idempotent=True)
    async def take_in_global(request: Request, caller: Caller, edge: TheEdge, turn: TurnName) -> ClonedAnswer:
        """Import a voice for everybody, under a licence. There is no consent: the licence stands in its place."""
        async with multipart(request, edge.uploads, files_max=1, bytes_max=FORM_BYTES_MAX) as form:
            fields = Fields(form)
            label, details = said_of(fields)
            licence = _licence_of(fields)
            reference = clip_of(form, fields, "reference")
            fields.require_good()
            assert licence is not None
            assert reference is not None
            enrolled = await take_in(edge, caller, label, details, licence, reference=reference, turn=turn)
        tells_of(request, GLOBAL_TENANT, enrolled.voice.voice_id)
        licences = await edge.core.people.agreements.licences([enrolled.voice.voice_id])
        return ClonedAnswer(data=cloned_body(enrolled, licence=licences.get(enrolled.voice.voice_id)))

    @app.delete(f"{PREFIX}/admin/voices/global/{{voice_id}}")
    @terms(SUPER_ADMIN)
    async def delete_global(
        voice_id: str, caller: Caller, edge: TheEdge, trigger: Trigger | None = None, body: Ending | None = None
    ) -> ErasedAnswer:
        """Erase a global voice. Its licence ends the way that the trigger says, in the query or in the body."""
        said = trigger or (body.trigger if body is not None else None)
        if said is None:
            raise InvalidFields(FieldError("trigger", f"required: one of {', '.join(get_args(Trigger))}"))
        voice = await edge.core.library.seen(caller, voice_id)
        if voice.scope is not VoiceScope.GLOBAL:
            raise NotFound("no such voice")
        erasure = await edge.core.erasures.erase(
            caller, voice_id, asking=asking_of(caller, said), wait_s_max=ERASE_WAIT_S
        )
        return ErasedAnswer(data=erased(erasure))

    @app.get(f"{PREFIX}/admin/erasure/audit")
    @terms(TENANT_ADMIN)
    async def audit(
        caller: Caller,
        edge: TheEdge,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str, Query(max_length=128)] = "",
    ) -> ErasureList:
        """The tenant's erasures, newest first; for the platform's administrators also those of global voices."""
        page = await edge.core.erasures.list(caller, page_size=limit, page_token=cursor)
        return ErasureList(
            data=[erasure_body(erasure) for erasure in page.erasures], meta=PageMeta(next_cursor=page.token or None)
        )


def _licence_of(fields: Fields) -> Licence | None:
    """The licence that a form names; None when it is wrong, which is noted."""
    licensor, kind = fields.required("licensor_name"), fields.required("license_type")
    if kind not in {one.value for one in LicenceKind}:
        fields.refuse("license_type", f"one of {', '.join(one.value for one in LicenceKind)}")
        return None
    cap = fields.optional("license_character_cap").strip()
    if cap and (not cap.isdecimal() or len(cap) > 13 or not 0 < int(cap) <= CAP_MAX):
        fields.refuse("license_character_cap", f"a whole number, 1 to {CAP_MAX}")
        return None
    expires_at_s = _expiry_of(fields)
    is_counted = kind == LicenceKind.USAGE_BOUND.value
    if is_counted != bool(cap):
        fields.refuse("license_character_cap", "a usage_bound licence has it, and no other does")
        return None
    return Licence(
        licensor=licensor,
        terms=fields.optional("license_terms"),
        kind=LicenceKind(kind),
        expires_at_s=expires_at_s,
        unit=CHARACTERS if cap else "",
        usage_max=int(cap) if cap else None,
    )


def _expiry_of(fields: Fields) -> float | None:
    text = fields.optional("license_expires_at").strip()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        fields.refuse("license_expires_at", "a date and time, 2030-01-31T00:00:00Z")
        return None
