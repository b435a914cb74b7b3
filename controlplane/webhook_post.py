"""One attempt to tell a receiver: a POST, signed, bounded in time, redirects followed by hand, each url judged anew.

In: a url and a body. Out: nothing, or why it failed, in one of six words. What always holds: the body goes to nobody
whom the operator does not allow to be called, and only if it may still leave once the connection stands; nothing of
what the receiver says is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import Enum
from urllib.parse import urljoin, urlsplit

from controlplane.guarded_http import REDIRECTS, BadCertificate, GuardedHttp, NotAllowed, Unreachable
from controlplane.webhook_secrets import sign
from runtime.clock import Clock
from runtime.errors import Stale, TimedOut
from runtime.logs import get_logger

TIMEOUT_S = 10.0
REDIRECTS_MAX = 2


class Reason(Enum):
    """Why an attempt failed, as x-retry-reason says it."""

    TIMEOUT = "http_timeout"
    REDIRECTS = "too_many_redirects"
    CONNECTION = "connection_failed"
    TLS = "ssl_error"
    STATUS = "http_error"
    UNKNOWN = "unknown_error"


class WebhookPost:
    """Posts. as_base64: the signature is base64 in place of hexadecimal."""

    def __init__(
        self, http: GuardedHttp, clock: Clock, *, as_base64: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._http = http
        self._clock = clock
        self._as_base64 = as_base64
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return "WebhookPost()"

    async def post(
        self, url: str, body: bytes, *, secret: str, number: int, reason: str, may_leave: Callable[[], bool]
    ) -> Reason | None:
        """Tell; None: it was taken. number: 0 for the first attempt; reason: why the one before failed.

        Raises Stale when the body may not leave any more: it is to be made anew.
        """
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if number:
            headers += [("x-retry-num", str(number)), ("x-retry-reason", reason or Reason.UNKNOWN.value)]

        async def content() -> AsyncIterator[bytes]:
            # The connection stands, and what comes next is the writing.
            if not may_leave():
                raise Stale("what is to be told has changed meanwhile")
            yield body

        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(REDIRECTS_MAX + 1):
                    timestamp = str(int(self._clock.wall_s()))
                    signed = [
                        ("X-Request-Timestamp", timestamp),
                        ("X-Signature", sign(secret, timestamp, body, as_base64=self._as_base64)),
                    ]
                    async with self._http.request(
                        "POST", url, headers=[*headers, *signed], content=content()
                    ) as response:
                        if response.status not in REDIRECTS:
                            return None if 200 <= response.status < 300 else Reason.STATUS
                        found = _redirected(url, response.headers)
                    if found is None:
                        return Reason.STATUS
                    url = found
                return Reason.REDIRECTS
        except (TimeoutError, TimedOut):
            return Reason.TIMEOUT
        except BadCertificate:
            return Reason.TLS
        except (Unreachable, NotAllowed):
            return Reason.CONNECTION
        except Stale:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a receiver manages to cause, the others are told
            get_logger().warning("webhook.failed", error_type=type(error).__name__)
            return Reason.UNKNOWN


def _redirected(url: str, headers: list[tuple[bytes, bytes]]) -> str | None:
    """Where to go on; None: nowhere that will do. What was told under TLS is not told in the open."""
    for name, value in headers:
        if name.lower() == b"location":
            try:
                there = urljoin(url, value.decode("latin-1"))
                is_open = urlsplit(url).scheme == "https" and urlsplit(there).scheme != "https"
            except ValueError:
                return None  # what cannot be read: "//[", for one
            return None if is_open else there
    return None
