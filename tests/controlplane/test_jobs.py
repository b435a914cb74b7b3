"""Jobs from their creation to their end, over a real Redis and both databases, with a node that is told its answers."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import aio
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from controlplane import job_chores, job_worker
from controlplane import jobs as use_cases
from controlplane.app import ControlPlane
from controlplane.database.schema import job_results, jobs, media, tenants
from controlplane.job_rows import Claim, EndedJob
from controlplane.job_run import Done
from controlplane.job_spec import JobKind, JobSpec, JobState, Matching, MediaKey, SentVoiceprint, Webhook
from controlplane.policy import Principal
from controlplane.relay_guard import Relaying
from runtime.errors import BadAudio, Overloaded, Unavailable
from speakerd.v1 import common_pb2, jobs_pb2, node_pb2, people_pb2
from tests.controlplane.conftest import Client, World, speech, until, wav
from tests.controlplane.fake_node import FakeNode
from tests.controlplane.job_driving import cancel, create, ended, get, read_result, run, upload
from tests.controlplane.people import Library, make_key, make_tenant

SUCCEEDED, FAILED, CANCELED = (
    jobs_pb2.Job.STATE_SUCCEEDED,
    jobs_pb2.Job.STATE_FAILED,
    jobs_pb2.Job.STATE_CANCELED,
)


class Ends:
    """What the hooks of a plane's jobs were told."""

    def __init__(self, plane: ControlPlane) -> None:
        self.told: list[EndedJob] = []
        plane.core.jobs.on_end.append(self._hook)

    async def _hook(self, connection: AsyncConnection, ended: EndedJob) -> None:
        self.told.append(ended)

    def of(self, job_id: str) -> list[JobState]:
        return [one.state for one in self.told if one.job_id == job_id]


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as refused:
        await call
    code: grpc.StatusCode = refused.value.code()
    return code


async def stage(world: World, **settings: Any) -> tuple[ControlPlane, Client, FakeNode]:
    """A plane, its administrator, a node, and a recording of 3 s under the key `talk`."""
    plane = await world.plane(**settings)
    client = await world.client(plane)
    node = await world.node(plane)
    await upload(client, "talk", wav(speech(seconds=3)))
    return plane, client, node


async def test_a_recording_is_uploaded_and_heard_and_the_job_tells_how_it_went(any_world: World) -> None:
    plane, client, node = await stage(any_world)
    ends = Ends(plane)
    made = await create(client, media_key="talk", options=node_pb2.FileOpen(num_speakers=2, frame_confidence=True))
    assert made.state in (jobs_pb2.Job.STATE_CREATED, jobs_pb2.Job.STATE_RUNNING)
    assert not made.HasField("result") and not made.HasField("expires_at")
    job = await ended(client, made.job_id)
    assert job.state == SUCCEEDED
    assert job.result.duration_ms == job.progress.processed_ms == 3_000
    assert job.expires_at.seconds - job.updated_at.seconds == 24 * 3600
    assert [len(data) for data in node.files] == [3 * 16_000 * 4]
    (opening,) = node.openings
    assert (opening.tenant_id, opening.num_speakers, opening.duration_ms) == ("default", 2, 3_000)
    assert opening.frame_confidence and not opening.HasField("identify")
    assert ends.of(made.job_id) == [JobState.SUCCEEDED]


