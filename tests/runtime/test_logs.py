"""What reaches the log of an exception: its types and places, never its message, whoever logs it."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from runtime.grpc_server import new_server, open_channel
from runtime.lifecycle import run_daemon
from runtime.logs import configure, get_logger, stack_of

SECRET = "Zaphod Canary Beeblebrox"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a daemon's log holds; what was configured before is back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    configure("info", service="test")
    yield stderr
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"unexpected {SECRET}") from error


def lines(text: str) -> list[dict[str, object]]:
    assert SECRET not in text
    return [json.loads(line) for line in text.splitlines()]


def test_a_stack_says_types_and_places_and_goes_back_to_the_first_cause() -> None:
    with pytest.raises(ValueError, match="unexpected") as raised:
        fail()
    found = stack_of(ExceptionGroup(SECRET, [raised.value]))
    assert [line for line in found if ":" not in line] == ["ExceptionGroup", "ValueError", "KeyError"]
    assert sum(line.endswith(":fail") and "test_logs.py" in line for line in found) == 2
    assert SECRET not in str(found)


def test_our_log_and_a_librarys_hold_no_message_of_an_exception(written: io.StringIO) -> None:
    try:
        fail()
    except ValueError as error:
        get_logger().error("ours", exc_info=error)
        logging.getLogger("library").exception("theirs")
    ours, theirs = lines(written.getvalue())
    for line in (ours, theirs):
        assert line["error_type"] == "ValueError"
        assert any(str(place).endswith(":fail") for place in line["stack"])  # type: ignore[attr-defined]


async def test_a_servicer_that_fails_and_a_task_that_nobody_waits_for_are_logged_without_their_message(
    written: io.StringIO,
) -> None:
    class Failing(health_pb2_grpc.HealthServicer):
        async def Check(self, request: object, context: object) -> None:
            fail()

    class Daemon:
        async def start(self, tasks: object) -> None:
            del tasks
            self.server = new_server()
            health_pb2_grpc.add_HealthServicer_to_server(Failing(), self.server)
            port = self.server.add_insecure_port("127.0.0.1:0")
            await self.server.start()
            async with open_channel(f"127.0.0.1:{port}") as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                with pytest.raises(aio.AioRpcError) as refused:
                    await stub.Check(health_pb2.HealthCheckRequest())
            assert SECRET not in str(refused.value)

            async def forgotten() -> None:
                fail()

            task = asyncio.create_task(forgotten())
            await asyncio.wait({task})
            del task
            gc.collect()

        async def drain(self, deadline_s: float) -> None:
            del deadline_s

        async def stop(self) -> None:
            await self.server.stop(0)

    stop = asyncio.Event()
    stop.set()
    assert await run_daemon([Daemon()], drain_s=0.0, stop=stop) == 0
    told = lines(written.getvalue())
    assert [line["event"] for line in told if line.get("error_type") == "ValueError"] == ["rpc.failed", "loop.failed"]
