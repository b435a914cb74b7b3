"""Webhooks from the submission of a job to its receiver: signed, tried again, and never sent into this network."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from controlplane import webhook_rows
from controlplane.app import ControlPlane
from edge.app import build
from runtime.lifecycle import Tasks
from tests.controlplane.conftest import until
from tests.controlplane.receiver import Receiver, never, receiving, says
from tests.edge.conftest import Served, Serving
from tests.edge.pyannoteai_calls import ended, refused, submit, upload


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same schedule, in less time."""
    assert webhook_rows.RETRY_S == (0.0, 60.0, 300.0)
    monkeypatch.setattr(webhook_rows, "RETRY_S", (0.0, 0.3, 0.6))


def reaching(receiver: Receiver) -> dict[str, Any]:
    return {
        "fetch_networks": ("127.0.0.0/8",),
        "fetch_ports": (receiver.port, 443),
        "fetch_plain_http": True,
        "http_rate_limits": {"pyannoteai.read": 0},
    }


async def submitting(served: Served) -> httpx.AsyncClient:
    client = await served.http(await served.key("jobs:write"))
    await upload(client)
    return client


async def secret_of(served: Served) -> str:
    answer = await (await served.http()).post("/v1/webhook-secret")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["secret"])


async def test_an_end_is_told_signed_over_its_raw_bytes_with_the_output_that_a_read_gives(
    serving: Serving, receiver: Receiver
) -> None:
    served = await serving(nodes=1, **reaching(receiver))
    http, secret = await submitting(served), await secret_of(served)
    before_s = int(time.time())
    answer = await submit(http, webhook=receiver.url("/hook?of=mine"), exclusive=True)
    assert answer.status_code == 200, answer.text
    job = await ended(http, answer.json()["jobId"])
    await until(lambda: receiver.told)
    (told,) = receiver.told
    assert told.path == "/hook?of=mine" and told.headers["content-type"] == "application/json"
    assert told.is_signed_with(secret) and not told.is_signed_with(secret + "x")
    assert before_s <= int(told.headers["x-request-timestamp"]) <= time.time() + 1
    assert told.retry is None
    assert json.loads(told.body) == {"jobId": job["jobId"], "status": "succeeded", "output": job["output"]}
    assert "exclusiveDiarization" in job["output"]


async def test_the_status_alone_is_told_where_that_is_asked_for_and_failures_and_cancels_are_told_too(
    serving: Serving, receiver: Receiver
) -> None:
    served = await serving(nodes=1, **reaching(receiver))
    http = await submitting(served)
    quiet = (await submit(http, webhook=receiver.url("/quiet"), webhookStatusOnly=True)).json()["jobId"]
    await ended(http, quiet)
    await upload(http, "media://talks/broken", b"this is no sound")
    broken = await http.post("/v1/diarize", json={"url": "media://talks/broken", "webhook": receiver.url("/broken")})
    failed = await ended(http, broken.json()["jobId"])
    await until(lambda: {told.path for told in receiver.told} >= {"/quiet", "/broken"})
    by_path = {told.path: json.loads(told.body) for told in receiver.told}
    assert by_path["/quiet"] == {"jobId": quiet, "status": "succeeded"}
    assert by_path["/broken"] == {"jobId": failed["jobId"], "status": "failed", "output": failed["output"]}
    assert failed["output"]["error"]


async def test_a_receiver_that_refuses_once_times_out_once_and_redirects_is_told_in_the_end(
    serving: Serving, receiver: Receiver, quick: None
) -> None:
    served = await serving(nodes=1, **reaching(receiver))
    served.plane.core.webhooks._post._timeout_s = 1.0
    http, secret = await submitting(served), await secret_of(served)
    receiver.answers["/hook"] = [
        says("500 Internal Server Error"), never, says("307 Temporary Redirect", "Location: /moved"),
    ]  # fmt: skip
    receiver.answers["/moved"] = [says("302 Found", f"Location: {receiver.url('/there')}")]
    job_id = (await submit(http, webhook=receiver.url())).json()["jobId"]
    await until(lambda: any(told.path == "/there" for told in receiver.told), 60)
    assert [(told.path, told.retry) for told in receiver.told] == [
        ("/hook", None),
        ("/hook", ("1", "http_error")),
        ("/hook", ("2", "http_timeout")),
        ("/moved", ("2", "http_timeout")),
        ("/there", ("2", "http_timeout")),
    ]
    assert all(told.is_signed_with(secret) for told in receiver.told)
    assert {told.body for told in receiver.told} == {receiver.told[0].body}
    assert json.loads(receiver.told[0].body)["jobId"] == job_id


