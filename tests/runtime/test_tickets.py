"""Stream tickets: what opens a node, and what does not."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runtime.errors import Unauthenticated
from runtime.tickets import Ticket, sign_ticket, verify_ticket

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
TICKET = Ticket(tenant_id="t", stream_id="s", node_id="n", expires_at_s=2_000, ticket_id="x")


def unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_body(body: bytes) -> str:
    return f"{unpadded(body)}.{unpadded(KEY.sign(body))}"


def test_a_ticket_comes_back_as_it_was_signed() -> None:
    assert verify_ticket(sign_ticket(TICKET, KEY), [PUBLIC], node_id="n", now_s=1_999) == TICKET


def test_any_of_several_keys_may_have_signed() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    assert verify_ticket(sign_ticket(TICKET, KEY), [other, PUBLIC], node_id="n", now_s=0) == TICKET


@pytest.mark.parametrize(
    ("node_id", "now_s", "says"),
    [("other", 0, "another node"), ("n", 2_000, "expired"), ("n", 3_000, "expired")],
)
def test_a_ticket_is_for_one_node_and_a_while(node_id: str, now_s: float, says: str) -> None:
    with pytest.raises(Unauthenticated, match=says):
        verify_ticket(sign_ticket(TICKET, KEY), [PUBLIC], node_id=node_id, now_s=now_s)


def test_a_ticket_of_another_key_is_refused() -> None:
    forged = sign_ticket(TICKET, Ed25519PrivateKey.generate())
    with pytest.raises(Unauthenticated, match="not signed"):
        verify_ticket(forged, [PUBLIC], node_id="n", now_s=0)
    with pytest.raises(Unauthenticated, match="not signed"):
        verify_ticket(sign_ticket(TICKET, KEY), [], node_id="n", now_s=0)


def test_a_changed_ticket_is_refused() -> None:
    body, signature = sign_ticket(TICKET, KEY).split(".")
    fields = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    changed = unpadded(json.dumps({**fields, "tenant_id": "other"}, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(Unauthenticated, match="not signed"):
        verify_ticket(f"{changed}.{signature}", [PUBLIC], node_id="n", now_s=0)


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a.b.c",
        "é.ü",
        "..",
        "x" * 5_000,
        signed_body(b"[]"),
        signed_body(b"{}"),
        signed_body(b"[" * 2_900),
        signed_body(b"\xff"),
        signed_body(json.dumps({**asdict(TICKET), "expires_at_s": "2000"}).encode()),
        signed_body(json.dumps({**asdict(TICKET), "node_id": 1}).encode()),
        signed_body(json.dumps({**asdict(TICKET), "more": "x"}).encode()),
    ],
)
def test_what_is_no_ticket_is_refused_and_breaks_nothing(text: str) -> None:
    with pytest.raises(Unauthenticated, match="malformed"):
        verify_ticket(text, [PUBLIC], node_id="n", now_s=0)


def test_no_ticket_at_all_says_where_to_get_one() -> None:
    with pytest.raises(Unauthenticated, match="PlaceStream"):
        verify_ticket("", [PUBLIC], node_id="n", now_s=0)
