"""Tickets are good once, checkpoints only where they belong."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import node.access
from node.access import Access, Caller
from node.checkpoint import CHECKPOINT_S, CheckpointSeal, StreamState
from node.naming import Scope, SessionNaming
from node.null_engine import GRID
from runtime.clock import SteppedClock
from runtime.errors import Denied, InvalidRequest, Overloaded, Stale, Unauthenticated
from runtime.lease import Lease, Renewal
from runtime.tickets import Ticket, sign_ticket
from runtime.tls import CONTROL_PLANE, EDGE, NODE, PeerName

KEY = Ed25519PrivateKey.generate()


def access(clock: SteppedClock) -> Access:
    made = Access(node_id="n1", fleet_key="k" * 32, clock=clock)
    made.trust_tickets_of((KEY.public_key().public_bytes_raw(),))
    return made


def ticket(ticket_id: str, *, expires_at_s: int = 2_000) -> str:
    return sign_ticket(Ticket("acme", "s1", "n1", expires_at_s, ticket_id), KEY)


def test_a_ticket_is_good_once_and_says_whose_stream_it_is() -> None:
    desk = access(SteppedClock())
    identity = desk.admit_stream(Caller(), ticket("a"), "somebody-else")
    assert (identity.tenant_id, identity.stream_id) == ("acme", "s1")
    with pytest.raises(Unauthenticated, match="used"):
        desk.admit_stream(Caller(), ticket("a"), "")


def test_the_memory_of_used_tickets_is_bounded_by_their_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.access, "USED_TICKETS_MAX", 2)
    clock = SteppedClock()
    desk = access(clock)
    desk.admit_stream(Caller(), ticket("a", expires_at_s=1_010), "")
    desk.admit_stream(Caller(), ticket("b", expires_at_s=1_010), "")
    with pytest.raises(Overloaded):
        desk.admit_stream(Caller(), ticket("c"), "")
    clock.step(20)
    desk.admit_stream(Caller(), ticket("c"), "")
    with pytest.raises(Unauthenticated):
        desk.admit_stream(Caller(), ticket("a", expires_at_s=1_010), "")  # forgotten, but expired


def test_only_the_fleets_key_opens_what_is_for_the_control_plane() -> None:
    desk = access(SteppedClock())
    desk.require_fleet(Caller("k" * 32))
    for wrong in (None, "", "k" * 31, "ü"):
        with pytest.raises(Unauthenticated):
            desk.require_fleet(Caller(wrong))
        with pytest.raises(Unauthenticated):
            desk.admit_stream(Caller(wrong), "", "acme")
    assert desk.admit_stream(Caller("k" * 32), "", "acme").tenant_id == "acme"
    Access(node_id="n1", fleet_key=None, clock=SteppedClock()).require_fleet(Caller())


def seal(clock: SteppedClock, *keys: bytes, model: str = "m@1") -> CheckpointSeal:
    made = CheckpointSeal(model=model, clock=clock)
    made.use(keys)
    return made


def test_a_checkpoint_opens_only_for_its_own_stream_tenant_fleet_and_model_and_not_for_ever() -> None:
    clock, key = SteppedClock(), b"k" * 32
    own = seal(clock, key)
    sealed = own.seal(b"state", tenant_id="acme", stream_id="s1")
    assert seal(clock, key).unseal(sealed, tenant_id="acme", stream_id="s1") == b"state"
    assert b"state" not in sealed
    others = (
        (own, sealed, "acme", "s2"),
        (own, sealed, "globex", "s1"),
        (own, sealed[:-1] + bytes([sealed[-1] ^ 1]), "acme", "s1"),
        (own, sealed[:5] + bytes([sealed[5] ^ 1]) + sealed[6:], "acme", "s1"),  # the expiry
        (seal(clock, b"x" * 32), sealed, "acme", "s1"),
        (seal(clock, key, model="m@2"), sealed, "acme", "s1"),
        (seal(clock), sealed, "acme", "s1"),
        (own, b"", "acme", "s1"),
    )
    for opener, data, tenant_id, stream_id in others:
        with pytest.raises(InvalidRequest, match="checkpoint"):
            opener.unseal(data, tenant_id=tenant_id, stream_id=stream_id)
    clock.step(CHECKPOINT_S + 1)
    with pytest.raises(InvalidRequest, match="expired"):
        own.unseal(sealed, tenant_id="acme", stream_id="s1")


def test_keys_of_checkpoints_are_exchanged_without_breaking_those_that_are_under_way() -> None:
    clock = SteppedClock()
    old, new = b"o" * 32, b"n" * 32
    desk = seal(clock, old)
    before = desk.seal(b"state", tenant_id="acme", stream_id="s1")
    desk.use((new, old))
    after = desk.seal(b"state", tenant_id="acme", stream_id="s1")
    assert desk.unseal(before, tenant_id="acme", stream_id="s1") == b"state"
    assert seal(clock, new).unseal(after, tenant_id="acme", stream_id="s1") == b"state"
    with pytest.raises(InvalidRequest):
        seal(clock, old).unseal(after, tenant_id="acme", stream_id="s1")
    desk.use(())  # a control plane that knows nothing of them
    assert desk.unseal(before, tenant_id="acme", stream_id="s1") == b"state"


def test_a_ticket_is_for_one_incarnation_so_that_a_restart_forgets_none_that_was_used() -> None:
    clock = SteppedClock()
    lease = Lease(clock)
    lease.renewed(clock.lease_now_s(), Renewal(7, 9.0, 0, resync=False))
    desk = Access(node_id="n1", fleet_key="k" * 32, clock=clock, lease=lease)
    desk.trust_tickets_of((KEY.public_key().public_bytes_raw(),))
    for incarnation in (6, 0):
        with pytest.raises(Stale, match="PlaceStream again"):
            desk.admit_stream(Caller(), sign_ticket(Ticket("acme", "s1", "n1", 2_000, "a", incarnation), KEY), "")
    desk.admit_stream(Caller(), sign_ticket(Ticket("acme", "s1", "n1", 2_000, "a", 7), KEY), "")


def test_with_certificates_the_role_decides_and_keys_say_nothing() -> None:
    plane, edge, node = (PeerName("d", role, "x") for role in (CONTROL_PLANE, EDGE, NODE))
    desk = Access(node_id="n1", fleet_key=None, clock=SteppedClock(), tls=object(), streams_apart=True)  # type: ignore[arg-type]
    desk.trust_tickets_of((KEY.public_key().public_bytes_raw(),))
    desk.require_fleet(Caller(peer=plane))
    for peer in (edge, node, None):
        with pytest.raises(Denied):
            desk.require_fleet(Caller("k" * 32, peer))
    for peer in (plane, edge):
        assert desk.admit_stream(Caller(peer=peer), "", "acme").tenant_id == "acme"
    with pytest.raises(Denied):
        desk.admit_stream(Caller(peer=node), "", "acme")
    with pytest.raises(Unauthenticated, match="another port"):
        desk.admit_stream(Caller(peer=plane), ticket("a"), "")
    with pytest.raises(Unauthenticated, match="no stream ticket"):
        desk.admit_stream(Caller("anything", is_public=True), "", "acme")
    assert desk.admit_stream(Caller(is_public=True), ticket("a"), "").tenant_id == "acme"


def test_a_streams_state_comes_back_as_it_was_and_resumes_a_window_earlier() -> None:
    state = StreamState(240_000, 7, {0: 5, 2: 9}, {2: 0}, {4: 0}, {"voices": []})
    restored, snapshot = StreamState.from_bytes(state.to_bytes(b"\x00snapshot"))
    assert (restored, snapshot) == (state, b"\x00snapshot")
    assert state.resume_samples(GRID) == 64_000 and StreamState().resume_samples(GRID) == 0
    for analysed in range(0, 1_000_000, 8_000):
        resume = StreamState(analysed).resume_samples(GRID)
        # There is a whole window before the next, and four seconds before that; engines begin where their grids do.
        assert resume % 8_000 == resume % 512 == resume % 1_600 == 0
        assert resume == 0 or 144_000 <= analysed - resume < 208_000


@pytest.mark.parametrize(
    "state", [b'{"speech": {}}', b'{"speech": {}, "shown_as": {}, "numbers": {}, "later": 1}', b"[]"]
)
def test_the_state_of_another_version_is_refused_and_no_fault(state: bytes) -> None:
    with pytest.raises(InvalidRequest, match="another version"):
        StreamState.from_bytes(len(state).to_bytes(4, "big") + state)
    naming = SessionNaming(None, None, None, Scope("acme", frozenset()))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="another version"):
        naming.load({"voices": [], "merged": [], "shown": [[0, 1, 2]]})