async def test_what_a_voiceprint_job_gives_is_what_an_identification_takes(any_world: World) -> None:
    plane, client, node = await stage(any_world)
    made = await run(client, "voiceprint", media_key="talk")
    assert made.state == SUCCEEDED and 0 < len(made.voiceprint) < 15_000
    assert b"fake@1" not in made.voiceprint
    turns = [common_pb2.Turn(start_ms=0, end_ms=1_000, speaker=f"spk_{n}", label=f"spk_{n}") for n in (0, 1)]
    zoe = node_pb2.Candidate(sent=1, probability=0.874, score=87)
    node.result = node_pb2.FileResult(
        turns=turns,
        exclusive_turns=turns,
        speakers=[common_pb2.Speaker(speaker=turn.speaker, label=turn.label) for turn in turns],
        identities=[
            node_pb2.SpeakerIdentity(speaker="spk_0", candidates=[node_pb2.Candidate(sent=1, score=3)]),
            node_pb2.SpeakerIdentity(speaker="spk_1", match=zoe, candidates=[zoe]),
        ],
    )
    job = await run(
        client,
        "identify",
        media_key="talk",
        voiceprints=[jobs_pb2.JobVoiceprint(label="Zoë", voiceprint=made.voiceprint)],
        matching=jobs_pb2.JobMatching(exclusive=False, threshold=40),
    )
    asked = node.openings[-1].identify
    assert (asked.exclusive, asked.threshold, asked.enrolled) == (False, 40, False)
    (sent,) = asked.voiceprints
    assert sent.model == "fake@1" and len(sent.embedding) == 64 and sent.net_speech_ms == 5_000
    assert [turn.label for turn in job.result.turns] == ["spk_0", "Zoë"]
    assert job.result.identities[1].match.label == "Zoë"
    seen = await plane.core.jobs.get(Principal("default", "k", frozenset()), job.job_id)
    assert seen.output is not None
    assert [(one.match, dict(one.scores or {})) for one in seen.output.speakers] == [
        (None, {"Zoë": 3}),
        ("Zoë", {"Zoë": 87}),
    ]
    assert [turn.name for turn in seen.output.turns] == [None, "Zoë"]


async def test_voiceprints_of_others_are_refused_and_of_another_model_warned_of(world: World) -> None:
    plane, client, node = await stage(world)
    made = await run(client, "voiceprint", media_key="talk")
    await make_tenant(plane, "rival")
    rival = await world.client(plane, await make_key(plane, "rival", "jobs:write"))
    await upload(rival, "talk", wav(speech(seconds=1)))
    theirs = await run(rival, "voiceprint", media_key="talk")

    def asks(blob: bytes) -> Any:
        return create(
            client, "identify", media_key="talk", voiceprints=[jobs_pb2.JobVoiceprint(label="A", voiceprint=blob)]
        )

    for wrong in (theirs.voiceprint, made.voiceprint[:-1], b"\x07" + made.voiceprint[1:], b"anything", b"\x01"):
        with pytest.raises(aio.AioRpcError, match=r"voiceprints\.0\.voiceprint"):
            await asks(wrong)
    await node.stop()
    await world.node(plane, "node-2", model="fake@2")

    async def only_the_other_model() -> bool:
        return {lease.model for lease in await plane.core.fleet.serving()} == {"fake@2"}

    await until(only_the_other_model, 60)
    warned = await asks(made.voiceprint)
    assert "voiceprints.0.voiceprint" in warned.warning and "another" not in warned.error
    job = await ended(client, warned.job_id)
    assert job.state == SUCCEEDED and "another model" in job.warning


async def test_a_repeated_request_gives_the_first_job_and_another_under_its_key_is_refused(any_world: World) -> None:
    _, client, node = await stage(any_world)
    first = await create(client, media_key="talk", idempotency_key="once")
    again = await create(client, media_key="talk", idempotency_key="once")
    assert again.job_id == first.job_id
    other = create(client, media_key="talk", idempotency_key="once", options=node_pb2.FileOpen(num_speakers=3))
    assert await refusal(other) is grpc.StatusCode.ALREADY_EXISTS
    await ended(client, first.job_id)
    assert len(node.files) == 1


