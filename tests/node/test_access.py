"""Tickets are good once, checkpoints only where they belong."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import node.access
from node.access import Access
from node.checkpoint import CHECKPOINT_S, CheckpointSeal, StreamState
from node.null_engine import GRID
from runtime.clock import SteppedClock
from runtime.errors import InvalidRequest, Overloaded, Unauthenticated
from runtime.tickets import Ticket, sign_ticket

KEY = Ed25519PrivateKey.generate()


def access(clock: SteppedClock) -> Access:
    made = Access(node_id="n1", fleet_key="k" * 32, clock=clock)
    made.trust_tickets_of((KEY.public_key().public_bytes_raw(),))
    return made


def ticket(ticket_id: str, *, expires_at_s: int = 2_000) -> str:
    return sign_ticket(Ticket("acme", "s1", "n1", expires_at_s, ticket_id), KEY)


def test_a_ticket_is_good_once_and_says_whose_stream_it_is() -> None:
    desk = access(SteppedClock())
    identity = desk.admit_stream(None, ticket("a"), "somebody-else")
    assert (identity.tenant_id, identity.stream_id) == ("acme", "s1")
    with pytest.raises(Unauthenticated, match="used"):
        desk.admit_stream(None, ticket("a"), "")


def test_the_memory_of_used_tickets_is_bounded_by_their_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.access, "USED_TICKETS_MAX", 2)
    clock = SteppedClock()
    desk = access(clock)
    desk.admit_stream(None, ticket("a", expires_at_s=1_010), "")
    desk.admit_stream(None, ticket("b", expires_at_s=1_010), "")
    with pytest.raises(Overloaded):
        desk.admit_stream(None, ticket("c"), "")
    clock.step(20)
    desk.admit_stream(None, ticket("c"), "")
    with pytest.raises(Unauthenticated):
        desk.admit_stream(None, ticket("a", expires_at_s=1_010), "")  # forgotten, but expired


def test_only_the_fleets_key_opens_what_is_for_the_control_plane() -> None:
    desk = access(SteppedClock())
    desk.require_fleet("k" * 32)
    for wrong in (None, "", "k" * 31, "ü"):
        with pytest.raises(Unauthenticated):
            desk.require_fleet(wrong)
        with pytest.raises(Unauthenticated):
            desk.admit_stream(wrong, "", "acme")
    assert desk.admit_stream("k" * 32, "", "acme").tenant_id == "acme"
    Access(node_id="n1", fleet_key=None, clock=SteppedClock()).require_fleet(None)


def test_a_checkpoint_opens_only_for_its_own_stream_tenant_fleet_and_model_and_not_for_ever() -> None:
    clock = SteppedClock()
    seal = CheckpointSeal(fleet_key="k" * 32, model="m@1", clock=clock)
    sealed = seal.seal(b"state", tenant_id="acme", stream_id="s1")
    neighbour = CheckpointSeal(fleet_key="k" * 32, model="m@1", clock=clock)
    assert neighbour.unseal(sealed, tenant_id="acme", stream_id="s1") == b"state"
    assert b"state" not in sealed
    others = (
        (seal, sealed, "acme", "s2"),
        (seal, sealed, "globex", "s1"),
        (seal, sealed[:-1] + bytes([sealed[-1] ^ 1]), "acme", "s1"),
        (seal, sealed[:5] + bytes([sealed[5] ^ 1]) + sealed[6:], "acme", "s1"),  # the expiry
        (CheckpointSeal(fleet_key="x" * 32, model="m@1", clock=clock), sealed, "acme", "s1"),
        (CheckpointSeal(fleet_key="k" * 32, model="m@2", clock=clock), sealed, "acme", "s1"),
        (CheckpointSeal(fleet_key=None, model="m@1", clock=clock), sealed, "acme", "s1"),
        (seal, b"", "acme", "s1"),
    )
    for opener, data, tenant_id, stream_id in others:
        with pytest.raises(InvalidRequest, match="checkpoint"):
            opener.unseal(data, tenant_id=tenant_id, stream_id=stream_id)
    clock.step(CHECKPOINT_S + 1)
    with pytest.raises(InvalidRequest, match="expired"):
        seal.unseal(sealed, tenant_id="acme", stream_id="s1")


def test_a_streams_state_comes_back_as_it_was_and_resumes_a_window_earlier() -> None:
    state = StreamState(160_000, 7, {0: 5, 2: 9}, {2: 0}, {4: 0}, {"voices": []})
    restored, snapshot = StreamState.from_bytes(state.to_bytes(b"\x00snapshot"))
    assert (restored, snapshot) == (state, b"\x00snapshot")
    assert state.resume_samples(GRID) == 80_000 and StreamState().resume_samples(GRID) == 0
