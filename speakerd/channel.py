"""How the client dials: one set of channel options, one way to send a key, plain text or TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc import aio

from speakerd.errors import SpeakerdError

MIB = 1 << 20

# The daemons' own CHANNEL_OPTIONS, stated again because this package ships without theirs: a frozen peer is noticed
# within seconds only when the ping timeout is set, and gRPC's own retries would keep sound in memory to send it twice.
# The least time between attempts is also what gRPC gives one to connect in: half a second was too little for TLS from
# far away, and for a busy machine.
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


@dataclass(frozen=True, slots=True)
class TlsTrust:
    """Whose certificates servers have to show. authority: certificates of the authority, PEM."""

    authority: bytes

    @classmethod
    def from_file(cls, path: Path) -> TlsTrust:
        """The authority in a file. Raises SpeakerdError when there is none."""
        try:
            authority = path.read_bytes()
        except OSError as error:
            raise SpeakerdError("invalid", f"cannot read {path}: {(error.strerror or 'failed').lower()}") from None
        if b"-----BEGIN CERTIFICATE-----" not in authority:
            raise SpeakerdError("invalid", f"{path} holds no certificate: name the ca.crt of the server's fleet")
        return cls(authority)


def open_channel(address: str, tls: TlsTrust | None = None, *, name: str = "") -> aio.Channel:
    """A channel to "host:port". name: what the server's certificate has to be for; empty: the host."""
    if tls is None:
        return aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))
    options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return aio.secure_channel(address, grpc.ssl_channel_credentials(tls.authority), options=options)


def credentials(key: str | None) -> tuple[tuple[str, str], ...]:
    """Call metadata that shows a key; empty without one."""
    return (("authorization", f"Bearer {key}"),) if key else ()
