"""/speakers/{id}/warm: which nodes hold a speaker, and sending it to them again."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel, Field

from controlplane.keys import VoiceAddress
from controlplane.policy import Principal, Right
from edge.dialect import Edge
from edge.scaiecho.permissions import ENROLL
from edge.scaiecho.speaker_body import WarmAnswer, WarmedAnswer, warm_of, warmed_of
from edge.scaiecho.speakers import PREFIX
from edge.terms import Caller, TheEdge, terms

NODE_IDS_MAX = 1_000


class Warming(BaseModel):
    """To which nodes a speaker is sent; none: all that serve."""

    node_ids: list[str] = Field(default_factory=list, max_length=NODE_IDS_MAX)


def install(app: FastAPI) -> None:
    """Add the routes."""

    @app.get(f"{PREFIX}/speakers/{{speaker_id}}/warm")
    @terms(ENROLL)
    async def warmth(speaker_id: str, caller: Caller, edge: TheEdge) -> WarmAnswer:
        """Where a speaker is held, where it could be, and who held it and is away."""
        voice = await _address(edge, caller, speaker_id)
        return WarmAnswer(data=warm_of(await edge.core.library.warmth(voice)))

    @app.post(f"{PREFIX}/speakers/{{speaker_id}}/warm")
    @terms(ENROLL)
    async def warm(speaker_id: str, caller: Caller, edge: TheEdge, body: Warming | None = None) -> WarmedAnswer:
        """Send a speaker to nodes again."""
        voice = await _address(edge, caller, speaker_id)
        node_ids = tuple(body.node_ids) if body is not None else ()
        return WarmedAnswer(data=warmed_of(await edge.core.library.warm(voice, node_ids)))


async def _address(edge: Edge, caller: Principal, speaker_id: str) -> VoiceAddress:
    await edge.core.library.present(caller, speaker_id)
    return await edge.core.library.find(caller, speaker_id, Right.SEE)
