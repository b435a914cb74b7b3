"""What every dialect has in common: request ids, terms, limits, envelopes, dispatch."""

from __future__ import annotations

import pytest

from edge.app import DIALECTS
from edge.dialect import Dialect
from edge.failures import Failure
from runtime.errors import Cause
from tests.edge.conftest import Served


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_cause_has_its_answer_in_every_dialect(dialect: Dialect) -> None:
    for cause in Cause:
        status, body = dialect.render(Failure(cause, "what happened", "r-1", retry_after_s=1.0))
        assert 400 <= status < 600
        assert status in dialect.errors or cause in (Cause.UNIMPLEMENTED, Cause.UNSUPPORTED_MEDIA), (cause, status)
        dialect.error_model.model_validate(body)


async def test_an_unknown_path_a_wrong_method_and_a_missing_key_are_in_the_dialects_envelope(served: Served) -> None:
    http = await served.http("")
    answer = await http.get("/v1/nowhere")
    assert (answer.status_code, set(answer.json())) == (404, {"message", "requestId"})
    answer = await http.post("/v1/test")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    answer = await http.get("/v1/test")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "requestId" in answer.json()
    # Outside of any dialect the edge has its own.
    assert (await http.get("/nowhere")).json()["error"]["cause"] == "not_found"


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
