"""The edge: health, metrics, and one envelope for every error."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from edge import patient_http
from edge.app import application, build
from edge.envelope import install_error_envelope
from edge.serving import HttpServer
from runtime.errors import HTTP_STATUS, InvalidRequest, Overloaded, SpeakerdError, Unavailable
from runtime.lifecycle import Tasks
from tests.controlplane.conftest import World, collected, until, world

__all__ = ["collected", "world"]  # fixtures


def over(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://edge")


async def test_readiness_follows_the_database_and_says_who_serves(world: World) -> None:
    plane = await world.plane()
    async with over(application(plane)) as http:
        assert (await http.get("/health/live")).json() == {"status": "live"}
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()["nodes_serving"]) == (200, 0)
        node = await world.node(plane)
        assert (await http.get("/health/ready")).json()["nodes_serving"] == 1
        await node.stop()
        plane.core.readiness.is_draining = True
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")


async def test_a_database_that_is_away_makes_it_unready_and_not_dead(world: World) -> None:
    plane = await world.plane()

    def away() -> None:
        raise Unavailable("the database is away")

    plane.core.database.read = away  # type: ignore[assignment,method-assign]
    async with over(application(plane)) as http:
        assert (await http.get("/health/ready")).status_code == 503
        assert (await http.get("/health/live")).status_code == 200


async def test_metrics_count_requests_by_route_and_never_by_path(world: World) -> None:
    plane = await world.plane()
    async with over(application(plane)) as http:
        await http.get("/health/live")
        await http.get("/never/heard/of/zanzibar")
        text = (await http.get("/metrics")).text
    assert 'speakerd_http_request_duration_seconds_count{code="200",method="GET",route="/health/live"} 1.0' in text
    assert 'route="none"' in text
    # The one that asks.
    assert "speakerd_http_requests_active 1.0" in text
    assert "zanzibar" not in text
    for name in ("erasure_seconds", "erasures_pending", "head_revision", "redis_up", "nodes"):
        assert f"speakerd_cp_{name}" in text


async def test_every_error_leaves_in_one_envelope() -> None:
    app = FastAPI()
    install_error_envelope(app)

    @app.get("/full")
    async def full() -> None:
        raise Overloaded("every node is full", retry_after_s=1.5)

    @app.get("/fault")
    async def fault() -> None:
        raise RuntimeError("the secret is 42")

    @app.get("/typed")
    async def typed(number: int) -> None:
        del number

    async with over(app) as http:
        answer = await http.get("/full")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.json() == {
            "error": {"cause": "overloaded", "message": "every node is full", "retry_after_s": 1.5}
        }
        answer = await http.get("/fault")
        assert answer.status_code == 500
        assert answer.json()["error"]["cause"] == "internal"
        assert "42" not in answer.text
        answer = await http.get("/typed?number=x")
        assert (answer.status_code, answer.json()["error"]["cause"]) == (400, "invalid")
        assert "number" in answer.json()["error"]["message"]
        assert (await http.get("/nowhere")).json()["error"]["cause"] == "not_found"
        assert (await http.post("/full")).status_code == 405


@pytest.mark.parametrize("kind", SpeakerdError.__subclasses__())
async def test_every_cause_has_its_status(kind: type[SpeakerdError]) -> None:
    app = FastAPI()
    install_error_envelope(app)

    @app.get("/")
    async def raises() -> None:
        raise kind("what happened")

    async with over(app) as http:
        answer = await http.get("/")
    assert answer.status_code == HTTP_STATUS[kind.cause]
    assert answer.json()["error"] == {"cause": kind.cause.value, "message": "what happened"}


async def test_it_listens_and_lets_a_running_request_end_as_it_drains(world: World) -> None:
    plane = await world.plane()
    edge = build(plane)
    began, release = asyncio.Event(), asyncio.Event()

    @edge._app.get("/slow")
    async def slow() -> PlainTextResponse:
        began.set()
        await release.wait()
        return PlainTextResponse("done")

    tasks = Tasks()
    await edge.start(tasks)
    async with httpx.AsyncClient(base_url=edge.url) as http:
        assert (await http.get("/health/live")).status_code == 200
        answer = asyncio.create_task(http.get("/slow"))
        await began.wait()
        draining = asyncio.create_task(edge.drain(5))
        await until(lambda: edge._server is not None and not edge._server.servers[0].is_serving())
        with pytest.raises(httpx.TransportError):
            async with httpx.AsyncClient(base_url=edge.url) as other:
                await other.get("/health/live")
        release.set()
        assert (await answer).text == "done"
        await draining
    await edge.stop()
    await tasks.cancel()
    assert not tasks.failed.done()


@pytest.mark.parametrize(
    "said", [b"", b"GET /health/live HT", b"GET /health/live HTTP/1.1\r\nHost: here\r\n", b"WHOLE"]
)
async def test_a_connection_that_never_ends_its_request_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(patient_http, "HEAD_S", 0.5)
    monkeypatch.setattr(patient_http, "KEEP_ALIVE_S", 1.0)
    edge, tasks = build(await world.plane()), Tasks()
    await edge.start(tasks)
    try:
        host, _, port = edge.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        if said == b"WHOLE":  # one that is answered, and then half of the next
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            said = b"GET /hea"

        async def trickle() -> None:
            for byte in said:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                assert b"200 OK" not in await reader.read()
        trickling.cancel()
        writer.close()
        async with httpx.AsyncClient(base_url=edge.url) as http:
            assert (await http.get("/health/live")).status_code == 200
    finally:
        await edge.stop()
        await tasks.cancel()


async def test_requests_beyond_so_many_at_once_are_refused_and_mute_connections_are_none() -> None:
    goes_on, under_way = asyncio.Event(), asyncio.Event()
    slow = FastAPI()

    @slow.get("/slow")
    async def answer() -> PlainTextResponse:
        under_way.set()
        await goes_on.wait()
        return PlainTextResponse("done")

    bounded = patient_http.BoundedRequests(slow, 1)
    transport = httpx.ASGITransport(bounded)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        first = asyncio.create_task(http.get("/slow"))
        await under_way.wait()
        refused = await http.get("/slow")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        goes_on.set()
        assert (await first).text == "done"
        assert (await http.get("/slow")).status_code == 200


async def test_a_bad_address_and_a_taken_port_are_named() -> None:
    tasks = Tasks()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            await HttpServer(FastAPI(), f"127.0.0.1:{port}", insecure=False).start(tasks)
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        await HttpServer(FastAPI(), "8080", insecure=False).start(tasks)
    with pytest.raises(InvalidRequest, match="--insecure"):
        await HttpServer(FastAPI(), "0.0.0.0:0", insecure=False).start(tasks)
