"""Errors: total tables, and one interceptor that serves all four arities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from runtime import errors
from runtime.grpc_server import ERROR_TRAILER, new_server
from speakerd.v1 import common_pb2

SECRET = "a name that must not leave"


def all_errors() -> list[type[errors.SpeakerdError]]:
    return [error for error in errors.SpeakerdError.__subclasses__() if error.__module__ == errors.__name__]


@pytest.mark.parametrize("table", [errors.GRPC_STATUS, errors.HTTP_STATUS], ids=["grpc", "http"])
def test_every_cause_has_a_row_in_every_table(table: dict[errors.Cause, Any]) -> None:
    assert set(table) == set(errors.Cause)


def test_every_cause_but_internal_has_exactly_one_error() -> None:
    causes = [error.cause for error in all_errors()]
    assert sorted(cause.value for cause in causes) == sorted(
        c.value for c in errors.Cause if c is not errors.Cause.INTERNAL
    )


def test_no_error_maps_to_success() -> None:
    assert grpc.StatusCode.OK not in errors.GRPC_STATUS.values()
    assert all(status >= 400 for status in errors.HTTP_STATUS.values())


def identity(data: bytes) -> bytes:
    return data


def handlers(raise_: Callable[[], Exception]) -> grpc.GenericRpcHandler:
    async def answer(_request: Any, _context: Any) -> bytes:
        raise raise_()

    async def generate(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise raise_()

    async def write(_request: Any, context: Any) -> None:
        await context.write(b"first")
        raise raise_()

    return grpc.method_handlers_generic_handler(
        "test.Service",
        {
            "uu": grpc.unary_unary_rpc_method_handler(answer, identity, identity),
            "su": grpc.stream_unary_rpc_method_handler(answer, identity, identity),
            "us": grpc.unary_stream_rpc_method_handler(generate, identity, identity),
            "ss": grpc.stream_stream_rpc_method_handler(write, identity, identity),
        },
    )


async def statuses(raise_: Callable[[], Exception]) -> dict[str, aio.AioRpcError]:
    server = new_server()
    server.add_generic_rpc_handlers((handlers(raise_),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    seen: dict[str, aio.AioRpcError] = {}
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = {
                "uu": channel.unary_unary("/test.Service/uu")(b""),
                "su": channel.stream_unary("/test.Service/su")(iter([b"a"])),
                "us": channel.unary_stream("/test.Service/us")(b""),
                "ss": channel.stream_stream("/test.Service/ss")(iter([b"a"])),
            }
            for arity, call in calls.items():
                with pytest.raises(aio.AioRpcError) as caught:
                    if arity.endswith("u"):
                        await call
                    else:
                        assert [message async for message in call] == [b"first"]
                seen[arity] = caught.value
    finally:
        await server.stop(0)
    return seen


async def test_an_error_reaches_the_client_with_status_text_and_details_in_all_four_arities() -> None:
    for error in (await statuses(lambda: errors.Overloaded("full; come back", retry_after_s=1.5))).values():
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details() == "full; come back"
        trailers = dict(tuple(error.trailing_metadata() or ()))
        info = common_pb2.ErrorInfo.FromString(trailers[ERROR_TRAILER])  # type: ignore[arg-type]
        assert (info.cause, info.retry_after_ms) == ("overloaded", 1500)


async def test_a_foreign_exceptions_text_never_leaves_the_daemon(capfd: pytest.CaptureFixture[str]) -> None:
    for error in (await statuses(lambda: KeyError(SECRET))).values():
        assert error.code() is grpc.StatusCode.INTERNAL
        assert SECRET not in str(error.details())
    capfd.readouterr()
