"""The edge: a FastAPI application over the control plane, served as a part of its daemon.

What it serves now: /health/live, /health/ready, /metrics and /openapi.json; the dialects come on top. Every error, ours
or the framework's, leaves in one envelope: {"error": {"cause", "message", "retry_after_s"?}} with the status of
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
from edge.envelope import install_error_envelope
from edge.serving import HttpServer
from edge.timing import TimingMiddleware
from runtime.errors import Unavailable
from speakerd import __version__

READY_BOUND_S = 2.0


def build(plane: ControlPlane) -> HttpServer:
    """The HTTP part of a control plane; the entry point `speakerd.http`."""
    return HttpServer(application(plane), plane.settings.http, insecure=plane.settings.insecure)


def application(plane: ControlPlane) -> FastAPI:
    """The routes."""
    app = FastAPI(title="speakerd", version=__version__, docs_url=None, redoc_url=None)
    install_error_envelope(app)
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

    return app


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
