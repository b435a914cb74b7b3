"""For whom a voice is held, and what a stream hears of: never another tenant's, whatever is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.online import OnlineParams
from node.access import Access, Caller
from node.audiences import is_own_audience, require_heard_audience
from node.collisions import nearest_voice
from node.device_thread import DeviceThread
from node.engine import Engine
from node.null_engine import CLUSTERING, NAMING, NullDevice, NullGallery, collector
from node.voice_store import VoiceStore
from runtime.clock import SteppedClock
from runtime.errors import InvalidRequest
from runtime.tickets import Ticket, sign_ticket

DIM = NullDevice().grid.embedding_dim


def null_engine() -> Engine:
    parameters = OnlineParams(evidence=CLUSTERING)
    return Engine(NullDevice(), NullGallery(DIM), "null", "null@1", "null", parameters, NAMING, collector)


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


@pytest.fixture
async def store() -> AsyncIterator[VoiceStore]:
    device = DeviceThread(null_engine, calls_max=64)
    await device.start()
    try:
        yield VoiceStore(device, embedding_dim=DIM)
    finally:
        await device.stop()


async def hold(store: VoiceStore, tenant_id: str, voice_id: str, audience: str = "", generation: int = 1) -> None:
    await store.put(
        tenant_id,
        voice_id,
        generation,
        label=voice_id,
        embedding=unit(len(voice_id)),
        net_speech_samples=160_000,
        audience=audience,
    )


def heard(store: VoiceStore, *audiences: str) -> set[str]:
    return {voice.voice_id for voice in store.candidates(audiences).voices}


async def test_a_stream_hears_of_its_tenant_its_user_and_everybody(store: VoiceStore) -> None:
    await hold(store, "acme", "ours")
    await hold(store, "acme", "mine", "acme/u1")
    await hold(store, "acme", "theirs", "acme/u2")
    await hold(store, "other", "far")
    await hold(store, "global", "famous", "global")
    assert heard(store, "acme", "acme/u1", "global") == {"ours", "mine", "famous"}
    assert heard(store, "acme", "global") == {"ours", "famous"}
    assert heard(store, "other", "global") == {"far", "famous"}
    assert store.find_for(("acme", "global"), "theirs") is None
    assert store.find_for(("acme", "global"), "famous") is not None


async def test_a_voice_that_is_shared_or_evicted_changes_what_streams_hear_of_at_once(store: VoiceStore) -> None:
    await hold(store, "acme", "mine", "acme/u1")
    assert heard(store, "acme", "global") == set()
    await hold(store, "acme", "mine", "acme", generation=2)
    assert heard(store, "acme", "global") == heard(store, "acme", "acme/u1", "global") == {"mine"}
    await store.evict("acme", "mine", 3)
    assert heard(store, "acme", "acme/u1", "global") == set()
    assert store.find_for(("acme",), "mine") is None


async def test_scores_leave_out_a_voice_whose_audience_changed_while_the_device_was_busy(store: VoiceStore) -> None:
    await hold(store, "acme", "mine", "acme/u1")
    roster = store.candidates(("acme", "acme/u1"))
    await hold(store, "acme", "mine", "acme/u2", generation=2)
    scores, left = await store.scores(unit(4)[None], roster)
    assert scores.shape == (1, 0)
    assert not len(left)


@pytest.mark.parametrize("audience", ["other", "other/u1", "global", "acm", "acmex", "acme-2/u1"])
async def test_no_voice_is_given_the_audience_of_another_tenant(store: VoiceStore, audience: str) -> None:
    assert not is_own_audience("acme", audience)
    with pytest.raises(InvalidRequest, match="audience"):
        await hold(store, "acme", "ours", audience)
    assert len(store) == 0


@pytest.mark.parametrize("audience", ["other", "other/u1", "", "acmex"])
def test_no_stream_hears_of_another_tenant(audience: str) -> None:
    with pytest.raises(InvalidRequest, match="audiences"):
        require_heard_audience("acme", audience)


def test_a_ticket_tells_whose_voices_its_stream_hears_of_and_may_not_reach_further() -> None:
    key = Ed25519PrivateKey.generate()
    access = Access(node_id="n", fleet_key="fk", clock=SteppedClock())
    access.trust_tickets_of((key.public_key().public_bytes_raw(),))

    def ticket(number: int, *audiences: str) -> str:
        return sign_ticket(Ticket("acme", "s", "n", 9_999_999_999, f"t{number}", audiences=audiences), key)

    admitted = access.admit_stream(Caller(is_public=True), ticket(1, "acme", "acme/u1", "global"), "")
    assert admitted.audiences == ("acme", "acme/u1", "global")
    assert access.admit_stream(Caller(is_public=True), ticket(2), "").audiences == ()
    with pytest.raises(InvalidRequest, match="audiences"):
        access.admit_stream(Caller(is_public=True), ticket(3, "acme", "other"), "")


async def test_a_collision_is_looked_for_in_scope_alone(store: VoiceStore) -> None:
    engine = null_engine()
    sample = engine.device.analyze_voice(np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1)
    await store.put(
        "other", "twin", 1, label="twin", embedding=sample.embedding, net_speech_samples=sample.net_speech_samples
    )
    assert await nearest_voice(store, ("acme", "global"), sample, engine.naming) is None
    assert (await nearest_voice(store, ("other",), sample, engine.naming) or ("", 0))[0] == "twin"
    assert await nearest_voice(store, ("other",), sample, engine.naming, except_voice_id="twin") is None
