"""Keys that change by the day: agreed upon without a word, and never in the way of what is under way."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane.daily_keys import PERIOD_S, CheckpointKeys, TicketSigner
from runtime.clock import SteppedClock
from runtime.errors import Unauthenticated
from runtime.tickets import Ticket, sign_ticket, verify_ticket

MIDNIGHT_S = 20_000 * PERIOD_S
TICKET = Ticket("acme", "s", "n1", MIDNIGHT_S + 60, "id", 7, ("default",))


def test_a_ticket_of_before_midnight_is_good_after_it_and_at_a_control_plane_whose_clock_is_behind() -> None:
    early, late = SteppedClock(MIDNIGHT_S - 1.0), SteppedClock(MIDNIGHT_S + 1.0)
    one, other = TicketSigner(b"s" * 32, early), TicketSigner(b"s" * 32, late)
    assert one.public_keys() != other.public_keys()
    for signer in (one, other):
        for handed_out in (one.public_keys(), other.public_keys()):
            found = verify_ticket(sign_ticket(TICKET, signer), handed_out, node_id="n1", now_s=MIDNIGHT_S)
            assert found == TICKET


def test_a_key_of_the_day_before_yesterday_another_secrets_and_the_secret_itself_sign_nothing() -> None:
    clock = SteppedClock(float(MIDNIGHT_S))
    signer = TicketSigner(b"s" * 32, clock)
    keys = signer.public_keys()
    old = TicketSigner(b"s" * 32, SteppedClock(float(MIDNIGHT_S - 2 * PERIOD_S)))
    for wrong in (old, TicketSigner(b"t" * 32, clock), Ed25519PrivateKey.from_private_bytes(b"s" * 32)):
        with pytest.raises(Unauthenticated, match="signed"):
            verify_ticket(sign_ticket(TICKET, wrong), keys, node_id="n1", now_s=MIDNIGHT_S)


def test_what_sealed_yesterday_opens_today_and_tickets_tell_nothing_of_checkpoints() -> None:
    before, after = (CheckpointKeys(b"s" * 32, SteppedClock(MIDNIGHT_S + at)) for at in (-1.0, 1.0))
    assert before.current()[0] in after.current() and after.current()[0] in before.current()
    assert before.current()[0] != after.current()[0]
    assert len({*before.current(), *TicketSigner(b"s" * 32, SteppedClock(float(MIDNIGHT_S))).public_keys()}) == 6
    assert "s" * 32 not in repr(before)
