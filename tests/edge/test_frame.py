"""What every dialect has in common: request ids, terms, limits, envelopes, repeated requests, dispatch."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import select

from controlplane.database.schema import kept_answers
from controlplane.rate_limits import RateLimit, RateLimits
from controlplane.scopes import VOICES_READ, VOICES_WRITE
from edge import uploads
from edge.app import DIALECTS
from edge.dialect import Dialect, Edge
from edge.failures import Failure, FieldError, InvalidFields
from edge.frame import Dispatch, application_of
from edge.pyannoteai.errors import ERRORS, ErrorBody, render
from edge.serving import HttpServer
from edge.terms import Caller, TheEdge, terms
from edge.uploads import BodyMeter, UploadBudget, multipart
from runtime.clock import SystemClock
from runtime.errors import Cause, Overloaded, TimedOut
from runtime.lifecycle import Tasks
from tests.controlplane.redis_server import redis_server
from tests.edge import scai
from tests.edge.conftest import Served, Serving

BODY_BYTES_MAX = 200_000
RATE = RateLimit("toy.asks", 3)


class Wish(BaseModel):
    """A body."""

    number: int


class Toy:
    """A dialect for tests, and what happened to it."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.dialect = Dialect("toy", "toy", ("/toy",), render, ErrorBody, ERRORS, self.install, (RATE,))

    def install(self, app: FastAPI, _edge: Edge) -> None:
        @app.post("/toy/wishes", status_code=201)
        @terms(VOICES_WRITE, idempotent=True)
        async def wish(body: Wish) -> dict[str, int]:
            self.began.set()
            await self.release.wait()
            if body.number < 0:
                raise InvalidFields(FieldError("number", "has to be positive"))
            self.done.append(body.number)
            return {"number": body.number, "count": len(self.done)}

        @app.get("/toy/asks")
        @terms(VOICES_READ, rate="toy.asks")
        async def asks(caller: Caller) -> dict[str, str]:
            return {"tenant": caller.tenant_id}

        @app.post("/toy/forms")
        @terms(None, idempotent=False)
        async def forms(request: Request, edge: TheEdge) -> dict[str, Any]:
            async with multipart(request, edge.uploads, files_max=1, bytes_max=BODY_BYTES_MAX) as form:
                return {**form.fields, **{name: len(file.data) for name, file in form.files.items()}}

        @app.post("/toy/raw")
        @terms(None, body_bytes_max=BODY_BYTES_MAX)
        async def raw(request: Request) -> int:
            return sum([len(part) async for part in request.stream()])

        @app.get("/toy/fault")
        @terms(None)
        async def fault() -> None:
            raise RuntimeError("the secret is 42")

        @app.get("/toy/full")
        @terms(None)
        async def full() -> None:
            raise Overloaded("every node is full", retry_after_s=1.5)


