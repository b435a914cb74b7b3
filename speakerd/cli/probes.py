"""Questions to a daemon's health, over HTTP with the standard library alone, and over gRPC.

In: an address, a word. Out: whether the daemon says it of itself, and what its clock says. A command that asks needs no
package of a daemon's.
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import grpc
from grpc import aio

from speakerd.channel import TlsTrust, open_channel
from speakerd.errors import SpeakerdError

TIME_METADATA = "speakerd-time-ms"
SERVING = b"\x08\x01"
"""A HealthCheckResponse that says so: the one field is 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a daemon said. ahead_s: how far its clock is ahead of ours; None: its answer does not tell."""

    holds: bool
    ahead_s: float | None = None


def ask_http(address: str, word: str, bound_s: float) -> Answer:
    """Whether a daemon says a word of itself. Raises SpeakerdError where nothing answers, or something else does."""
    sent_s = time.time()
    status, date = _get(address, f"/health/{word}", bound_s)
    if status not in (200, 503):
        raise SpeakerdError(
            "unavailable",
            f"{address} answers /health/{word} with {status}: that is no daemon of speakerd, or an older one; "
            "name the address of its HTTP or metrics with --http",
        )
    if not date:
        return Answer(status == 200)
    # The header tells whole seconds: half a second is what it is wrong by on average.
    theirs_s = parsedate_to_datetime(date).timestamp() + 0.5
    return Answer(status == 200, theirs_s - (sent_s + time.time()) / 2)


async def ask_grpc(address: str, word: str, bound_s: float, tls: TlsTrust | None = None) -> Answer:
    """The same of gRPC's health service. Raises SpeakerdError."""
    host_and_port(address)
    channel = open_channel(address, tls)
    try:
        # Written out: two fields are not worth a package that clients do not have otherwise.
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        sent_s = time.time()
        call = check(b"\x0a" + bytes([len(word)]) + word.encode(), timeout=bound_s, wait_for_ready=True)
        response = await call
        said = dict(list(await call.initial_metadata())).get(TIME_METADATA)
        middle_s = (sent_s + time.time()) / 2
        return Answer(response == SERVING, None if said is None else int(said) / 1000 - middle_s)
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return Answer(False)
        raise SpeakerdError(
            "unavailable", f"nothing answers for health at {address} ({error.code().name}): is the daemon running?"
        ) from None
    finally:
        await channel.close()


def host_and_port(address: str) -> tuple[str, int]:
    """An address in its two parts. Raises SpeakerdError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise SpeakerdError("usage", f"{address!r}: write HOST:PORT, for example 127.0.0.1:7680")
    return host.strip("[]"), int(port)


def _get(address: str, path: str, bound_s: float) -> tuple[int, str]:
    """The status of a page, and its Date."""
    host, port = host_and_port(address.removeprefix("http://").rstrip("/"))
    connection = http.client.HTTPConnection(host, port, timeout=bound_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise SpeakerdError("unavailable", f"nothing answers at {address} ({why}): is the daemon running?") from None
    finally:
        connection.close()
    return answer.status, answer.getheader("Date") or ""