async def test_a_page_of_jobs_leads_to_the_next_and_states_can_be_asked_for(any_world: World) -> None:
    _plane, client, _ = await stage(any_world)
    made = [(await create(client, media_key="talk")).job_id for _ in range(5)]
    for job_id in made:
        await ended(client, job_id)
    found: list[str] = []
    token = ""
    while True:
        page = await client.jobs.ListJobs(
            jobs_pb2.ListJobsRequest(page_size=2, page_token=token), metadata=client.metadata
        )
        assert not any(job.HasField("result") for job in page.jobs)
        found += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    none = await client.jobs.ListJobs(jobs_pb2.ListJobsRequest(state=FAILED), metadata=client.metadata)
    assert not none.jobs
    for wrong in (jobs_pb2.ListJobsRequest(page_size=101), jobs_pb2.ListJobsRequest(page_token="é/")):
        assert await refusal(client.jobs.ListJobs(wrong, metadata=client.metadata)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_another_tenants_job_is_not_there(any_world: World) -> None:
    plane, client, _ = await stage(any_world)
    job = await run(client, media_key="talk")
    await make_tenant(plane, "rival")
    rival = await any_world.client(plane, await make_key(plane, "rival", "jobs:write"))
    asked = jobs_pb2.GetJobRequest(job_id=job.job_id)
    for call in (
        get(rival, job.job_id),
        cancel(rival, job.job_id),
        read_result(rival, job.job_id),
        ended(rival, job.job_id),
        get(rival, "never-was"),
    ):
        assert await refusal(call) is grpc.StatusCode.NOT_FOUND
    listed = await rival.jobs.ListJobs(jobs_pb2.ListJobsRequest(), metadata=rival.metadata)
    assert not listed.jobs and asked.job_id
    assert await refusal(create(rival, media_key="talk")) is grpc.StatusCode.INVALID_ARGUMENT
    weak = await any_world.client(plane, await make_key(plane, "default", "voices:read"))
    assert await refusal(get(weak, job.job_id)) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_job_is_canceled_while_it_waits_and_while_it_runs_and_the_node_is_let_go(any_world: World) -> None:
    plane, client, node = await stage(any_world, jobs_at_once=1)
    ends = Ends(plane)
    node.answers.clear()
    running = await create(client, media_key="talk")
    waiting = await create(client, media_key="talk")
    await until(lambda: len(node.files) == 1)
    assert (await cancel(client, waiting.job_id)).state == CANCELED
    canceled = await cancel(client, running.job_id)
    assert canceled.state == CANCELED and not canceled.HasField("result")
    # The node notices within the time of a window.
    await until(lambda: node.files_cut == 1, 10)
    node.answers.set()
    assert (await run(client, media_key="talk")).state == SUCCEEDED
    assert (await cancel(client, running.job_id)).state == CANCELED
    assert ends.of(running.job_id) == ends.of(waiting.job_id) == [JobState.CANCELED]
    assert len(node.files) == 2


async def test_a_job_that_ended_stays_as_it_ended(world: World) -> None:
    plane, client, _ = await stage(world)
    ends = Ends(plane)
    job = await run(client, media_key="talk")
    assert (await cancel(client, job.job_id)).state == SUCCEEDED
    assert ends.of(job.job_id) == [JobState.SUCCEEDED]


async def test_a_bad_recording_fails_at_once_with_what_to_mend(world: World) -> None:
    _plane, client, node = await stage(world)
    await upload(client, "bad", b"no sound at all " * 100)
    job = await run(client, media_key="bad")
    assert job.state == FAILED and "send" in job.error
    node.file_refusals.append(BadAudio("no sound above -60 dBFS: check the microphone"))
    assert "microphone" in (await run(client, media_key="talk")).error
    assert node.files == []
    long = await run(client, "voiceprint", media_key="talk")
    assert long.state == SUCCEEDED
    await upload(client, "long", wav(speech(seconds=31)))
    assert "at most 30 s" in (await run(client, "voiceprint", media_key="long")).error


async def test_a_node_that_breaks_is_tried_again_so_many_times_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "SWEEP_S", 0.2)
    monkeypatch.setattr(job_worker, "BACKOFF_S_MAX", 0.1)
    _plane, client, node = await stage(world, job_attempts=3)
    node.file_refusals += [Unavailable("stopping"), Unavailable("stopping")]
    assert (await run(client, media_key="talk")).state == SUCCEEDED
    node.file_refusals += [Unavailable("stopping")] * 3
    job = await run(client, media_key="talk")
    assert job.state == FAILED and "node is away" in job.error
    assert node.file_refusals == []
    # A node that is full is no failure: the job waits for as long as it takes.
    monkeypatch.setattr(job_worker, "WAIT_S", (0.01, 0.02))
    node.file_refusals += [Overloaded("all file slots are taken")] * 6
    assert (await run(client, media_key="talk")).state == SUCCEEDED


async def test_without_a_node_a_job_waits_for_one_and_goes_on_by_itself(world: World) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await upload(client, "talk", wav(speech(seconds=1)))
    made = await create(client, media_key="talk")
    await asyncio.sleep(0.5)
    assert (await get(client, made.job_id)).state in (jobs_pb2.Job.STATE_CREATED, jobs_pb2.Job.STATE_RUNNING)
    await world.node(plane)
    assert (await ended(client, made.job_id)).state == SUCCEEDED


