"""How the client dials: one set of channel options, one way to send a key."""

from __future__ import annotations

from grpc import aio

MIB = 1 << 20

# The daemons' own CHANNEL_OPTIONS, stated again because this package ships without theirs: a frozen peer is noticed
# within seconds only when the ping timeout is set, and gRPC's own retries would keep sound in memory to send it twice.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 40 * MIB),
)


def open_channel(address: str) -> aio.Channel:
    """A channel to "host:port"."""
    return aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))


def credentials(key: str | None) -> tuple[tuple[str, str], ...]:
    """Call metadata that shows a key; empty without one."""
    return (("authorization", f"Bearer {key}"),) if key else ()