@asynccontextmanager
async def toy_http(served: Served, toy: Toy, *, budget: UploadBudget | None = None) -> AsyncIterator[httpx.AsyncClient]:
    edge = Edge(served.plane, budget or UploadBudget(), {RATE.kind: RATE})
    outer = FastAPI()
    outer.add_middleware(Dispatch, dialects={"/toy": application_of(toy.dialect, edge)})
    server = HttpServer(outer, "127.0.0.1:0", insecure=False)
    tasks = Tasks()
    await server.start(tasks)
    try:
        headers = {"authorization": f"Bearer {served.admin_key}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as http:
            yield http
    finally:
        await server.stop()
        await tasks.cancel()


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_cause_has_its_answer_in_every_dialect(dialect: Dialect) -> None:
    for cause in Cause:
        status, body = dialect.render(Failure(cause, "what happened", "r-1", retry_after_s=1.0))
        assert 400 <= status < 600
        assert status in dialect.errors or cause is Cause.UNIMPLEMENTED, (cause, status)
        dialect.error_model.model_validate(body)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
async def test_every_operation_of_a_dialect_is_described_with_its_errors(dialect: Dialect, served: Served) -> None:
    document = (await (await served.http("")).get(f"/openapi/{dialect.name}.json")).json()
    operations = [(path, name, one) for path, item in document["paths"].items() for name, one in item.items()]
    assert operations
    for path, name, operation in operations:
        assert {str(status) for status in dialect.errors} <= set(operation["responses"]), (name, path)
        assert "HTTPValidationError" not in str(operation)


def test_a_route_without_terms_does_not_come_into_being(served: Served) -> None:
    def install(app: FastAPI, _edge: Edge) -> None:
        @app.get("/toy/open")
        async def forgotten() -> None:
            """Nobody said who may call this."""

    toy = Dialect("toy", "toy", ("/toy",), render, ErrorBody, ERRORS, install)
    with pytest.raises(AssertionError, match="forgotten"):
        application_of(toy, Edge(served.plane, UploadBudget(), {}))


async def test_an_unknown_path_a_wrong_method_and_a_missing_key_are_in_the_dialects_envelope(served: Served) -> None:
    http = await served.http("")
    answer = await http.get("/v1/nowhere")
    assert (answer.status_code, set(answer.json())) == (404, {"message", "requestId"})
    answer = await http.post("/v1/test")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    answer = await http.get("/v1/test")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "requestId" in answer.json()
    assert (await http.get("/v1/jobs/a%00b")).status_code == 404
    # Outside of any dialect the edge has its own.
    assert (await http.get("/nowhere")).json()["error"]["cause"] == "not_found"
    assert (await http.get("/openapi/nothing.json")).status_code == 404


async def test_the_request_id_is_the_clients_when_it_is_a_plain_word_and_ours_otherwise(served: Served) -> None:
    http = await served.http()
    answer = await http.get("/v1/test", headers={"x-request-id": "abc-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "abc-1")
    answer = await http.get("/v1/nowhere", headers={"x-request-id": "a b; c"})
    assert answer.headers["x-request-id"] not in ("a b; c", "")
    assert answer.json()["requestId"] == answer.headers["x-request-id"]


async def test_a_key_without_the_scope_is_denied_and_one_of_nobody_unauthenticated(served: Served) -> None:
    reader = await served.http(await served.key("voices:read"))
    assert (await reader.get("/v1/test")).status_code == 403
    stranger = await served.http("sk_0011223344_nothing")
    assert (await stranger.get("/v1/test")).status_code == 401


async def test_a_fault_is_answered_in_the_envelope_and_its_text_stays_here(served: Served) -> None:
    async with toy_http(served, Toy()) as http:
        answer = await http.get("/toy/fault")
        assert (answer.status_code, set(answer.json())) == (500, {"message", "requestId"})
        assert "42" not in answer.json()["message"]  # the id is made of digits, too
        answer = await http.get("/toy/full")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


async def test_a_key_is_asked_for_before_anything_of_the_body_is_looked_at(served: Served) -> None:
    async with toy_http(served, Toy()) as http:
        answer = await http.post("/toy/wishes", content=b"{", headers={"authorization": "Bearer sk_no_body"})
        assert answer.status_code == 401
        assert (await http.post("/toy/wishes", json={"number": "x"})).json() == {
            "message": "Invalid request",
            "errors": [{"field": "number", "message": answer_of_pydantic()}],
        }
        answer = await http.post("/toy/wishes", content=b"{", headers={"content-type": "application/json"})
        assert answer.json()["errors"] == [{"field": "", "message": "the body is not JSON"}]
        deep = b"[" * 100_000
        answer = await http.post("/toy/wishes", content=deep, headers={"content-type": "application/json"})
        assert answer.status_code == 400


def answer_of_pydantic() -> str:
    try:
        Wish.model_validate({"number": "x"})
    except ValueError as error:
        return str(error.errors()[0]["msg"])  # type: ignore[attr-defined]
    raise AssertionError


async def test_a_body_over_its_limit_is_refused_while_it_streams_whatever_its_length_says(served: Served) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * BODY_BYTES_MAX:
            sent += 50_000
            yield b"x" * 50_000

    async with toy_http(served, Toy()) as http:
        assert (await http.post("/toy/raw", content=b"x" * BODY_BYTES_MAX)).json() == BODY_BYTES_MAX
        answer = await http.post("/toy/raw", content=b"x" * (BODY_BYTES_MAX + 1))
        assert answer.status_code == 413
        assert str(BODY_BYTES_MAX) in answer.json()["message"]
        # Chunked: there is no length to go by.
        assert (await http.post("/toy/raw", content=endless())).status_code == 413
        # A JSON body has the frame's own limit.
        answer = await http.post("/toy/wishes", json={"number": 1, "pad": "x" * (1 << 20)})
        assert answer.status_code == 413


async def test_forms_are_bounded_alone_and_together_and_name_everything_once(served: Served) -> None:
    budget_max = 4 * BODY_BYTES_MAX // 3 + 10_000
    budget = UploadBudget(budget_max)
    async with toy_http(served, Toy(), budget=budget) as http:
        file = {"file": ("a.wav", b"x" * 100_000)}
        answer = await http.post("/toy/forms", data={"name": "one"}, files=file)
        assert answer.json() == {"name": "one", "file": 100_000}
        assert (await http.post("/toy/forms", files={"file": ("a.wav", b"x" * BODY_BYTES_MAX)})).status_code == 413
        two = [("file", ("a.wav", b"x")), ("other", ("b.wav", b"x"))]
        assert (await http.post("/toy/forms", files=two)).status_code == 400
        answer = await http.post("/toy/forms", files={"file": ("a.wav", b"x")}, data={"name": ["one", "two"]})
        assert answer.json()["errors"] == [{"field": "name", "message": "comes twice"}]
        assert (await http.post("/toy/forms", data={"name": "x" * 70_000}, files=file)).status_code == 400
        assert (await http.post("/toy/forms", json={})).status_code == 415
        answer = await http.post("/toy/forms", content=b"x", headers={"content-type": "multipart/form-data"})
        assert answer.status_code == 400
        with budget.hold(budget_max * 3 // 4, "others"):
            answer = await http.post("/toy/forms", data={"name": "one"}, files=file)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
        assert (await http.post("/toy/forms", data={"name": "one"}, files=file)).status_code == 200


def test_one_tenants_uploads_leave_room_for_the_others() -> None:
    budget = UploadBudget(100)
    with budget.hold(50, "one"), budget.hold(25, "one"):
        with pytest.raises(Overloaded), budget.hold(1, "one"):
            pass
        with budget.hold(25, "two"), pytest.raises(Overloaded), budget.hold(1, "three"):
            pass
    assert repr(budget) == "UploadBudget(0 of 100 bytes)"


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "a\\ud83da"])
async def test_json_with_half_a_character_is_malformed_and_no_fault(served: Served, half: str) -> None:
    async with toy_http(served, Toy()) as http:
        headers = {"content-type": "application/json"}
        answer = await http.post("/toy/wishes", content=f'{{"number": 1, "word": "{half}"}}', headers=headers)
        assert answer.status_code == 400, answer.text
        (wrong,) = answer.json()["errors"]
        assert wrong["field"] == "word" and "half a character" in wrong["message"]
        whole = await http.post("/toy/wishes", content='{"number": 1, "word": "\\ud83d\\ude00"}', headers=headers)
        assert whole.status_code == 201, whole.text


@pytest.mark.parametrize("charset", ["undefined", "utf-7", "unicode_escape", "punycode", "utf-16"])
async def test_a_form_in_another_encoding_than_utf_8_is_not_read(served: Served, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n\\ud800 +2AA-\r\n--b--\r\n'
    async with toy_http(served, Toy()) as http:
        for said, status in ((charset, 415), ("UTF-8", 200)):
            headers = {"content-type": f"multipart/form-data; charset={said}; boundary=b"}
            assert (await http.post("/toy/forms", content=body, headers=headers)).status_code == status


async def test_calls_past_the_rate_are_refused_with_headers_and_one_key_does_not_use_up_anothers(
    served: Served,
) -> None:
    async with toy_http(served, Toy()) as http:
        other = {"authorization": f"Bearer {await served.key('voices:read')}"}
        for remaining in (2, 1, 0):
            answer = await http.get("/toy/asks")
            assert answer.status_code == 200
            assert answer.headers["x-ratelimit-limit"] == "3"
            assert answer.headers["x-ratelimit-remaining"] == str(remaining)
        answer = await http.get("/toy/asks")
        assert (answer.status_code, set(answer.json())) == (429, {"message", "requestId"})
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert int(answer.headers["x-ratelimit-reset"]) > 1_700_000_000
        assert (await http.get("/toy/asks", headers=other)).status_code == 200


async def test_a_redis_that_is_away_stops_nobody_and_each_process_counts_for_itself(
    served: Served, tmp_path: Path
) -> None:
    limit = RateLimit("kind", 2)
    async with redis_server(tmp_path / "redis") as server:
        limits = RateLimits(server.url, SystemClock())
        elsewhere = RateLimits(server.url, SystemClock())
        assert [(await limits.take("a", limit)).allowed, (await elsewhere.take("a", limit)).allowed] == [True, True]
        assert not (await limits.take("a", limit)).allowed
        assert (await limits.take("b", limit)).allowed
        async with Redis.from_url(server.url) as redis:
            keys = await redis.keys("*")
        assert all(b"sk_" not in key for key in keys)
        server.process.kill()
        await server.process.wait()
        assert [(await limits.take("a", limit)).allowed for _ in range(3)] == [True, True, False]
        await limits.close()
        await elsewhere.close()


async def test_a_repeated_request_is_done_once_and_its_key_is_kept_nowhere(served: Served) -> None:
    toy = Toy()
    key = f"order-{secrets.token_hex(8)}"
    async with toy_http(served, toy) as http:
        first = await http.post("/toy/wishes", json={"number": 7}, headers={"idempotency-key": key})
        again = await http.post("/toy/wishes", json={"number": 7}, headers={"idempotency-key": key})
        assert first.status_code == again.status_code == 201
        assert first.json() == again.json() == {"number": 7, "count": 1}
        assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
        other = await http.post("/toy/wishes", json={"number": 8}, headers={"idempotency-key": key})
        assert other.status_code == 409
        # Another caller's key of the same name is another key.
        await served.tenant("other")
        token = await served.key("voices:write", tenant_id="other")
        theirs = {"idempotency-key": key, "authorization": f"Bearer {token}"}
        assert (await http.post("/toy/wishes", json={"number": 9}, headers=theirs)).json()["count"] == 2
        assert (await http.post("/toy/wishes", json={"number": 1}, headers={"idempotency-key": ""})).status_code == 400
        too_long = {"idempotency-key": "k" * 256}
        assert (await http.post("/toy/wishes", json={"number": 1}, headers=too_long)).status_code == 400
    async with served.plane.core.database.read() as connection:
        rows = (await connection.execute(select(kept_answers))).all()
    assert len(rows) == 2
    assert key not in str(rows)
    assert all(b"count" not in bytes(row.ciphertext) for row in rows)


async def test_what_came_to_nothing_may_be_tried_again_and_what_is_under_way_is_not_done_twice(served: Served) -> None:
    toy = Toy()
    async with toy_http(served, toy) as http:
        headers = {"idempotency-key": "one"}
        assert (await http.post("/toy/wishes", json={"number": -1}, headers=headers)).status_code == 400
        toy.began.clear()
        toy.release.clear()
        first = asyncio.create_task(http.post("/toy/wishes", json={"number": 1}, headers=headers))
        await toy.began.wait()
        waiting = await http.post("/toy/wishes", json={"number": 1}, headers=headers)
        assert (waiting.status_code, waiting.headers["retry-after"]) == (409, "1")
        toy.release.set()
        assert (await first).status_code == 201
        assert toy.done == [1]


async def test_a_form_that_is_sent_again_with_another_boundary_is_the_same_request(serving: Serving) -> None:
    served = await serving()
    done: list[int] = []

    def install(app: FastAPI, _edge: Edge) -> None:
        @app.post("/toy/forms")
        @terms(VOICES_WRITE, idempotent=True)
        async def forms(request: Request, edge: TheEdge) -> int:
            async with multipart(request, edge.uploads, files_max=1, bytes_max=BODY_BYTES_MAX) as form:
                done.append(len(form.files["file"].data))
                return len(done)

    toy = Toy()
    toy.dialect = Dialect("toy", "toy", ("/toy",), render, ErrorBody, ERRORS, install)
    async with toy_http(served, toy) as http:
        for _ in range(2):
            answer = await http.post(
                "/toy/forms", files={"file": ("a.wav", b"sound")}, headers={"idempotency-key": "one"}
            )
            assert answer.json() == 1
    assert done == [5]


async def test_an_answer_that_was_kept_goes_with_the_voice_that_it_tells_of(served: Served) -> None:
    http = await served.http()
    headers = {"idempotency-key": "enrol-alice"}

    async def enrol() -> httpx.Response:
        return await http.post(f"{scai.ECHO}/speakers", data=scai.SPEAKER, files=scai.FILES, headers=headers)

    first, again = await enrol(), await enrol()
    assert (first.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert first.json()["data"] == again.json()["data"]
    speaker_id = first.json()["data"]["speaker"]["id"]
    assert (await http.delete(f"{scai.ECHO}/speakers/{speaker_id}")).status_code == 200
    after = await enrol()
    assert after.status_code == 409
    assert "Alice" not in after.text


async def test_calls_of_dialects_are_timed_by_route_and_never_by_path(served: Served) -> None:
    http = await served.http()
    await http.get("/v1/jobs/zanzibar")
    text = (await http.get("/metrics")).text
    assert 'http_request_duration_seconds_count{code="404",method="GET",route="/v1/jobs/{jobId}"} 1.0' in text
    assert "zanzibar" not in text


async def test_a_sender_who_falls_silent_within_a_body_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_S_MAX", 0.05)

    async def silent() -> Any:
        await asyncio.Event().wait()

    meter = BodyMeter({"type": "http", "headers": []}, silent)
    with pytest.raises(TimedOut, match="nothing of the body"):
        await meter()


class Ticking:
    """A loop's clock that a test moves on."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


async def test_a_sender_of_a_byte_now_and_then_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    clock = Ticking(loop.time())
    monkeypatch.setattr(loop, "time", clock)

    def receiving(num_bytes: int) -> BodyMeter:
        async def slow() -> dict[str, Any]:
            clock.now_s += 10.0
            return {"type": "http.request", "body": bytes(num_bytes), "more_body": True}

        return BodyMeter({"type": "http", "headers": []}, slow)

    meter = receiving(100)
    with pytest.raises(TimedOut, match="less than"):
        for _ in range(10):
            await meter()
    meter = receiving(400)  # slow, and no slower than may be
    for _ in range(30):
        await meter()
