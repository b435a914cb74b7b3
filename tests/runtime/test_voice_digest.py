"""The digest by which desired and observed are compared."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from runtime.voice_digest import VoiceDigest

VOICES = st.lists(
    st.tuples(st.text(max_size=5), st.text(max_size=5), st.integers(min_value=0, max_value=9)), unique=True, max_size=12
)


def digest_of(voices: list[tuple[str, str, int]]) -> bytes:
    digest = VoiceDigest()
    for voice in voices:
        digest.add(*voice)
    return digest.value()


@given(voices=VOICES, seed=st.integers())
def test_the_order_of_arrival_does_not_matter(voices: list[tuple[str, str, int]], seed: int) -> None:
    shuffled = random.Random(seed).sample(voices, len(voices))
    assert digest_of(voices) == digest_of(shuffled)


@given(voices=VOICES, extra=st.tuples(st.text(max_size=5), st.text(max_size=5), st.integers(10, 20)))
def test_what_was_added_and_removed_leaves_no_trace(
    voices: list[tuple[str, str, int]], extra: tuple[str, str, int]
) -> None:
    digest = VoiceDigest()
    digest.add(*extra)
    for voice in voices:
        digest.add(*voice)
    assert digest.value() != digest_of(voices)
    digest.remove(*extra)
    assert digest.value() == digest_of(voices)


def test_nothing_is_all_zero_and_32_bytes() -> None:
    assert VoiceDigest().value() == bytes(32)


def test_where_one_field_ends_and_the_next_begins_matters() -> None:
    voices = [("ab", "c", 1), ("a", "bc", 1), ("", "abc", 1), ("abc", "", 1), ("ab", "c", 11)]
    assert len({digest_of([voice]) for voice in voices}) == len(voices)


def test_it_is_the_same_in_every_version() -> None:
    # Nodes and control planes of different versions compare it: it may not change silently.
    assert (
        digest_of([("default", "v_1", 1)]).hex() == "934c33e3d168efe590ae57e6bfd984ee98546306321ff263acdd88a5d05b5054"
    )
