"""Answers kept for a repeated Idempotency-Key, over both databases."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from sqlalchemy import select, update

from controlplane.database.schema import kept_answers
from controlplane.kept_answers import ANSWER_BYTES_MAX, KEPT_S, UNDER_WAY_S, Answer, Turn
from controlplane.keys import VoiceAddress
from controlplane.policy import Principal
from runtime.errors import Conflict
from tests.controlplane.conftest import World

CALL = "POST /toy"
WHO = Principal("default", "k-1", frozenset())
ANSWER = Answer(201, {"content-type": "application/json"}, b'{"name": "Zanzibar"}')


async def test_of_many_at_once_one_does_it_and_the_others_get_its_answer_later(any_world: World) -> None:
    answers = (await any_world.plane()).core.kept_answers

    async def begin() -> Turn | Answer | None:
        with contextlib.suppress(Conflict):
            return await answers.begin(WHO, "one", CALL, b"digest")
        return None

    began = [turn for turn in await asyncio.gather(*(begin() for _ in range(8))) if turn is not None]
    assert len(began) == 1
    assert isinstance(began[0], Turn)
    await answers.keep(began[0], ANSWER)
    assert await answers.begin(WHO, "one", CALL, b"digest") == ANSWER
    for other in (Principal("other", "k-2", frozenset()), Principal("default", "k-3", frozenset(), "u-1")):
        assert isinstance(await answers.begin(other, "one", CALL, b"digest"), Turn)
    # The same caller with another key of the API is the same caller.
    assert await answers.begin(Principal("default", "k-9", frozenset()), "one", CALL, b"digest") == ANSWER


async def test_a_request_that_died_with_its_process_frees_its_key_and_may_not_keep_an_answer_any_more(
    any_world: World,
) -> None:
    plane = await any_world.plane()
    answers = plane.core.kept_answers
    dead = await answers.begin(WHO, "one", CALL, b"digest")
    assert isinstance(dead, Turn)
    async with plane.core.database.write() as connection:
        await connection.execute(update(kept_answers).values(began_at_s=dead.began_at_s - UNDER_WAY_S - 1))
    again = await answers.begin(WHO, "one", CALL, b"digest")
    assert isinstance(again, Turn)
    assert again.name == dead.name
    await answers.keep(dead, ANSWER)
    await answers.drop(dead)
    with pytest.raises(Conflict, match="under way"):
        await answers.begin(WHO, "one", CALL, b"digest")
    await answers.keep(again, Answer(200, {}, b"x" * (ANSWER_BYTES_MAX + 1)))
    assert isinstance(await answers.begin(WHO, "one", CALL, b"digest"), Turn)


async def test_after_a_day_nothing_is_left_and_what_tells_of_a_voice_goes_with_the_voice(any_world: World) -> None:
    plane = await any_world.plane()
    await any_world.node(plane)
    client = await any_world.client(plane)
    answers = plane.core.kept_answers
    voice_id = (await client.enrol()).voice.voice_id
    turn = await answers.begin(WHO, "one", CALL, b"digest")
    assert isinstance(turn, Turn)
    await answers.keep(turn, ANSWER, VoiceAddress("default", voice_id))
    async with plane.core.database.read() as connection:
        (row,) = (await connection.execute(select(kept_answers))).all()
    assert b"Zanzibar" not in bytes(row.ciphertext)
    assert await answers.begin(WHO, "one", CALL, b"digest") == ANSWER
    await client.erase(voice_id)
    with pytest.raises(Conflict, match="erased"):
        await answers.begin(WHO, "one", CALL, b"digest")
    async with plane.core.database.write() as connection:
        await connection.execute(update(kept_answers).values(began_at_s=turn.began_at_s - KEPT_S - 1))
    assert isinstance(await answers.begin(WHO, "two", CALL, b"digest"), Turn)
    async with plane.core.database.read() as connection:
        assert len((await connection.execute(select(kept_answers))).all()) == 1
