"""The edge: a FastAPI application over the control plane, served as a part of its daemon.

What it serves itself: /health/live, /health/ready, /metrics, /openapi.json, and the document of each dialect under
/openapi/NAME.json. Paths under a dialect's prefixes belong to that dialect, errors included. Every other error, ours or
the framework's, leaves in one envelope: {"error": {"cause", "message", "retry_after_s"?}} with the status of
runtime.errors.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import select

from controlplane.app import ControlPlane
from controlplane.database.schema import fleet_head
from controlplane.rate_limits import RateLimit
from edge import loccus, pyannoteai, scaiecho, scaispeak, scryon
from edge.dialect import Dialect, Edge
from edge.envelope import install_error_envelope
from edge.frame import Dispatch, application_of
from edge.serving import HttpServer
from edge.timing import TimingMiddleware
from edge.uploads import UploadBudget
from runtime.errors import InvalidRequest, NotFound, Unavailable
from speakerd import __version__

READY_BOUND_S = 2.0

DIALECTS: tuple[Dialect, ...] = (
    pyannoteai.DIALECT,
    scryon.DIALECT,
    scaiecho.DIALECT,
    scaispeak.DIALECT,
    loccus.DIALECT,
)
"""What is spoken here."""


def build(plane: ControlPlane) -> HttpServer:
    """The HTTP part of a control plane; the entry point `speakerd.http`."""
    return HttpServer(application(plane), plane.settings.http, insecure=plane.settings.insecure)


def application(plane: ControlPlane) -> FastAPI:
    """The routes."""
    app = FastAPI(title="speakerd", version=__version__, docs_url=None, redoc_url=None)
    install_error_envelope(app)
    edge = Edge(plane, UploadBudget(), _rates(plane.settings.http_rate_limits))
    spoken = {dialect.name: application_of(dialect, edge) for dialect in DIALECTS}
    by_prefix = {prefix: spoken[dialect.name] for dialect in DIALECTS for prefix in dialect.prefixes}
    app.add_middleware(Dispatch, dialects=by_prefix)
    app.add_middleware(TimingMiddleware, histogram=plane.metrics.http_request_duration_seconds)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether work can be taken: the database answers and is up to date. Says how many nodes serve."""
        return await _readiness(plane)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        # Rendering takes milliseconds that the event loop has not got.
        text = await asyncio.to_thread(generate_latest, plane.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/openapi/{name}.json", include_in_schema=False)
    async def document(name: str) -> JSONResponse:
        """A dialect's OpenAPI document."""
        if name not in spoken:
            raise NotFound(f"no such dialect; there is {', '.join(sorted(spoken))}")
        return JSONResponse(spoken[name].openapi())

    return app


def _rates(changed: dict[str, int]) -> dict[str, RateLimit | None]:
    rates: dict[str, RateLimit | None] = {limit.kind: limit for dialect in DIALECTS for limit in dialect.rates}
    for kind, calls_max in changed.items():
        if kind not in rates:
            raise InvalidRequest(f"http_rate_limits: no kind {kind[:64]!r}; there is {', '.join(sorted(rates))}")
        rates[kind] = RateLimit(kind, calls_max) if calls_max > 0 else None
    return rates


async def _readiness(plane: ControlPlane) -> JSONResponse:
    body: dict[str, Any] = {"status": "ready", "database": "ok", "nodes_serving": 0}
    if plane.draining:
        return JSONResponse({**body, "status": "draining"}, status_code=503)
    try:
        async with asyncio.timeout(READY_BOUND_S):
            # The table is the migrations' own: where it answers, they have run.
            async with plane.core.database.read() as connection:
                await connection.execute(select(fleet_head))
            body["nodes_serving"] = len(await plane.core.fleet.serving())
    except (Unavailable, TimeoutError):
        return JSONResponse({**body, "status": "unavailable", "database": "away"}, status_code=503)
    return JSONResponse(body)
