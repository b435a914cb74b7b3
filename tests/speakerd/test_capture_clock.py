"""Sound is put where it belongs by the clock of whoever captured it."""

from __future__ import annotations

import random

import pytest

from speakerd.capture_clock import TOLERANCE_S, CaptureClock
from speakerd.errors import SpeakerdError
from speakerd.stream_leg import StreamOptions
from speakerd.v1 import common_pb2

PIECE = b"\1\0" * 1_600  # 0.1 s


def test_sound_that_comes_on_time_is_sent_as_it_is() -> None:
    clock = CaptureClock(StreamOptions())
    chance = random.Random(1)
    for number in range(100):
        jitter_s = chance.uniform(-0.15, 0.15)
        assert clock.placed(PIECE, number * 0.1 + jitter_s) == (0, PIECE)
    assert clock.position_s == pytest.approx(10.0)


def test_what_was_lost_is_silence_of_the_same_length() -> None:
    clock = CaptureClock(StreamOptions(sample_rate_hz=8_000, channels=2))
    assert clock.placed(PIECE, 0.0) == (0, PIECE)
    silence, sound = clock.placed(PIECE, 3.1)
    assert (silence, sound) == (round(3.0 * 8_000) * 4, PIECE)
    assert clock.position_s == pytest.approx(3.2)


def test_what_comes_twice_is_sent_once() -> None:
    clock = CaptureClock(StreamOptions())
    second = PIECE * 10
    clock.placed(second, 0.0)
    assert clock.placed(second, 0.0) == (0, b"")
    assert clock.placed(second, 0.4) == (0, second[-round(0.4 * 16_000) * 2 :])
    assert clock.position_s == pytest.approx(1.4)


@pytest.mark.parametrize("drift", [1 - 300e-6, 1 + 300e-6])
def test_clocks_that_drift_apart_are_never_further_apart_than_the_tolerance(drift: float) -> None:
    """Eight hours of 0.1 s, by a sound card that counts 300 ppm too fast or too slow."""
    clock = CaptureClock(StreamOptions())
    worst = corrections = 0.0
    for number in range(8 * 36_000):
        at_s = number * 0.1 * drift
        before_s = clock.position_s
        silence, sound = clock.placed(PIECE, at_s)
        corrections += silence > 0 or len(sound) < len(PIECE)
        worst = max(worst, abs(at_s - before_s) if not silence and len(sound) == len(PIECE) else 0.0)
    assert worst < TOLERANCE_S
    assert clock.position_s == pytest.approx(8 * 3_600 * drift, abs=TOLERANCE_S + 0.1)
    assert corrections < 100


def test_silence_is_silent_in_every_encoding() -> None:
    import numpy as np

    from runtime.pcm import PcmDecoder

    for encoding in (
        common_pb2.ENCODING_PCM_S16LE,
        common_pb2.ENCODING_PCM_F32LE,
        common_pb2.ENCODING_PCM_MULAW,
        common_pb2.ENCODING_PCM_ALAW,
    ):
        clock = CaptureClock(StreamOptions(encoding=encoding))
        heard = PcmDecoder.from_wire(encoding, 16_000, 1).feed(clock.silence(1_600))
        assert np.abs(heard).max() < 1e-3


@pytest.mark.parametrize("at_s", [1e9, -1e9, float("nan"), float("inf")])
def test_a_clock_of_another_kind_is_told_of(at_s: float) -> None:
    with pytest.raises(SpeakerdError, match="seconds from the start of the stream"):
        CaptureClock(StreamOptions()).placed(PIECE, at_s)


def test_a_container_has_no_place_for_its_bytes() -> None:
    with pytest.raises(SpeakerdError, match="container"):
        CaptureClock(StreamOptions(encoding=common_pb2.ENCODING_CONTAINER))
