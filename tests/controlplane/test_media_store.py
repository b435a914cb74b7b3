"""The media store: what is put under a key is got, by its tenant alone, for a day, as ciphertext in a stream."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from controlplane import media_store
from controlplane.app import ControlPlane
from controlplane.database.schema import media, tenants
from controlplane.media_frames import FRAME_BYTES, TAG_BYTES, open_frames, seal_frames
from controlplane.media_store import MEDIA_PATH
from controlplane.object_store import ObjectStore
from controlplane.policy import Principal
from runtime.errors import BadAudio, Denied, InvalidRequest, NotFound, Overloaded, SpeakerdError, TooLarge, Unavailable
from tests.controlplane.conftest import World, until
from tests.controlplane.job_driving import chunks
from tests.controlplane.people import make_tenant

OURS = Principal("default", "k", frozenset())
KEY = bytes(32)


async def collected(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def read(plane: ControlPlane, key: str, principal: Principal = OURS) -> bytes:
    return await collected((await plane.core.media.open(principal, key)).chunks)


def blobs(world: World) -> list[Path]:
    return [path for path in (world.data / "media").rglob("*") if path.is_file()]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, FRAME_BYTES + 3), max_size=4))
async def test_what_is_sealed_in_frames_opens_to_the_same_bytes(sizes: list[int]) -> None:
    data = os.urandom(sum(sizes))

    async def pieces() -> AsyncIterator[bytes]:
        at = 0
        for size in sizes:
            yield data[at : at + size]
            at += size

    stored = await collected(seal_frames(KEY, pieces()))
    assert await collected(open_frames(KEY, chunks(stored, 99_991))) == data


@pytest.mark.parametrize("harm", ["cut", "swapped", "flipped", "extended"])
async def test_frames_that_were_tampered_with_do_not_open(harm: str) -> None:
    whole = FRAME_BYTES + TAG_BYTES
    stored = await collected(seal_frames(KEY, chunks(os.urandom(2 * FRAME_BYTES + 5))))
    harmed = {
        "cut": stored[:whole],
        "swapped": stored[whole : 2 * whole] + stored[:whole] + stored[2 * whole :],
        "flipped": stored[:9] + bytes((stored[9] ^ 1,)) + stored[10:],
        "extended": stored + b"x",
    }[harm]
    with pytest.raises(SpeakerdError, match="does not open"):
        await collected(open_frames(KEY, chunks(harmed)))


async def test_a_recording_is_got_as_it_was_put_and_lies_there_as_ciphertext(any_world: World) -> None:
    plane = await any_world.plane()
    data = b"RIFF" + os.urandom(3_000_000)
    kept = await plane.core.media.put(OURS, "calls/2026-11.wav", chunks(data), len(data))
    assert kept.size_bytes == len(data)
    assert await read(plane, "calls/2026-11.wav") == data
    (blob,) = blobs(any_world)
    assert data[1000:1100] not in blob.read_bytes()


async def test_signed_urls_are_good_for_what_they_were_made_for_and_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    store = plane.core.media
    put = await store.presign_put(OURS, "a.wav", base_url="https://speakerd.example/")
    assert put.url.startswith(f"https://speakerd.example{MEDIA_PATH}")
    token = put.url.rpartition("/")[2]
    assert "a.wav" not in put.url and len(token) < 512
    await store.put_signed(token, chunks(b"first"), 5)
    await store.put_signed(token, chunks(b"second"), None)
    get = await store.presign_get(OURS, "a.wav", base_url="https://speakerd.example")
    assert await collected((await store.open_signed(get.url.rpartition("/")[2])).chunks) == b"second"
    good = get.url.rpartition("/")[2]
    flipped = good[:40] + ("A" if good[40] != "A" else "B") + good[41:]
    for wrong in (token, "", "é", token[:-4], flipped):
        with pytest.raises(Denied):
            await store.open_signed(wrong)
    absent = await store.presign_get(OURS, "absent", base_url="https://speakerd.example")
    with pytest.raises(NotFound):
        await store.open_signed(absent.url.rpartition("/")[2])
    monkeypatch.setattr(media_store, "URL_S", -1.0)
    late = await store.presign_put(OURS, "a.wav", base_url="https://speakerd.example")
    with pytest.raises(Denied):
        await store.put_signed(late.url.rpartition("/")[2], chunks(b"third"), None)
    with pytest.raises(InvalidRequest):
        await store.presign_put(OURS, "no spaces", base_url="https://speakerd.example")


async def test_another_tenant_finds_nothing_under_the_same_key(any_world: World) -> None:
    plane = await any_world.plane()
    await make_tenant(plane, "rival")
    rival = Principal("rival", "k2", frozenset())
    await plane.core.media.put(OURS, "same", chunks(b"ours"))
    with pytest.raises(NotFound):
        await read(plane, "same", rival)
    await plane.core.media.put(rival, "same", chunks(b"theirs"))
    assert await read(plane, "same") == b"ours"
    assert await read(plane, "same", rival) == b"theirs"
    media_id = await plane.core.media.find(OURS, "same")
    with pytest.raises(NotFound):
        await plane.core.media.open_id("rival", media_id)


async def test_what_is_too_large_empty_or_cut_short_is_refused_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await world.plane()
    monkeypatch.setattr(media_store, "BYTES_MAX", 1_000)
    store = plane.core.media

    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise Unavailable("the caller is gone")

    for sent, said, error in (
        (chunks(b"x" * 1_001), None, TooLarge),
        (chunks(b""), 1_001, TooLarge),
        (chunks(b""), None, BadAudio),
        (chunks(b"abc"), 4, InvalidRequest),
        (broken(), None, Unavailable),
    ):
        with pytest.raises(error):
            await store.put(OURS, "k", sent, said)
    with pytest.raises(NotFound):
        await read(plane, "k")
    assert [path for path in blobs(world) if path.stat().st_size > 100] == []
    assert "uploads=0" in repr(store)


async def test_one_tenants_uploads_leave_room_for_the_others(world: World) -> None:
    plane = await world.plane()
    store, go_on = plane.core.media, asyncio.Event()
    await make_tenant(plane, "rival")

    async def slow() -> AsyncIterator[bytes]:
        await go_on.wait()
        yield b"some"

    async with asyncio.TaskGroup() as tasks:
        for number in range(media_store.UPLOADS_MAX * 3 // 4):
            tasks.create_task(store.put(OURS, f"slow-{number}", slow()))

        async def all_wait() -> bool:
            return f"uploads={media_store.UPLOADS_MAX * 3 // 4}" in repr(store)

        await until(all_wait)
        with pytest.raises(Overloaded):
            await store.put(OURS, "one-more", chunks(b"some"))
        assert (await store.put(Principal("rival", "k2", frozenset()), "theirs", chunks(b"some"))).size_bytes == 4
        go_on.set()
    assert "uploads=0" in repr(store)


async def test_a_long_recording_never_lies_whole_in_memory(world: World) -> None:
    plane = await world.plane()
    piece, count = os.urandom(1 << 20), 192
    process = psutil.Process()
    before = process.memory_info().rss

    async def long() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield piece

    kept = await plane.core.media.put(OURS, "long", long())
    assert kept.size_bytes == count << 20
    read_bytes = 0
    async for chunk in (await plane.core.media.open(OURS, "long")).chunks:
        read_bytes += len(chunk)
    assert read_bytes == count << 20
    assert process.memory_info().rss - before < 96 << 20


async def test_after_a_day_a_recording_is_gone_and_so_is_one_that_never_came_whole(world: World) -> None:
    plane = await world.plane()
    await plane.core.media.put(OURS, "old", chunks(b"old"))
    await plane.core.media.put(OURS, "kept", chunks(b"kept"))
    await plane.core.media.put(OURS, "kept", chunks(b"kept again"))
    async with plane.core.database.write() as connection:
        old = select(media.c.media_id).where(media.c.size_bytes == 3)
        await connection.execute(update(media).where(media.c.media_id.in_(old)).values(expires_at_s=1.0))
        await connection.execute(
            media.insert().values(
                media_id="half", tenant_id="default", state="arriving", is_plain=False, created_at_s=0, expires_at_s=1
            )
        )
    with pytest.raises(NotFound):
        await read(plane, "old")
    await plane.core.job_part.chores.run_all_once()
    assert await read(plane, "kept") == b"kept again"
    assert len(blobs(world)) == 1
    async with plane.core.database.read() as connection:
        assert len((await connection.execute(select(media.c.media_id))).all()) == 1


async def test_recordings_count_towards_the_quota_of_storage(world: World) -> None:
    plane = await world.plane()
    await make_tenant(plane, "small")
    async with plane.core.database.write() as connection:
        await connection.execute(update(tenants).where(tenants.c.tenant_id == "small").values(storage_bytes_max=1_000))
    small = Principal("small", "k", frozenset())
    read_anyway: list[str] = []

    async def unread() -> AsyncIterator[bytes]:
        read_anyway.append("a recording for which there is no room")
        yield b"x" * 300

    await plane.core.media.put(small, "a", chunks(b"x" * 800))
    with pytest.raises(Overloaded, match="quota"):
        await plane.core.media.put(small, "b", chunks(b"x" * 300))
    # What does not fit is not kept until it expires: it counts towards no quota, and would fill the disk.
    assert [path.stat().st_size // 100 for path in blobs(world)] == [8]
    with pytest.raises(Overloaded, match="quota"):
        await plane.core.media.put(small, "b", unread(), 300)
    assert read_anyway == []
    assert len(await read(plane, "a", small)) == 800


async def test_an_object_store_signs_urls_of_its_own_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    store = ObjectStore("s3://bucket/prefix")
    assert store.can_sign
    url = await store.sign("PUT", "media/x", seconds=60)
    assert "bucket" in url and "X-Amz-Signature=" in url and "X-Amz-Expires=60" in url
    assert not ObjectStore(str(tmp_path / "folder")).can_sign
    with pytest.raises(InvalidRequest):
        ObjectStore("nonsense://x")
