"""Who called a moment ago is known without asking, and a key that is revoked opens nothing a second later."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.policy import Principal
from controlplane.recent_callers import RecentCallers
from runtime.clock import SteppedClock
from runtime.errors import Denied, Unauthenticated


class Keys:
    """What Identity is to RecentCallers."""

    def __init__(self) -> None:
        self.asked = 0
        self.revoked = False

    async def principal(self, token: str | None, scope: str) -> Principal:
        self.asked += 1
        await asyncio.sleep(0)
        if self.revoked or token is None:
            raise Unauthenticated("revoked")
        found = Principal("t", "k", frozenset({"streams:open"}), None)
        found.require(scope)
        return found


async def test_a_key_in_steady_use_is_asked_for_beside_its_calls() -> None:
    keys, clock = Keys(), SteppedClock()
    made: Any = keys
    callers = RecentCallers(made, clock)
    for _ in range(50):
        assert (await callers.principal("sk_a_b", "streams:open")).tenant_id == "t"
        clock.step(0.1)
        await asyncio.sleep(0)
    assert 5 <= keys.asked <= 15
    with pytest.raises(Denied):
        await callers.principal("sk_a_b", "admin")


async def test_a_revoked_key_opens_nothing_a_second_later() -> None:
    keys, clock = Keys(), SteppedClock()
    made: Any = keys
    callers = RecentCallers(made, clock)
    await callers.principal("sk_a_b", "streams:open")
    keys.revoked = True
    clock.step(1.0)
    with pytest.raises(Unauthenticated):
        await callers.principal("sk_a_b", "streams:open")
    with pytest.raises(Unauthenticated):
        await callers.principal(None, "streams:open")