async def test_a_job_keeps_the_recording_that_it_was_made_with(world: World) -> None:
    plane, client, node = await stage(world, jobs_at_once=1)
    node.answers.clear()
    first = await create(client, media_key="talk")
    await until(lambda: len(node.files) == 1)
    second = await create(client, media_key="talk")
    await upload(client, "talk", wav(speech(seconds=1)))
    async with plane.core.database.write() as connection:
        await connection.execute(update(media).where(media.c.key_index.is_(None)).values(expires_at_s=1.0))
    await plane.core.job_part.chores.run_all_once()
    node.answers.set()
    for job_id in (first.job_id, second.job_id):
        assert (await ended(client, job_id)).result.duration_ms == 3_000
    await plane.core.job_part.chores.run_all_once()
    async with plane.core.database.read() as connection:
        assert len((await connection.execute(select(media.c.media_id))).all()) == 1


async def test_redis_may_be_emptied_or_away_and_no_job_is_lost_or_done_twice(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "SWEEP_S", 0.3)
    plane, client, node = await stage(any_world, jobs_at_once=3)
    ends = Ends(plane)
    node.answers.clear()
    made = [(await create(client, media_key="talk")).job_id for _ in range(8)]
    await until(lambda: len(node.files) == 2)
    redis = plane.core.job_part._queue._redis
    await redis.flushall()
    node.answers.set()
    for job_id in made:
        assert (await ended(client, job_id)).state == SUCCEEDED

    async def away(*_: object, **__: object) -> Any:
        raise ConnectionError("Redis is away")

    monkeypatch.setattr(redis, "execute_command", away)
    assert (await run(client, media_key="talk")).state == SUCCEEDED
    assert len(node.files) == 9
    assert all(len(ends.of(job_id)) == 1 for job_id in made)


async def test_results_expire_and_jobs_are_forgotten_after_a_week(any_world: World) -> None:
    plane, client, _ = await stage(any_world)
    job = await run(client, media_key="talk", idempotency_key="k")
    async with plane.core.database.write() as connection:
        await connection.execute(update(jobs).values(expires_at_s=1.0))
    # From that moment on it does not leave, whenever it is deleted.
    assert not (await get(client, job.job_id)).HasField("result")
    await plane.core.job_part.chores.run_all_once()
    async with plane.core.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(job_results))).scalar_one() == 0
        assert (await connection.execute(select(jobs.c.spec_ciphertext))).scalar_one() is None
    assert (await get(client, job.job_id)).state == SUCCEEDED
    assert (await create(client, media_key="talk", idempotency_key="k")).job_id != job.job_id
    async with plane.core.database.write() as connection:
        await connection.execute(update(jobs).where(jobs.c.job_id == job.job_id).values(ended_at_s=1.0))
    await plane.core.job_part.chores.run_all_once()
    assert await refusal(get(client, job.job_id)) is grpc.StatusCode.NOT_FOUND


async def test_what_waits_for_too_long_fails_and_jobs_of_a_closed_tenant_are_canceled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    ends = Ends(plane)
    client = await world.client(plane)
    await upload(client, "talk", wav(speech(seconds=1)))
    made = await create(client, media_key="talk")
    await make_tenant(plane, "closing")
    closing = await world.client(plane, await make_key(plane, "closing", "jobs:write"))
    await upload(closing, "talk", wav(speech(seconds=1)))
    theirs = await create(closing, media_key="talk")
    async with plane.core.database.write() as connection:
        await connection.execute(update(tenants).where(tenants.c.tenant_id == "closing").values(closed_at_s=2.0))
    monkeypatch.setattr(job_chores, "WAIT_S_MAX", -1.0)

    async def both() -> bool:
        await plane.core.job_part.chores.run_all_once()
        return {one.job_id for one in ends.told} == {made.job_id, theirs.job_id}

    await until(both)
    assert (ends.of(made.job_id), ends.of(theirs.job_id)) == ([JobState.FAILED], [JobState.CANCELED])


