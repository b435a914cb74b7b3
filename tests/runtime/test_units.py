"""Units: one rounding, and ranges that touch still touch after it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime import units


@given(st.integers(0, 10**12))
def test_milliseconds_survive_the_way_through_samples(milliseconds: int) -> None:
    assert units.ms_from_samples(units.samples_from_ms(milliseconds)) == milliseconds


@given(st.integers(0, 10**12))
def test_a_sample_is_never_more_than_half_a_millisecond_from_its_millisecond(sample: int) -> None:
    assert abs(units.samples_from_ms(units.ms_from_samples(sample)) - sample) <= units.SAMPLES_PER_MS // 2


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_order_survives_rounding(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert units.ms_from_samples(low) <= units.ms_from_samples(high)


def test_seconds_round_to_the_nearest_sample() -> None:
    assert units.samples_from_seconds(0.5) == 8_000
    assert units.samples_from_seconds(1 / 3) == 5_333
    assert units.seconds_from_samples(24_000) == 1.5
