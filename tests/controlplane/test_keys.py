"""Envelope encryption: what opens, and what does not."""

from __future__ import annotations

import pytest

from controlplane.keys import KeyRing, VoiceAddress
from runtime.errors import SpeakerdError

VOICE = VoiceAddress("tenant", "voice")


def test_what_was_encrypted_opens_with_the_wrapped_key() -> None:
    ring = KeyRing(bytes(32))
    key, wrapped = ring.make(VOICE)
    sealed = key.encrypt(b"sound", "sample", 1, 0)
    assert b"sound" not in sealed
    assert KeyRing(bytes(32)).open(VOICE, wrapped).decrypt(sealed, "sample", 1, 0) == b"sound"


@pytest.mark.parametrize("what", [("sample", 2, 0), ("sample", 1, 1), ("label", 1, 0), ("sample", 1), ("sample", "10")])
def test_a_ciphertext_moved_elsewhere_does_not_open(what: tuple[str | int, ...]) -> None:
    key, _ = KeyRing(bytes(32)).make(VOICE)
    with pytest.raises(SpeakerdError, match="does not open"):
        key.decrypt(key.encrypt(b"sound", "sample", 1, 0), *what)


@pytest.mark.parametrize(
    "other", [VoiceAddress("other", "voice"), VoiceAddress("tenant", "other"), VoiceAddress("tenan", "tvoice")]
)
def test_a_key_moved_to_another_voice_does_not_open(other: VoiceAddress) -> None:
    ring = KeyRing(bytes(32))
    _, wrapped = ring.make(VOICE)
    with pytest.raises(SpeakerdError, match=r"kek\.key"):
        ring.open(other, wrapped)


def test_another_deployments_key_opens_nothing() -> None:
    _, wrapped = KeyRing(bytes(32)).make(VOICE)
    with pytest.raises(SpeakerdError, match=r"kek\.key"):
        KeyRing(bytes([1]) * 32).open(VOICE, wrapped)


def test_the_audit_names_a_voice_the_same_way_every_time_and_only_with_the_key() -> None:
    ring = KeyRing(bytes(32))
    assert ring.subject("t", "v") == KeyRing(bytes(32)).subject("t", "v")
    assert len({ring.subject("t", "v"), ring.subject("tv", ""), KeyRing(bytes([1]) * 32).subject("t", "v")}) == 3