async def test_after_three_retries_nobody_tries_any_more(serving: Serving, receiver: Receiver, quick: None) -> None:
    served = await serving(nodes=1, **reaching(receiver))
    http = await submitting(served)
    receiver.answers["/hook"] = [says("404 Not Found")]
    await submit(http, webhook=receiver.url())
    counter = served.plane.metrics.webhook_deliveries.labels("given_up")
    before = counter._value.get()
    await until(lambda: counter._value.get() > before, 60)
    assert [told.retry for told in receiver.told] == [
        None, ("1", "http_error"), ("2", "http_error"), ("3", "http_error"),
    ]  # fmt: skip


INSIDE = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "10.0.0.1", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
]  # fmt: skip


async def test_a_webhook_or_a_url_into_this_network_is_refused_by_default(serving: Serving) -> None:
    served = await serving(http_rate_limits={"pyannoteai.submit": 0})
    http = await served.http(await served.key("jobs:write"))
    for host in INSIDE:
        for path in ("diarize", "voiceprint"):
            body = {"url": "media://talk", "webhook": f"https://{host}/hook"}
            assert refused(await http.post(f"/v1/{path}", json=body)) == ["webhook"], host
        assert refused(await http.post("/v1/diarize", json={"url": f"https://{host}/talk.wav"})) == ["url"], host
    for url in ("http://8.8.8.8/hook", "https://8.8.8.8:22/hook", "ftp://8.8.8.8/", "https://user@8.8.8.8/"):
        assert refused(await http.post("/v1/diarize", json={"url": "media://talk", "webhook": url})) == ["webhook"]


async def test_the_secret_is_the_administrators_shown_once_and_rotated(serving: Serving, receiver: Receiver) -> None:
    served = await serving(nodes=1, **reaching(receiver))
    admin, http = await served.http(), await submitting(served)
    assert (await admin.get("/v1/webhook-secret")).json() == {"createdAt": None}
    for call in (http.get, http.post):
        assert (await call("/v1/webhook-secret")).status_code == 403
    first = await secret_of(served)
    assert set((await admin.get("/v1/webhook-secret")).json()) == {"createdAt"}
    await submit(http, webhook=receiver.url())
    await until(lambda: len(receiver.told) == 1)
    second = await secret_of(served)
    assert second != first
    await submit(http, webhook=receiver.url())
    await until(lambda: len(receiver.told) == 2)
    assert [told.is_signed_with(first) for told in receiver.told] == [True, False]
    assert [told.is_signed_with(second) for told in receiver.told] == [False, True]
    # It lies nowhere as it is, and neither does the url.
    for path in served.world.data.glob("speakerd.db*"):
        content = path.read_bytes()
        assert second.encode() not in content and first.encode() not in content
        assert receiver.url().encode() not in content


async def test_an_end_that_nobody_told_is_told_by_whoever_starts_next(serving: Serving, receiver: Receiver) -> None:
    async with serving.world.running(**reaching(receiver)) as plane:
        # It speaks no dialect, so that it tells nobody.
        await serving.world.node(plane)
        job_id = await _job_of(plane, serving, receiver)
    served = await serving(**reaching(receiver))
    await until(lambda: receiver.told)
    assert json.loads(receiver.told[0].body)["jobId"] == job_id
    assert receiver.told[0].is_signed_with(await _first_secret(served))
    assert len(receiver.told) == 1


async def _first_secret(served: Served) -> str:
    return await served.plane.core.webhooks.secrets.of("default")


async def _job_of(plane: ControlPlane, serving: Serving, receiver: Receiver) -> str:
    """A job that has ended in a control plane whose worker for webhooks says nothing."""
    edge, tasks = build(plane), Tasks()
    plane.webhook_body = None
    await edge.start(tasks)
    try:
        key = (serving.world.data / "admin.key").read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=60) as http:
            await upload(http)
            job_id = (await submit(http, webhook=receiver.url())).json()["jobId"]
            assert (await ended(http, job_id))["status"] == "succeeded"
            return str(job_id)
    finally:
        await edge.stop()
        await tasks.cancel()
