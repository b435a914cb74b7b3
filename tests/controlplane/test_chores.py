"""What is done now and then: by one at a time, on a clock that tests step, and again by whoever comes after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from controlplane import audit_verify
from controlplane.app import ControlPlane
from controlplane.chores import Chore, Chores
from controlplane.database.schema import agreement_events, consents, erasures, idempotency, leaders, samples, voices
from controlplane.upkeep import DAY_S, Upkeep
from runtime.clock import SteppedClock
from runtime.errors import Unavailable
from speakerd.administration import timestamp
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import World, until
from tests.controlplane.people import Library, make_key, make_tenant

GLOBAL = people_pb2.VOICE_SCOPE_GLOBAL
START_S = 2_000_000_000.0


class Clock:
    """Wall time for the chores alone: the plane's leases go on by the machine's."""

    def __init__(self) -> None:
        self.wall = START_S

    def wall_s(self) -> float:
        return self.wall

    def monotonic_s(self) -> float:
        return self.wall

    def lease_now_s(self) -> float:
        return self.wall


def upkeep(plane: ControlPlane, clock: Clock, **settings: Any) -> Upkeep:
    core = plane.core
    return Upkeep(
        database=core.database,
        keys=core.people.usage._keys,
        blobs=core.blobs,
        erasures=core.erasures,
        settings=plane.settings.model_copy(update=settings),
        clock=clock,
    )


async def root_of(world: World) -> str:
    return (world.data / "admin.key").read_text().strip()


async def state_of(plane: ControlPlane, voice_id: str) -> str | None:
    async with plane.core.database.read() as connection:
        query = select(voices.c.state).where(voices.c.voice_id == voice_id)
        found: str | None = (await connection.execute(query)).scalar_one_or_none()
        return found


async def test_a_licence_that_runs_out_erases_its_voice_and_says_why(any_world: World) -> None:
    plane, clock = await any_world.plane(chore_s=3600.0), Clock()
    library, root = Library(plane), await root_of(any_world)
    licences = {
        "bound": people_pb2.Licence(
            licensor="L", kind=people_pb2.Licence.KIND_TIME_BOUND, expires_at=timestamp(START_S + 100)
        ),
        "for ever": people_pb2.Licence(licensor="L", kind=people_pb2.Licence.KIND_PERPETUAL),
    }
    ids = {
        label: (await library.enrol(root, label=label, scope=GLOBAL, licence=licence)).voice.voice_id
        for label, licence in licences.items()
    }
    chores = upkeep(plane, clock)
    assert await chores.erase_unlicensed() == 0
    clock.wall += 100
    assert await chores.erase_unlicensed() == 1
    assert await chores.erase_unlicensed() == 0
    await until(lambda: _is(plane, ids["bound"], "erased"))
    assert await state_of(plane, ids["for ever"]) == "pending"
    async with plane.core.database.read() as connection:
        kinds = [row.kind for row in await connection.execute(select(agreement_events.c.kind))]
        row = (await connection.execute(select(erasures.c.trigger_kind, erasures.c.source))).one()
    assert kinds.count("licence_expired") == 1
    assert tuple(row) == ("license_expired", "worker")


async def test_a_licence_that_is_used_up_erases_its_voice_and_no_other_tenant_can_use_it_up(any_world: World) -> None:
    plane, clock = await any_world.plane(chore_s=3600.0), Clock()
    library, root = Library(plane), await root_of(any_world)
    licence = people_pb2.Licence(
        licensor="L", kind=people_pb2.Licence.KIND_USAGE_BOUND, unit="characters", usage_max=10
    )
    voice_id = (await library.enrol(root, label="F", scope=GLOBAL, licence=licence)).voice.voice_id
    chores = upkeep(plane, clock)
    for tenant_id, quantity in (("a", 6), ("b", 1_000_000)):
        await make_tenant(plane, tenant_id)
        key = await make_key(plane, tenant_id, "usage:write")
        await library.RecordUsage(key, voice_id=voice_id, unit="characters", quantity=quantity)
        await library.RecordUsage(key, voice_id=voice_id, unit="seconds", quantity=100)
    await library.RecordUsage(root, voice_id=voice_id, unit="characters", quantity=9)
    assert await chores.erase_unlicensed() == 0
    await library.RecordUsage(root, voice_id=voice_id, unit="characters", quantity=1)
    assert await chores.erase_unlicensed() == 1
    await until(lambda: _is(plane, voice_id, "erased"))


async def test_tombstones_go_when_their_time_is_over_and_consents_stay(any_world: World) -> None:
    plane, clock = await any_world.plane(chore_s=3600.0), Clock()
    library, root = Library(plane), await root_of(any_world)
    consent = people_pb2.Consent(full_name="Ada", purpose="p", text="t")
    voice_id = (await library.enrol(root, label="Ada", consent=consent)).voice.voice_id
    await library.EraseVoice(root, voice_id=voice_id)
    chores = upkeep(plane, clock, tombstone_days=30.0)

    async def is_closed() -> bool:
        async with plane.core.database.read() as connection:
            return not (await connection.execute(select(erasures.c.is_open))).scalar_one()

    await until(is_closed)
    async with plane.core.database.write() as connection:
        await connection.execute(update(voices).values(updated_at_s=START_S))
    clock.wall = START_S + 29 * DAY_S
    assert await chores.purge_tombstones() == 0
    clock.wall = START_S + 30 * DAY_S
    assert await chores.purge_tombstones() == 1
    assert await state_of(plane, voice_id) is None
    async with plane.core.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(consents))).scalar_one() == 1
        found = await audit_verify.verify(
            connection, checkpoints=(), journal=None, trusted_keys=frozenset(), subject_of=None
        )
        assert found.ok, found.problems


async def test_a_voice_that_nobody_listens_to_fails_in_the_end_and_its_recordings_go(any_world: World) -> None:
    plane, clock = await any_world.plane(chore_s=3600.0), Clock()
    library, root = Library(plane), await root_of(any_world)
    voice_id = (await library.enrol(root, label="Ada", idempotency_key="k")).voice.voice_id
    async with plane.core.database.write() as connection:
        await connection.execute(update(voices).values(updated_at_s=START_S))
        await connection.execute(update(idempotency).values(created_at_s=START_S))
    chores = upkeep(plane, clock, pending_days=7.0)
    clock.wall = START_S + 6 * DAY_S
    assert (await chores.fail_overdue(), await chores.forget_requests()) == (0, 1)
    clock.wall = START_S + 7 * DAY_S
    assert await chores.fail_overdue() == 1
    assert await state_of(plane, voice_id) == "failed"
    async with plane.core.database.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(samples))).scalar_one() == 0
    assert not list((any_world.data / "blobs" / "samples").iterdir())


async def test_a_recording_whose_deletion_was_held_up_is_deleted_by_a_chore(any_world: World) -> None:
    plane, clock = await any_world.plane(chore_s=3600.0), Clock()
    library, root = Library(plane), await root_of(any_world)
    kept = await library.enrol(root, label="Bob", seed=1)
    await library.enrol(root, label="Ada")
    async with plane.core.database.write() as connection:
        await connection.execute(
            update(voices).where(voices.c.voice_id != kept.voice.voice_id).values(updated_at_s=START_S)
        )
    chores = upkeep(plane, clock, pending_days=7.0)
    clock.wall = START_S + 7 * DAY_S
    blobs, delete = plane.core.blobs, plane.core.blobs.delete

    async def away(_key: str) -> None:
        raise Unavailable("the store is away")

    blobs.delete = away  # type: ignore[method-assign]
    async with plane.core.database.write() as connection:
        await connection.execute(
            update(voices).where(voices.c.voice_id == kept.voice.voice_id).values(updated_at_s=clock.wall)
        )
    with pytest.raises(Unavailable):
        await chores.fail_overdue()
    blobs.delete = delete  # type: ignore[method-assign]
    assert len(await blobs.list()) == 2
    (sweep,) = [chore for chore in chores.chores(plane.core.identity) if chore.name == "orphans"]
    assert (await sweep.run(), await sweep.run()) == (1, 0)
    async with plane.core.database.read() as connection:
        named = (await connection.execute(select(samples.c.blob_key))).scalars().all()
    assert [blob.key for blob in await blobs.list()] == named


async def test_one_at_a_time_leads_a_chore_and_another_takes_over_when_its_time_is_up(any_world: World) -> None:
    plane = await any_world.plane(chore_s=3600.0)
    done: list[str] = []

    def by(name: str) -> Chore:
        async def run() -> int:
            done.append(name)
            return 1

        return Chore("test", 10.0, run)

    clock = SteppedClock(1_000.0)
    database = plane.core.database
    one, two = Chores(database, clock, [by("one")]), Chores(database, clock, [by("two")])
    if database.is_sqlite:
        database._clock = clock  # type: ignore[assignment]
    for _ in range(2):
        assert await one.run_all_once() == {"test": 1}
        assert await two.run_all_once() == {"test": 0}
    async with database.write() as connection:
        # Its process died; time passes.
        values = {"until_lease_s": leaders.c.until_lease_s - 31.0}
        await connection.execute(update(leaders).where(leaders.c.chore == "test").values(**values))
    assert await two.run_all_once() == {"test": 1}
    assert await one.run_all_once() == {"test": 0}
    assert done == ["one", "one", "two"]


async def test_a_chore_that_fails_stops_no_other_and_is_tried_again(world: World) -> None:
    plane = await world.plane(chore_s=3600.0)
    tries: list[str] = []

    async def fails() -> int:
        tries.append("fails")
        raise Unavailable("the store is away")

    async def works() -> int:
        tries.append("works")
        return 3

    chores = Chores(
        plane.core.database, plane._clock, [Chore("a", 1.0, fails), replace(Chore("b", 1.0, works), by_all=True)]
    )
    assert await chores.run_all_once() == {"a": 0, "b": 3}
    assert await chores.run_all_once() == {"a": 0, "b": 3}
    assert tries == ["fails", "works"] * 2


async def _is(plane: ControlPlane, voice_id: str, state: str) -> bool:
    return await state_of(plane, voice_id) == state
