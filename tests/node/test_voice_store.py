"""The voice store, over each implementation of the gallery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

import node.voice_store
from models.analysis import FloatArray
from models.online import OnlineParams
from models.seams import Gallery
from node.device_thread import DeviceThread
from node.engine import Engine
from node.null_engine import CLUSTERING, NAMING, NullDevice, NullGallery, collector
from node.voice_store import Voice, VoiceStore
from runtime.errors import InvalidRequest, Overloaded, Stale

DIM = 64


def torch_gallery() -> Gallery:
    from models.torch_gallery import TorchGallery

    return TorchGallery(DIM)


@pytest.fixture(params=[lambda: NullGallery(DIM), torch_gallery], ids=["null", "torch"])
def gallery(request: pytest.FixtureRequest) -> Gallery:
    made: Gallery = request.param()
    return made


def unit(seed: int) -> FloatArray:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def engine_over(gallery: Gallery) -> Engine:
    return Engine(NullDevice(), gallery, "null", "null@1", "null", OnlineParams(evidence=CLUSTERING), NAMING, collector)


@pytest.fixture
async def device(gallery: Gallery) -> AsyncIterator[DeviceThread]:
    thread = DeviceThread(lambda: engine_over(gallery), calls_max=64)
    await thread.start()
    yield thread
    await thread.stop()


@pytest.fixture
def store(device: DeviceThread) -> VoiceStore:
    return VoiceStore(device, embedding_dim=DIM)


async def put(store: VoiceStore, voice_id: str, seed: int, *, generation: int = 0, tenant_id: str = "t") -> int:
    return (
        await store.put(
            tenant_id, voice_id, generation, label=voice_id.upper(), embedding=unit(seed), net_speech_samples=16_000
        )
    ).generation


async def best(store: VoiceStore, seed: int, *, tenant_id: str = "t") -> str | None:
    """The voice of a tenant that sounds like this, if one does."""
    scores, roster = await store.scores(unit(seed)[None], store.candidates((tenant_id,)))
    close = [voice.voice_id for voice, score in zip(roster.voices, scores[0], strict=True) if score > 0.99]
    return close[0] if close else None


async def test_a_voice_is_found_by_its_sound_within_its_tenant_alone(store: VoiceStore) -> None:
    await put(store, "ada", 1)
    await put(store, "bob", 2, tenant_id="other")
    assert await best(store, 1) == "ada"
    assert await best(store, 1, tenant_id="other") is None
    assert await best(store, 2) is None


async def test_an_evicted_voice_is_gone_and_its_row_is_zero_on_the_device(
    store: VoiceStore, gallery: Gallery, device: DeviceThread
) -> None:
    await put(store, "ada", 1)
    row = store.voices()[0].row
    assert await store.evict("t", "ada", 0)
    left = await device.call(lambda _: gallery.scores(unit(1)[None], np.array([row])))
    assert not left.any()
    assert not await store.evict("t", "ada", 0)
    assert store.digest() == bytes(32)


async def test_an_older_generation_never_replaces_a_newer_one_nor_an_eviction(store: VoiceStore) -> None:
    await put(store, "ada", 1, generation=3)
    with pytest.raises(Stale):
        await put(store, "ada", 2, generation=2)
    with pytest.raises(Stale):
        await store.evict("t", "ada", 2)
    assert await best(store, 1) == "ada"
    await store.evict("t", "ada", 4)
    with pytest.raises(Stale):
        await put(store, "ada", 1, generation=4)
    assert await put(store, "ada", 1, generation=5) == 5


async def test_an_eviction_that_overtakes_its_enrolment_wins(store: VoiceStore) -> None:
    await store.evict("t", "ada", 2)
    with pytest.raises(Stale):
        await put(store, "ada", 1, generation=1)
    assert len(store) == 0


async def test_repeating_an_enrolment_changes_nothing_and_a_new_generation_replaces_the_sound(
    store: VoiceStore,
) -> None:
    assert await put(store, "ada", 1) == 1
    held, digest = store.candidates(("t",)), store.digest()
    assert await put(store, "ada", 9, generation=1) == 1
    assert store.candidates(("t",)) is held and store.digest() == digest
    assert await put(store, "ada", 2) == 2
    assert await best(store, 2) == "ada" and await best(store, 1) is None
    assert len(store) == 1


async def test_a_row_that_changed_hands_while_a_score_waited_is_left_out_of_the_answer(store: VoiceStore) -> None:
    await put(store, "ada", 1)
    before = store.candidates(("t",))
    await store.evict("t", "ada", 0)
    await put(store, "eve", 2)
    assert store.voices()[0].row == before.rows[0]
    scores, roster = await store.scores(unit(2)[None], before)
    assert len(roster) == 0 and scores.shape == (1, 0)


async def test_an_eviction_that_the_device_had_no_room_for_is_finished_by_the_next_attempt(
    store: VoiceStore, gallery: Gallery, device: DeviceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, "ada", 1)

    def full(_work: object, *, must_run: bool = False) -> None:
        raise Overloaded("the device has too many calls waiting; try again")

    with monkeypatch.context() as crowded:
        crowded.setattr(device, "submit", full)
        with pytest.raises(Overloaded):
            await store.evict("t", "ada", 2)
    assert await best(store, 1) is None
    assert not await store.evict("t", "ada", 2)
    assert not (await device.call(lambda _: gallery.scores(unit(1)[None], np.array([0])))).any()
    await put(store, "bob", 2)
    assert store.voices()[0].row == 0


async def test_a_wipe_in_mid_enrolment_leaves_nothing_held(
    store: VoiceStore, gallery: Gallery, device: DeviceThread
) -> None:
    await put(store, "ada", 1)
    arriving = asyncio.create_task(put(store, "bob", 2))
    await asyncio.sleep(0)
    assert await store.wipe() == 1
    with pytest.raises(Stale):
        await arriving
    assert len(store) == 0 and store.digest() == bytes(32)
    left = await device.call(lambda _: gallery.scores(np.stack([unit(1), unit(2)]), np.array([0, 1])))
    assert not left.any()


async def test_an_enrolment_whose_caller_went_away_half_way_is_finished_or_not_begun(store: VoiceStore) -> None:
    gone = asyncio.create_task(put(store, "ada", 1))
    await asyncio.sleep(0)
    gone.cancel()
    await put(store, "bob", 2)
    assert await best(store, 1) in ("ada", None)
    assert {voice.row for voice in store.voices()} <= {0, 1} and len({v.row for v in store.voices()}) == len(store)


async def test_the_digest_does_not_depend_on_the_order_of_enrolment(device: DeviceThread) -> None:
    one, two = VoiceStore(device, embedding_dim=DIM), VoiceStore(device, embedding_dim=DIM)
    await put(one, "ada", 1), await put(one, "bob", 2)
    await put(two, "bob", 2), await put(two, "eve", 3), await put(two, "ada", 1)
    assert one.digest() != two.digest()
    await two.evict("t", "eve", 0)
    assert one.digest() == two.digest()


@pytest.mark.parametrize("spoil", [lambda v: v[:-1], lambda v: v * 2, lambda v: v * np.nan])
async def test_what_is_no_unit_vector_of_this_model_is_refused(
    store: VoiceStore, spoil: Callable[[FloatArray], FloatArray]
) -> None:
    with pytest.raises(InvalidRequest):
        await store.put("t", "ada", 0, label="Ada", embedding=spoil(unit(1)), net_speech_samples=16_000)
    assert len(store) == 0


def scores_of(gallery: Gallery, seeds: Sequence[int], rows: Sequence[int]) -> FloatArray:
    return gallery.scores(np.stack([unit(seed) for seed in seeds]), np.array(rows))


def test_a_gallery_grows_and_keeps_what_it_holds(gallery: Gallery) -> None:
    for row in range(200):
        gallery.put(row, unit(row))
    assert np.allclose(np.diag(scores_of(gallery, range(200), range(200))), 1.0, atol=1e-5)
    gallery.zero([0, 199, 5_000])
    assert not scores_of(gallery, [0, 199], [0, 199]).any()
    assert scores_of(gallery, [7], [7])[0, 0] > 0.99


async def test_of_very_many_voices_the_nearest_are_told_and_those_that_speakers_carry(
    store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.voice_store, "WHOLE_ROSTER_MAX", 20)
    monkeypatch.setattr(node.voice_store, "NEAREST", 3)
    for number in range(30):
        await put(store, f"v{number:02}", number)
    queries = np.stack([unit(7), unit(21)])
    cosines, roster = await store.scores(queries, store.candidates("t"), carried={"v15", "gone"})
    plain = queries @ np.stack([unit(number) for number in range(30)]).T
    nearest = {int(place) for row in plain for place in np.argsort(-row)[:3]}
    assert set(roster.generations) == {f"v{number:02}" for number in nearest | {15}}
    assert roster.num_in_scope == 30
    np.testing.assert_allclose(cosines, plain[:, sorted(nearest | {15})], atol=1e-6)


async def test_voices_that_are_called_alike_and_sound_alike_are_one_persons(store: VoiceStore) -> None:
    def near(seed: int) -> FloatArray:
        """Nearly the voice of a seed."""
        voice = unit(seed) + 0.1 * unit(seed + 100)
        return voice / np.linalg.norm(voice)

    async def called(voice_id: str, label: str, embedding: FloatArray, **fields: str) -> None:
        tenant_id = fields.pop("tenant_id", "t")
        await store.put(tenant_id, voice_id, 0, label=label, embedding=embedding, net_speech_samples=160_000, **fields)

    def persons(*audiences: str) -> list[int] | None:
        found = store.candidates(audiences or ("t",)).persons
        return None if found is None else found.tolist()

    await called("v1", "Ada", unit(1))
    await called("v2", "Bob", near(1))  # as near, and called otherwise
    await called("v3", "", unit(3))
    await called("v4", "", near(3))
    await called("v5", "ADA", unit(5))  # another Ada
    await called("v6", "Ada", near(1), audience="t/u1")
    await called("v7", "Ada", near(1), tenant_id="other")
    assert persons() is None
    assert persons("t", "t/u1", "other") is None
    await called("v8", "ada", near(1))
    assert persons() == [0, 1, 2, 3, 4, 0]
    # The first of them goes, and the others are one person still.
    await called("v9", "Ada", near(1))
    await store.evict("t", "v1", 0)
    assert persons() == [0, 1, 2, 3, 4, 4]
    await store.evict("t", "v8", 0)
    assert persons() is None


async def test_a_snapshot_brings_persons_too(store: VoiceStore) -> None:
    wanted = [(Voice("t", f"v{n}", 1, label, -1, 160_000), unit(seed)) for n, label, seed in SNAPSHOT]
    assert await store.put_all(wanted) == []
    persons = store.candidates(("t",)).persons
    assert persons is not None
    assert persons.tolist() == [0, 1, 0, 2]
    assert all(voice.row >= 0 for voice in store.voices())


SNAPSHOT = [(1, "Ada", 1), (2, "Bob", 2), (3, "Ada", 1), (4, "Ada", 4)]
