"""gRPC as every daemon serves and calls it: options, errors, health, reflection, addresses, tokens.

The options differ from gRPC's defaults for measured reasons: a frozen peer is noticed in seconds only when the ping
timeout is set (the keepalive timeout alone does nothing), and so_reuseport would let a second daemon share a port
silently. One interceptor turns errors into statuses through the table in runtime.errors; servicers just raise.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runtime.errors import GRPC_STATUS, InvalidRequest, SpeakerdError, Unavailable
from runtime.health import Health
from runtime.logs import get_logger
from runtime.tls import Tls
from speakerd.v1 import common_pb2

MIB = 1 << 20

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.http2.settings_timeout", 4_000),
    ("grpc.so_reuseport", 0),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 40 * MIB),
)

ERROR_TRAILER = "speakerd-error-bin"
TIME_METADATA = "speakerd-time-ms"
"""Initial metadata of every answer of health: milliseconds since 1970, for whoever compares clocks."""

HEALTH_LOOK_S = 0.5
STARTING_RETRY_S = 1.0
OPEN_BEFORE_START = ("/grpc.health.v1.", "/grpc.reflection.")


def new_server(interceptors: Sequence[aio.ServerInterceptor] = (), *, message_bytes_max: int = 40 * MIB) -> aio.Server:
    """A server with our options, whose servicers may raise SpeakerdError."""
    options = [*SERVER_OPTIONS, ("grpc.max_receive_message_length", message_bytes_max)]
    return aio.server(interceptors=[ErrorInterceptor(), *interceptors], options=options)


def open_channel(address: str, tls: Tls | None = None, *, name: str = "") -> aio.Channel:
    """A channel to another daemon: "host:port". name: whom its certificate has to be for, if not for the host."""
    if tls is None:
        return aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))
    options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return aio.secure_channel(address, tls.channel_credentials(), options=options)


def bind(server: aio.Server, address: str, *, insecure: bool, tls: Tls | None = None, is_public: bool = False) -> int:
    """Listen on "host:port" (port 0: a free one) and return the port.

    tls: then every client has to show a certificate, or none where the port is public. Plain text is for loopback:
    another address is refused unless `insecure` says that the operator means it.
    Raises InvalidRequest, or Unavailable when the port is taken.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidRequest(f"address {address!r}: write HOST:PORT, for example 127.0.0.1:0")
    if tls is None and not insecure and not is_loopback(host):
        raise InvalidRequest(
            f"{address!r} is not loopback and there is no TLS: bind 127.0.0.1, give certificates "
            "(`speakerd certs init`), or say --insecure"
        )
    try:
        if tls is None:
            bound = int(server.add_insecure_port(address))
        else:
            bound = int(server.add_secure_port(address, tls.server_credentials(is_public=is_public)))
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise Unavailable(f"cannot listen on {address}: the port is taken or the address is not this machine's")
    return bound


def is_loopback(host: str) -> bool:
    """Whether a host can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class GrpcHealth:
    """grpc.health.v1 of one daemon, on each of its servers.

    "" and "live", "started", "ready", and each service by its name, which is as ready as the whole. Check looks as it
    is asked, and tells the time of this machine with it; Watch hears of a change from `run` within half a second.
    """

    def __init__(self, health: Health, service_names: Sequence[str]) -> None:
        self._health = health
        self._names = tuple(service_names)
        self._told: dict[str, int] = {}
        self._servicer = _HealthServicer(self.tell)

    def __repr__(self) -> str:
        return f"GrpcHealth({self._health!r})"

    def serve_on(self, server: aio.Server, *, with_reflection: bool = False) -> None:
        """Answer there, and, with reflection, name the services."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        if with_reflection:
            names = [*self._names, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, server)

    async def tell(self) -> None:
        """Look, and tell what has changed."""
        health = self._health
        is_ready = health.is_ready()
        said = {"": health.is_live(), "live": health.is_live(), "started": health.is_started(), "ready": is_ready}
        for name, holds in {**said, **dict.fromkeys(self._names, is_ready)}.items():
            status = health_pb2.HealthCheckResponse.SERVING if holds else health_pb2.HealthCheckResponse.NOT_SERVING
            if self._told.get(name) != status:
                self._told[name] = status
                await self._servicer.set(name, status)

    async def run(self) -> None:
        """Tell of changes for ever."""
        while True:
            await self.tell()
            await asyncio.sleep(HEALTH_LOOK_S)


