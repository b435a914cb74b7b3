"""What is said of voices is asked for at the moment of saying it, in match reports as in names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from models.analysis import FloatArray
from models.live_naming import Relabel
from models.naming import Reason
from models.online import SessionSpeaker
from node import events
from node.checkpoint import StreamState
from node.heard_numbers import HeardNumbers
from node.naming import Match, Scope, SessionNaming, score
from node.null_engine import NAMING
from node.session import LiveSession, Said
from node.voice_store import NOBODY, Roster, Voice, VoiceStore

ADA = Voice("default", "ada", 1, "Ada", 0, 64_000)


class Guard:
    """Allows names until it is told otherwise."""

    def __init__(self) -> None:
        self.is_open = True

    def allows(self) -> bool:
        return self.is_open


async def test_scores_that_come_back_after_the_lease_has_run_out_tell_of_nobody() -> None:
    guard = Guard()

    class SlowStore:
        def candidates(self, audiences: tuple[str, ...], allowed: frozenset[str]) -> Roster:
            return Roster(audiences, 1, (ADA,), np.zeros(1, np.int64), {"ada": 1}, np.full(1, 64_000), 1)

        async def scores(
            self, queries: FloatArray, roster: Roster, carried: Collection[str]
        ) -> tuple[FloatArray, Roster]:
            guard.is_open = False
            return np.ones((len(queries), 1), np.float32), roster

    speakers = [SessionSpeaker(0, np.full(4, 0.5, np.float32), 64_000)]
    cosines, roster = await score(cast(VoiceStore, SlowStore()), guard, Scope("default", frozenset()), speakers)
    assert roster is NOBODY
    assert cosines.shape == (1, 0)


async def test_between_steps_a_name_is_said_of_the_voice_that_was_heard_and_under_a_lease_alone() -> None:
    guard, held = Guard(), [ADA]

    class Store:
        def candidates(self, audiences: tuple[str, ...], allowed: frozenset[str]) -> Roster:
            return Roster(audiences, 1, (ADA,), np.zeros(1, np.int64), {"ada": 1}, np.full(1, 64_000), 1)

        async def scores(
            self, queries: FloatArray, roster: Roster, carried: Collection[str]
        ) -> tuple[FloatArray, Roster]:
            return np.full((len(queries), 1), 0.95, np.float32), roster

        def find_for(self, audiences: tuple[str, ...], voice_id: str) -> Voice:
            return held[0]

        def find(self, tenant_id: str, voice_id: str) -> Voice:
            return held[0]

    naming = SessionNaming(cast(VoiceStore, Store()), guard, NAMING, Scope("default", frozenset()))
    await naming.step([], [SessionSpeaker(0, np.full(4, 0.5, np.float32), 64_000)])
    said = naming.name("ada", 0.9)
    assert said is not None and said.label == "Ada"
    assert naming.reports()
    # The same name enrolled anew is another voice, which nobody has heard yet.
    held[0] = replace(ADA, generation=2)
    assert naming.name("ada", 0.9) is None
    assert not naming.reports()
    held[0] = ADA
    guard.is_open = False
    assert naming.name("ada", 0.9) is None
    assert naming.reports() == {}


async def test_a_voice_evicted_while_one_relabel_is_written_is_in_the_report_of_no_later_one() -> None:
    held = [ADA]

    class Naming:
        def reports(self) -> dict[int, Match]:
            match = Match(Reason.MATCHED, ADA, 0.9, 0.8, None, 0.0, 64_000)
            return {0: match, 1: match} if held else {}

        def name(self, voice_id: str | None, probability: float) -> None:
            return None

    told: list[Any] = []

    async def send(event: events.Event) -> None:
        told.append(event)
        held.clear()  # the eviction comes while this is written

    heard = HeardNumbers(StreamState(numbers={0: 0, 1: 1}))
    session = SimpleNamespace(
        _naming=Naming(), _heard=heard, _send=send, _request=SimpleNamespace(provisional=False), _told=0
    )
    relabels: Sequence[Relabel] = [Relabel(0, 0, "ada", 0.9, 0), Relabel(1, 1, None, 0.0, 0)]
    await LiveSession._say(cast(LiveSession, session), Said(relabels, [], 0))
    assert [event.match is None for event in told] == [False, True]
