"""Calls every method of a service by its descriptor, so that a method added later is in the test already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from speakerd.late_status import keep_status


async def refusals(
    channel: aio.Channel, service: ServiceDescriptor, metadata: Sequence[tuple[str, str]]
) -> dict[str, grpc.StatusCode]:
    """What each method of a service answers to one empty message under these credentials."""
    return {method.name: await _status(channel, service, method, metadata) for method in service.methods}


async def _status(
    channel: aio.Channel, service: ServiceDescriptor, method: Any, metadata: Sequence[tuple[str, str]]
) -> grpc.StatusCode:
    asked, answered = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    arity = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    make = getattr(channel, arity)(
        f"/{service.full_name}/{method.name}",
        request_serializer=asked.SerializeToString,
        response_deserializer=answered.FromString,
    )

    ended = asyncio.Event()

    async def one() -> Any:
        yield asked()
        # grpc.aio reports a half-close that crosses the refusal as INTERNAL, in place of the status.
        await ended.wait()

    # It reports a write that crosses it as INTERNAL, too, unless it is told to wait for the status.
    call = keep_status(make(one() if method.client_streaming else asked(), metadata=tuple(metadata), timeout=10))
    call.add_done_callback(lambda _call: ended.set())
    status: grpc.StatusCode = await call.code()
    return status