class _HealthServicer(grpc_health.aio.HealthServicer):
    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._look = look

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name is the contract's
        """How a service is at this moment."""
        await self._look()
        await context.send_initial_metadata(((TIME_METADATA, str(round(time.time() * 1000))),))
        return await super().Check(request, context)


class StartGate(aio.ServerInterceptor):
    """Refuses every call but those for health and reflection until the daemon has started: ports open before that."""

    def __init__(self) -> None:
        self._is_open = False

    def open(self) -> None:
        """Let calls through from now on."""
        self._is_open = True

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Let a call through, or not."""
        if self._is_open or str(handler_call_details.method).startswith(OPEN_BEFORE_START):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse_before_start)


async def _refuse_before_start(_requests: Any, context: aio.ServicerContext[Any, Any]) -> None:
    await abort(context, Unavailable("this daemon is starting: try again in a moment", retry_after_s=STARTING_RETRY_S))


def bearer(context: aio.ServicerContext[Any, Any]) -> str | None:
    """The token of `authorization: Bearer TOKEN` in a call's metadata."""
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip()
    return None


async def abort(context: aio.ServicerContext[Any, Any], error: SpeakerdError) -> None:
    """End a call with an error's status, text and ErrorInfo. Raises."""
    info = common_pb2.ErrorInfo(
        cause=error.cause.value,
        message=str(error),
        retry_after_ms=0 if error.retry_after_s is None else max(1, round(error.retry_after_s * 1000)),
    )
    await context.abort(
        GRPC_STATUS[error.cause], str(error), trailing_metadata=((ERROR_TRAILER, info.SerializeToString()),)
    )


async def _refuse(context: aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, SpeakerdError):
        await abort(context, error)
    if isinstance(error, aio.AbortError):
        raise error
    # Our fault. The text of a foreign exception may hold anything, so neither the client nor the log gets it.
    get_logger().error("rpc.failed", method=method, error_type=type(error).__name__, exc_info=error)
    await abort(context, SpeakerdError("internal error; the daemon's log has the details"))


class ErrorInterceptor(aio.ServerInterceptor):
    """Turns what servicers raise into statuses, for all four arities."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        for arity in ("unary_unary", "stream_unary"):
            inner = getattr(handler, arity, None)
            if inner is not None:
                return _replace(handler, arity, _answering(inner, method))
        for arity in ("unary_stream", "stream_stream"):
            inner = getattr(handler, arity, None)
            if inner is not None:
                return _replace(handler, arity, _streaming(inner, method))
        return handler


def _replace(handler: Any, arity: str, behavior: Any) -> grpc.RpcMethodHandler[Any, Any]:
    make = getattr(grpc, f"{arity}_rpc_method_handler")
    made: grpc.RpcMethodHandler[Any, Any] = make(
        behavior,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def _answering(inner: Any, method: str) -> Any:
    @functools.wraps(inner)
    async def behave(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the client as a status, and to the log
            await _refuse(context, error, method)

    return behave


def _streaming(inner: Any, method: str) -> Any:
    # A servicer either yields its answers or writes them to the context; gRPC tells the two apart by their kind, so the
    # wrapper has to be of the same kind as what it wraps.
    if not inspect.isasyncgenfunction(inner):
        return _answering(inner, method)

    @functools.wraps(inner)
    async def behave(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in inner(request, context):
                yield response
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the client as a status, and to the log
            await _refuse(context, error, method)

    return behave
