"""Places that tenants share."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from controlplane.places import Places
from runtime.errors import Overloaded


def test_one_tenant_never_takes_the_last_quarter_and_others_still_get_in() -> None:
    places = Places("recordings", 8, retry_after_s=2.0)
    with ExitStack() as flood:
        for _ in range(6):
            flood.enter_context(places.taken("greedy"))
        with pytest.raises(Overloaded) as refused, places.taken("greedy"):
            pass
        assert refused.value.retry_after_s == 2.0
        assert "recordings" in str(refused.value)
        with places.taken("other"), places.taken("other"):
            with pytest.raises(Overloaded), places.taken("third"):
                pass
            assert repr(places) == "Places(recordings: 8 of 8)"
        assert places.taken_by("greedy") == 6
    assert places.taken_by("greedy") == 0
    assert repr(places) == "Places(recordings: 0 of 8)"


def test_a_place_is_given_back_whatever_happens_in_it() -> None:
    places = Places("recordings", 1, retry_after_s=1.0)
    with pytest.raises(ValueError, match="boom"), places.taken("t"):
        raise ValueError("boom")
    with places.taken("t"), pytest.raises(Overloaded), places.taken("t"):
        pass