async def test_an_erased_persons_name_leaves_no_more_with_a_result_and_never_lay_in_it(any_world: World) -> None:
    plane, client, node = await stage(any_world)
    alice = (await client.enrol("Alice Quartermaine", seed=1)).voice.voice_id
    bob = (await client.enrol("Bob", seed=2)).voice.voice_id
    turns, speakers, identities = [], [], []
    for number, (label, voice_id) in enumerate((("Alice Quartermaine", alice), ("Bob", bob))):
        said: dict[str, Any] = {"speaker": f"spk_{number}", "label": label, "voice_id": voice_id, "probability": 0.9}
        match = node_pb2.Candidate(voice_id=voice_id, label=label, score=90, probability=0.9)
        other = node_pb2.Candidate(voice_id=bob if voice_id == alice else alice, label="x", score=2)
        turns.append(common_pb2.Turn(start_ms=number, end_ms=number + 1, **said))
        speakers.append(common_pb2.Speaker(match=common_pb2.MatchReport(best_voice_id=voice_id), **said))
        identities.append(node_pb2.SpeakerIdentity(speaker=f"spk_{number}", match=match, candidates=[match, other]))
    node.result = node_pb2.FileResult(turns=turns, exclusive_turns=turns, speakers=speakers, identities=identities)
    job = await run(client, "identify", media_key="talk", matching=jobs_pb2.JobMatching(everybody=True))
    assert [turn.label for turn in job.result.turns] == ["Alice Quartermaine", "Bob"]
    assert [one.label for one in job.result.identities[1].candidates] == ["Bob", "Alice Quartermaine"]
    async with plane.core.database.read() as connection:
        packed = (await connection.execute(select(job_results.c.ciphertext))).scalar_one()
    assert b"Alice" not in bytes(packed)
    await client.erase(alice, wait_ms=5_000)
    result, _, _ = await read_result(client, job.job_id)
    for found in (result, (await get(client, job.job_id)).result):
        assert "Alice" not in str(found) and alice not in str(found)
        assert [turn.label for turn in found.turns] == ["spk_0", "Bob"]
        assert [one.HasField("match") for one in found.identities] == [False, True]
        assert [one.HasField("match") for one in found.speakers] == [False, True]
    seen = await plane.core.jobs.as_creator(job.job_id)
    assert seen is not None and seen.output is not None
    assert [(one.match, one.voice_id) for one in seen.output.speakers] == [(None, None), ("Bob", bob)]
    assert "Alice" not in str([(one.match, one.scores, one.report) for one in seen.output.speakers])


