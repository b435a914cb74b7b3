"""The small parts that every message of a stream goes through: queue of results, bounds on waits, steps on a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import thread_time

import pytest

from node.patience import Patience
from node.results import Results
from node.steps import AT_ONCE_S, WORKS_A_GO, Steps


async def turns_of_the_loop() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(("count_max", "bytes_max", "fits"), [(3, 1000, 3), (10, 250, 2)])
async def test_results_wait_in_a_queue_that_is_bounded_in_number_and_in_bytes(
    count_max: int, bytes_max: int, fits: int
) -> None:
    results: Results[int] = Results(count_max, bytes_max)

    async def put() -> None:
        for number in range(5):
            await results.put(number, 100)

    putting = asyncio.create_task(put())
    await turns_of_the_loop()
    assert len(results) == fits and results.num_bytes == fits * 100
    moment_s = asyncio.get_running_loop().time() + 60
    assert [await results.next(moment_s) for _ in range(5)] == [0, 1, 2, 3, 4]
    await putting
    assert results.num_bytes == 0
    results.close()


async def test_one_result_fits_however_large_and_the_next_waits() -> None:
    results: Results[str] = Results(10, 250)
    await results.put("checkpoint", 10_000)
    putting = asyncio.create_task(results.put("turn", 1))
    await turns_of_the_loop()
    assert not putting.done()
    assert await results.next(asyncio.get_running_loop().time() + 60) == "checkpoint"
    await putting
    results.close()


async def test_who_reads_results_hears_that_a_moment_has_come() -> None:
    results: Results[str] = Results()
    loop = asyncio.get_running_loop()
    assert await results.next(loop.time() + 0.01) is None
    assert await results.next(loop.time() - 1) is None
    await results.put("turn", 1)
    assert await results.next(loop.time() - 1) == "turn", "what is there comes first"
    results.close()


async def test_a_wait_that_takes_too_long_is_ended_and_the_next_one_is_bounded_anew() -> None:
    patience = Patience(0.05)
    for _ in range(2):
        with pytest.raises(TimeoutError), patience:
            await asyncio.Event().wait()
    for _ in range(100):
        with patience:
            await asyncio.sleep(0)
    patience.close()


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    patience = Patience(60)

    async def wait() -> None:
        with patience:
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await turns_of_the_loop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    patience.close()


@pytest.fixture
def steps() -> Iterator[Steps]:
    with ThreadPoolExecutor(1) as executor:
        yield Steps(executor)


def burn(seconds: float) -> int:
    until_s = thread_time() + seconds
    while thread_time() < until_s:
        pass
    return threading.get_ident()


async def test_works_that_take_long_run_on_the_thread_and_short_ones_at_once(steps: Steps) -> None:
    here = threading.get_ident()
    assert await steps.run(lambda: burn(2 * AT_ONCE_S), "long") != here
    assert await steps.run(lambda: burn(2 * AT_ONCE_S), "long") != here
    assert await steps.run(threading.get_ident, "short") != here, "not known yet"
    assert await steps.run(threading.get_ident, "short") == here


async def test_works_come_back_to_whom_they_belong_each_with_its_own_failure(steps: Steps) -> None:
    def work(number: int) -> int:
        burn(2 * AT_ONCE_S)
        if number % 5 == 3:
            raise ValueError(str(number))
        return number

    def of(number: int) -> asyncio.Task[int]:
        return asyncio.create_task(steps.run(lambda: work(number), "long"))

    tasks = [of(number) for number in range(3 * WORKS_A_GO)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for number, outcome in enumerate(found):
        if number == 1:
            assert isinstance(outcome, asyncio.CancelledError)
        elif number % 5 == 3:
            assert isinstance(outcome, ValueError) and str(outcome) == str(number)
        else:
            assert outcome == number
