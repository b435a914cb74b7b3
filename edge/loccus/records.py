"""Records of what was used: the organisation's and the user's. They outlive what they record."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI

from controlplane.scopes import VOICES_READ
from edge.loccus.bodies import RecordBody, record_body
from edge.loccus.lists import Listed, PageBody, page_body
from edge.terms import Caller, TheEdge, terms

Kind = Literal["voiceprint", "verification"]


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.get("/v1/orgs/{org}/records/{kind}")
    @terms(VOICES_READ)
    async def of_organisation(
        caller: Caller, edge: TheEdge, org: str, kind: Kind, listing: Listed
    ) -> PageBody[RecordBody]:
        """What was used in an organisation's spaces, the newest first."""
        page = await edge.core.spaces.records.of_organisation(caller, org, kind, listing)
        return page_body(page, listing, record_body)

    @app.get("/v1/records/{kind}")
    @terms(VOICES_READ)
    async def of_user(caller: Caller, edge: TheEdge, kind: Kind, listing: Listed) -> PageBody[RecordBody]:
        """What was used in the caller's own spaces, the newest first."""
        return page_body(await edge.core.spaces.records.of_user(caller, kind, listing), listing, record_body)