async def test_who_is_erased_before_the_lease_is_there_is_not_named_under_it(
    any_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, client, node = await stage(any_world)
    alice = (await client.enrol("Alice", seed=1)).voice.voice_id
    said: dict[str, Any] = {"speaker": "spk_0", "label": "Alice", "voice_id": alice, "probability": 0.9}
    node.result = node_pb2.FileResult(turns=[common_pb2.Turn(end_ms=1, **said)], speakers=[common_pb2.Speaker(**said)])
    job = await run(client, "identify", media_key="talk", matching=jobs_pb2.JobMatching(everybody=True))
    assert [turn.label for turn in job.result.turns] == ["Alice"]
    guard = plane.core.guard
    await guard.close()
    relaying = guard.relaying

    @asynccontextmanager
    async def late() -> AsyncIterator[Relaying]:
        # Nothing is relayed, so nobody has to be waited for: the erasure is proven before a lease begins, and a lease
        # that begins later is told of no eviction before it.
        assert (await client.erase(alice, wait_ms=20_000)).state == people_pb2.Erasure.STATE_ERASED
        async with relaying() as found:
            yield found

    monkeypatch.setattr(guard, "relaying", late)
    found = await get(client, job.job_id)
    assert [(turn.label, turn.voice_id) for turn in found.result.turns] == [("spk_0", "")]


async def test_a_long_result_is_left_out_of_the_job_and_read_in_pieces(world: World) -> None:
    _plane, client, node = await stage(world)
    alice = (await client.enrol("Alice", seed=1)).voice.voice_id
    turn = common_pb2.Turn(speaker="spk_0", label="Alice", voice_id=alice, probability=0.9, end_ms=1)
    node.result = node_pb2.FileResult(
        speakers=[common_pb2.Speaker(speaker="spk_0", label="Alice", voice_id=alice, probability=0.9)], duration_ms=7
    )
    node.result.turns.extend([turn] * 45_000)
    job = await run(client, media_key="talk")
    assert job.result_is_long and not job.HasField("result")
    result, _, pieces = await read_result(client, job.job_id)
    assert (len(result.turns), pieces, result.duration_ms) == (45_000, 5, 7)
    assert {turn.label for turn in result.turns} == {"Alice"}
    await client.erase(alice, wait_ms=5_000)
    result, _, _ = await read_result(client, job.job_id)
    assert {(turn.label, turn.voice_id) for turn in result.turns} == {("spk_0", "")}


async def test_a_users_own_voice_is_named_to_that_user_alone(world: World) -> None:
    plane, _, node = await stage(world)
    await make_tenant(plane, "acme", "u1", "u2")
    own = await world.client(plane, await make_key(plane, "acme", "admin", user_id="u1"))
    other = await world.client(plane, await make_key(plane, "acme", "jobs:write", user_id="u2"))
    library = Library(plane)
    voice_id = (await library.enrol(own.token, label="Uma", scope=people_pb2.VOICE_SCOPE_USER)).voice.voice_id
    said: dict[str, Any] = {"speaker": "spk_0", "label": "Uma", "voice_id": voice_id, "probability": 0.9}
    node.result = node_pb2.FileResult(turns=[common_pb2.Turn(**said)], speakers=[common_pb2.Speaker(**said)])
    await upload(own, "talk", wav(speech(seconds=1)))
    job = await run(own, media_key="talk")
    assert [turn.label for turn in job.result.turns] == ["Uma"]
    seen = await get(other, job.job_id)
    assert [(turn.label, turn.voice_id) for turn in seen.result.turns] == [("spk_0", "")]


async def test_who_is_looked_for_has_to_be_in_scope(world: World) -> None:
    _plane, client, node = await stage(world)
    alice = (await client.enrol("Alice", seed=1)).voice.voice_id
    missing = create(client, "identify", media_key="talk", matching=jobs_pb2.JobMatching(voice_ids=["v_none"]))
    assert await refusal(missing) is grpc.StatusCode.NOT_FOUND
    await run(client, "identify", media_key="talk", matching=jobs_pb2.JobMatching(voice_ids=[alice]))
    assert node.openings[-1].identify.enrolled and list(node.openings[-1].voice_ids) == [alice]
    nobody = create(client, "identify", media_key="talk")
    assert await refusal(nobody) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_tenants_quota_bounds_what_is_worked_on_and_not_what_waits(world: World) -> None:
    plane, client, node = await stage(world, jobs_at_once=4)
    await make_tenant(plane, "small")
    async with plane.core.database.write() as connection:
        await connection.execute(update(tenants).where(tenants.c.tenant_id == "small").values(jobs_max=1))
    small = await world.client(plane, await make_key(plane, "small", "jobs:write"))
    await upload(small, "talk", wav(speech(seconds=1)))
    node.answers.clear()
    theirs = [(await create(small, media_key="talk")).job_id for _ in range(3)]
    ours = await create(client, media_key="talk")
    await until(lambda: len(node.files) == 2)
    states = [(await get(small, job_id)).state for job_id in theirs]
    assert states.count(jobs_pb2.Job.STATE_RUNNING) == 1
    node.answers.set()
    for job_id in theirs:
        assert (await ended(small, job_id)).state == SUCCEEDED
    assert (await ended(client, ours.job_id)).state == SUCCEEDED


async def test_no_more_is_begun_than_nodes_have_room_for_and_a_voiceprint_waits_for_no_recording(world: World) -> None:
    plane, client, node = await stage(world, jobs_at_once=4)
    node.files_max = 1

    async def is_told() -> bool:
        return [view.files_max for view in await plane.core.registry.known()] == [1]

    await until(is_told)
    node.answers.clear()
    made = [(await create(client, media_key="talk")).job_id for _ in range(3)]
    await until(lambda: len(node.files) == 1)
    assert (await run(client, "voiceprint", media_key="talk")).state == SUCCEEDED
    states = [(await get(client, job_id)).state for job_id in made]
    assert states == [jobs_pb2.Job.STATE_RUNNING, jobs_pb2.Job.STATE_CREATED, jobs_pb2.Job.STATE_CREATED]
    node.answers.set()
    for job_id in made:
        assert (await ended(client, job_id)).state == SUCCEEDED
    assert len(node.files) == 3


async def test_voiceprints_too_are_begun_only_where_there_are_places_and_one_tenant_has_not_all_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, client, _node = await stage(world, jobs_at_once=3)
    await make_tenant(plane, "other")
    other = await world.client(plane, await make_key(plane, "other", "jobs:write"))
    await upload(other, "talk", wav(speech(seconds=1)))
    worker, go_on, begun = plane.core.job_part.worker, asyncio.Event(), Counter[str]()
    run_it = worker._runner.run

    async def held(claimed: Claim, *rest: Any) -> Done:
        begun[claimed.tenant_id] += 1
        await go_on.wait()
        return await run_it(claimed, *rest)

    monkeypatch.setattr(worker._runner, "run", held)
    ours = [(await create(client, "voiceprint", media_key="talk")).job_id for _ in range(8)]
    await until(lambda: begun["default"] >= 3)
    theirs = [(await create(other, "voiceprint", media_key="talk")).job_id for _ in range(3)]
    await until(lambda: begun["other"] >= 2)
    await asyncio.sleep(2.0)  # twice as long as a worker waits before it looks for places again
    assert begun == {"default": 3, "other": 2} and worker.num_running == 5
    go_on.set()
    for caller, made in ((client, ours), (other, theirs)):
        for job_id in made:
            assert (await ended(caller, job_id)).state == SUCCEEDED


async def test_there_is_a_bound_on_jobs_that_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use_cases, "LIVE_MAX", 2)
    plane = await world.plane()
    client = await world.client(plane)
    await upload(client, "talk", wav(speech(seconds=1)))
    for _ in range(2):
        await create(client, media_key="talk")
    assert await refusal(create(client, media_key="talk")) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"media_key": "absent"}, "upload it first"),
        ({"media_key": "no spaces"}, "letters"),
        ({}, "media_key, url"),
        ({"url": "http://127.0.0.1/a.wav"}, "https"),
        ({"url": "https://localhost:22/a.wav"}, "port"),
        ({"url": "/etc/passwd"}, "https"),
        ({"media_key": "talk", "webhook": jobs_pb2.JobWebhook(url="ftp://x")}, "https"),
        ({"media_key": "talk", "options": node_pb2.FileOpen(min_speakers=3, max_speakers=2)}, "min_speakers"),
        ({"media_key": "talk", "idempotency_key": "x" * 256}, "idempotency_key"),
        ({"media_key": "talk", "matching": jobs_pb2.JobMatching(voice_ids=["v"] * 1_001)}, "matching.speakers"),
    ],
)
async def test_a_malformed_request_is_refused_in_words_that_name_the_field(
    world: World, fields: dict[str, Any], says: str
) -> None:
    plane = await world.plane()
    client = await world.client(plane)
    await upload(client, "talk", b"x")
    with pytest.raises(aio.AioRpcError, match=says) as refused:
        await create(client, **fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_a_job_is_asked_and_gives_lies_on_disk_as_ciphertext(world: World) -> None:
    plane, client, _ = await stage(world, fetch_networks=("127.0.0.0/8",))
    made = await run(client, "voiceprint", media_key="talk")
    assert made.voiceprint
    spec = JobSpec(
        kind=JobKind.IDENTIFY,
        source=MediaKey("talk"),
        voiceprints=(SentVoiceprint("Zebulon Quartermaine", base64.b64encode(made.voiceprint).decode()),),
        matching=Matching(),
        webhook=Webhook("https://127.0.0.1:8443/secret-path"),
        idempotency_key="order-of-zebulon",
    )
    job = await plane.core.jobs.create(Principal("default", "k", frozenset()), spec)
    await ended(client, job.job_id)
    seen = await plane.core.jobs.get(Principal("default", "k", frozenset()), job.job_id)
    assert seen.asked is not None and seen.asked.webhook == spec.webhook
    with sqlite3.connect(world.data / "speakerd.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    written = b"".join(path.read_bytes() for path in world.data.rglob("*") if path.is_file())
    for secret in (b"Zebulon", b"secret-path", b"order-of-zebulon", made.voiceprint[20:60]):
        assert secret not in written
