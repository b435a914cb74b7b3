"""The edge: a FastAPI application over the control plane, served as a part of its daemon.

What it serves itself: /health/live|started|ready, /metrics, /openapi.json, and the document of each dialect under
/openapi/NAME.json. Paths under a dialect's prefixes belong to that dialect, errors included. Every other error, ours or
the framework's, leaves in one envelope: {"error": {"cause", "message", "retry_after_s"?}} with the status of
runtime.errors.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controlplane.app import ControlPlane
from controlplane.rate_limits import RateLimit
from edge import loccus, pyannoteai, scaiecho, scaispeak, scryon
from edge.dialect import Dialect, Edge
from edge.envelope import install_error_envelope
from edge.frame import Dispatch, application_of
from edge.serving import HttpServer
from edge.timing import TimingMiddleware
from edge.uploads import UploadBudget
from runtime.errors import InvalidRequest, NotFound
from speakerd import __version__

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
    app.add_middleware(TimingMiddleware, metrics=plane.metrics)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/started")
    async def started() -> JSONResponse:
        """Whether everything is loaded."""
        is_started = plane.health.is_started()
        return JSONResponse({"status": "started" if is_started else "starting"}, status_code=200 if is_started else 503)

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether work can be taken: the database answers, and what nodes should hold is known. Says how many serve."""
        return await _readiness(plane)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text, where operators have no port of their own for it."""
        if plane.metrics_address:
            raise NotFound("metrics are served on a port of their own")
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
    verdict = await plane.core.readiness.look()
    database = "away" if verdict.status == "unavailable" else "ok"
    return JSONResponse(
        {"status": verdict.status, "database": database, "nodes_serving": verdict.nodes_serving},
        status_code=200 if verdict.is_ready else 503,
    )
