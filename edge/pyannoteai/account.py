"""GET /v1/test: whether a key is good, which the SDK asks as it is made."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel

from controlplane.scopes import JOBS_WRITE
from edge.terms import terms


class Tested(BaseModel):
    """The key is good."""

    status: Literal["OK"] = "OK"
    message: str = "Authentication successful"


def install(app: FastAPI) -> None:
    """Add the route."""

    @app.get("/v1/test")
    @terms(JOBS_WRITE)
    async def test() -> Tested:
        """Whether the API key is good."""
        return Tested()
