"""Deliveries one by one: why they fail, in whose hands they are, and what leaves with them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from controlplane import webhook_rows as rows
from controlplane import webhooks as webhooks_module
from controlplane.app import ControlPlane
from controlplane.database.schema import webhook_deliveries
from controlplane.guarded_http import GuardedHttp, UrlPolicy
from controlplane.job_rows import EndedJob
from controlplane.job_spec import JobKind, JobState, Webhook
from controlplane.job_view import Job, JobOutput
from controlplane.webhook_post import Reason, WebhookPost
from controlplane.webhook_secrets import sign
from runtime.certificates import Authority
from runtime.clock import SystemClock
from runtime.errors import Stale
from tests.controlplane.conftest import World, until
from tests.controlplane.people import make_tenant
from tests.controlplane.receiver import Receiver, never, receiving, says

SECRET = "whsec_x"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


def poster(receiver: Receiver, *networks: str, timeout_s: float = 30.0, **options: Any) -> WebhookPost:
    policy = UrlPolicy.of(networks or ("127.0.0.0/8",), (receiver.port,), plain=True)
    return WebhookPost(GuardedHttp(policy, **options), SystemClock(), timeout_s=timeout_s)


async def posted(post: WebhookPost, url: str, *, may_leave: Callable[[], bool] = lambda: True) -> Reason | None:
    return await post.post(url, b'{"jobId":"j"}', secret=SECRET, number=0, reason="", may_leave=may_leave)


def test_a_signature_is_the_hmac_of_version_time_and_raw_body() -> None:
    # Computed with another implementation: openssl dgst -sha256 -hmac.
    assert sign("secret", "1700000000", b'{"a": 1}') == (
        "7f2dbc9677356f5370d4e259686fe3f5dd42f35b5307ab80ac9fd04e13a047cf"
    )
    assert sign("secret", "1700000000", b"{}", as_base64=True) != sign("secret", "1700000000", b"{}")


async def test_each_way_of_failing_has_its_word(receiver: Receiver, tmp_path: Path) -> None:
    post = poster(receiver)
    assert await posted(post, receiver.url("/ok")) is None
    for status in ("400 Bad Request", "404 Not Found", "500 Oh", "304 Not Modified"):
        receiver.answers["/no"] = [says(status)]
        assert await posted(post, receiver.url("/no")) is Reason.STATUS
    receiver.answers["/never"] = [never]
    assert await posted(poster(receiver, timeout_s=0.5), receiver.url("/never")) is Reason.TIMEOUT
    for number in range(3):
        receiver.answers[f"/{number}"] = [says("307 Go on", f"Location: /{number + 1}")]
    assert await posted(post, receiver.url("/1")) is None  # two redirects
    assert await posted(post, receiver.url("/0")) is Reason.REDIRECTS  # three of them
    assert receiver.told[-1].path == "/2"
    receiver.answers["/nowhere"] = [says("302 Found")]
    assert await posted(post, receiver.url("/nowhere")) is Reason.STATUS

    closed = Receiver(port=1)
    assert await posted(poster(closed), closed.url()) is Reason.CONNECTION
    authority = Authority.open_or_make(tmp_path / "certs", "hooks.test")
    cert, key = authority.issue_files("node", "hook", ["127.0.0.1"], timedelta(days=1))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with receiving(context) as secured:
        assert await posted(poster(secured), secured.url(scheme="https")) is Reason.TLS
        trusting = ssl.create_default_context(cafile=str(authority.folder / "ca.crt"))
        assert await posted(poster(secured, ssl_context=trusting), secured.url(scheme="https")) is None
        assert len(secured.told) == 1
        # What was told under TLS is not told in the open.
        secured.answers["/down"] = [says("307 Go on", f"Location: {receiver.url('/ok')}")]
        told = len(receiver.told)
        policy = UrlPolicy.of(("127.0.0.0/8",), (secured.port, receiver.port), plain=True)
        down = WebhookPost(GuardedHttp(policy, ssl_context=trusting), SystemClock())
        assert await posted(down, secured.url("/down", scheme="https")) is Reason.STATUS
        assert len(receiver.told) == told

    async def broken(host: str, port: int) -> list[str]:
        raise ZeroDivisionError

    assert await posted(poster(receiver, resolve=broken), receiver.url()) is Reason.UNKNOWN


async def test_a_name_that_changes_its_mind_and_a_redirect_inwards_reach_nobody(receiver: Receiver) -> None:
    answers = [["203.0.113.9", "127.0.0.1"], ["10.1.2.3"], ["127.0.0.1"]]

    async def changing(host: str, port: int) -> list[str]:
        return answers.pop(0)

    inward = poster(receiver, "198.51.100.0/24", resolve=changing)
    for _ in range(3):
        assert await posted(inward, receiver.url(host="rebinding.example")) is Reason.CONNECTION
    assert receiver.told == []
    receiver.answers["/in"] = [says("307 Go on", f"Location: http://169.254.169.254:{receiver.port}/latest")]
    assert await posted(poster(receiver), receiver.url("/in")) is Reason.CONNECTION
    assert [told.path for told in receiver.told] == ["/in"]


async def test_what_may_not_leave_any_more_does_not_although_the_connection_stands(receiver: Receiver) -> None:
    asked: list[bool] = []

    def refuse() -> bool:
        asked.append(True)
        return False

    with pytest.raises(Stale):
        await posted(poster(receiver), receiver.url(), may_leave=refuse)
    assert asked and receiver.told == []


# Deliveries of a control plane, whose jobs are made up.


async def add(plane: ControlPlane, job_id: str, url: str, *, tenant_id: str = "default") -> None:
    core = plane.core
    async with core.database.write() as connection:
        await core.webhooks.on_end(
            connection, EndedJob(job_id, tenant_id, JobState.SUCCEEDED, Webhook(url), ended_at_s=0.0)
        )


def tell_of_made_up_jobs(plane: ControlPlane, output: JobOutput | None = None) -> None:
    async def as_creator(job_id: str) -> Job | None:
        return Job(job_id, "default", JobKind.DIARIZE, JobState.SUCCEEDED, 0.0, 0.0, output=output)

    plane.core.webhooks._as_creator = as_creator
    plane.webhook_body = lambda job, status_only: f'{{"jobId":"{job.job_id}"}}'.encode()


def reaching(receiver: Receiver) -> dict[str, Any]:
    return {"fetch_networks": ("127.0.0.0/8",), "fetch_ports": (receiver.port,), "fetch_plain_http": True}


async def states(plane: ControlPlane) -> dict[str, str]:
    async with plane.core.database.read() as connection:
        found = await connection.execute(select(webhook_deliveries.c.job_id, webhook_deliveries.c.state))
        return {row.job_id: row.state for row in found}


async def all_delivered(*planes: ControlPlane) -> bool:
    return set((await states(planes[0])).values()) == {rows.DELIVERED}


async def test_an_attempt_is_one_claimers_until_its_time_is_over(any_world: World, receiver: Receiver) -> None:
    plane = await any_world.plane(**reaching(receiver))
    database = plane.core.database
    await add(plane, "j1", receiver.url())
    async with database.write() as connection:
        now_s = await database.lease_now_s(connection)
        assert [one.job_id for one in await rows.due(connection, now_s, 10)] == ["j1"]
        first = await rows.claim(connection, "j1", now_s)
        assert first is not None and await rows.claim(connection, "j1", now_s) is None
        assert await rows.due(connection, now_s + rows.CLAIM_S - 1, 10) == []
        # Its claimer is gone: another takes over, and the first one's word counts for nothing any more.
        late_s = now_s + rows.CLAIM_S + 1
        second = await rows.claim(connection, "j1", late_s)
        assert second is not None and second.number == 0
        assert not await rows.delivered(connection, first, 0.0)
        assert not await rows.failed(connection, first, "http_error", now_lease_s=late_s, now_s=0.0)
        for number, wait_s in enumerate(rows.RETRY_S):
            assert second is not None and second.number == number
            assert await rows.failed(connection, second, "http_error", now_lease_s=late_s, now_s=0.0)
            late_s += wait_s
            if wait_s:
                assert await rows.due(connection, late_s - 1, 10) == []
            second = await rows.claim(connection, "j1", late_s)
        assert second is not None and second.reason == "http_error"
        assert not await rows.failed(connection, second, "http_error", now_lease_s=late_s, now_s=0.0)
        assert await rows.due(connection, late_s + 10_000, 10) == []
        # Times of an earlier boot's clock, which lie far ahead, hold up nothing.
        await connection.execute(
            update(webhook_deliveries).values(state=rows.WAITING, due_lease_s=1e9, claimed_until_lease_s=1e9)
        )
        assert len(await rows.due(connection, now_s, 10)) == 1


async def test_two_control_planes_tell_each_end_once(
    postgresql_url: str, world: World, tmp_path: Path, receiver: Receiver
) -> None:
    world.database_url = postgresql_url
    async with world.running(**reaching(receiver)) as first:
        other = World(tmp_path / "other", world._stack, postgresql_url)
        other.data.mkdir(mode=0o700)
        for name in ("kek.key", "fleet.key", "ticket.key", "audit.key", "admin.key"):
            (other.data / name).write_bytes((world.data / name).read_bytes())
            (other.data / name).chmod(0o600)
        shared = {"erasure_journal": str(world.data / "erasure-journal")}
        async with other.running(**reaching(receiver), **shared) as second:
            for plane in (first, second):
                tell_of_made_up_jobs(plane)
            for number in range(40):
                await add(first if number % 2 else second, f"j{number}", receiver.url(f"/{number}"))
            await until(lambda: all_delivered(first))
            assert sorted(told.path for told in receiver.told) == sorted(f"/{number}" for number in range(40))


async def test_one_tenants_slow_receivers_hold_up_nobody_elses(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "LOOK_MAX", 10)  # fewer than wait for the slow ones
    plane = await world.plane(**reaching(receiver))
    for tenant_id in ("slow", "quick"):
        await make_tenant(plane, tenant_id)
    receiver.answers["/slow"] = [never]
    for number in range(40):
        await add(plane, f"s{number}", receiver.url("/slow"), tenant_id="slow")
    await add(plane, "q", receiver.url("/quick"), tenant_id="quick")
    tell_of_made_up_jobs(plane)
    await until(lambda: any(told.path == "/quick" for told in receiver.told))
    assert sum(told.path == "/slow" for told in receiver.told) <= webhooks_module.RUNNING_OF_TENANT_MAX
    plane.core.webhooks._post._timeout_s = 0.1
    for task in plane.core.webhooks._running.values():
        task.cancel()


async def test_a_name_that_is_erased_while_a_receiver_is_called_does_not_leave(
    world: World, receiver: Receiver
) -> None:
    plane = await world.plane(**reaching(receiver))
    guard = plane.core.guard
    tell_of_made_up_jobs(plane, JobOutput())
    bodies: list[str] = []

    def body(job: Job, status_only: bool) -> bytes:
        bodies.append(job.job_id)
        if len(bodies) == 1:
            guard.evictions += 1  # somebody is erased while it is written down
        return b"{}"

    plane.webhook_body = body
    await add(plane, "j", receiver.url())
    await until(lambda: all_delivered(plane))
    assert len(bodies) == 2 and len(receiver.told) == 1
    assert receiver.told[0].retry is None, "nothing was tried the first time"


async def test_the_end_of_a_job_that_is_gone_is_told_to_nobody(world: World, receiver: Receiver) -> None:
    plane = await world.plane(**reaching(receiver))
    plane.webhook_body = lambda job, status_only: b"{}"
    await add(plane, "never-was", receiver.url())

    async def given_up() -> bool:
        return await states(plane) == {"never-was": rows.GIVEN_UP}

    await until(given_up)
    assert receiver.told == []
    async with plane.core.database.write() as connection:
        assert await rows.forget(connection, SystemClock().wall_s() + 1) == 1
    assert await states(plane) == {}
