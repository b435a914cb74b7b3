"""HTTP to addresses that strangers name: a recording's url, a webhook. Never to this network unless it is allowed.

In: a url. Out: the body, bounded in bytes and time. What always holds: a name is resolved once, every answer is judged,
and the connection goes to the address that was judged, so that a name that changes its mind changes nothing; redirects
are followed by hand, each judged anew; proxies and environment are not asked; nothing that the other side says is
repeated to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from controlplane.addresses import Network, may_be_called
from runtime.errors import InvalidRequest, SpeakerdError, TimedOut, TooLarge, Unavailable

REDIRECTS_MAX = 3
ADDRESSES_MAX = 3
URL_CHARS_MAX = 2_048
CONNECT_S = 5.0
CHUNK_WAIT_S = 10.0
NOT_PUBLIC = "url: its host is not a public one, or does not exist"
REDIRECTS = (301, 302, 303, 307, 308)

Resolve = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What may be called. networks: allowed besides public addresses. plain: http as well as https."""

    networks: tuple[Network, ...] = ()
    ports: tuple[int, ...] = (443, 8443)
    plain: bool = False

    @classmethod
    def of(cls, networks: Iterable[str], ports: Iterable[int], *, plain: bool) -> UrlPolicy:
        """From settings. ValueError for what is no network."""
        return cls(tuple(ipaddress.ip_network(network) for network in networks), tuple(ports), plain)


class NotAllowed(InvalidRequest):
    """A url that may not be called."""


class Unreachable(Unavailable):
    """Nobody answers at a url, or not in HTTP."""


class BadCertificate(Unreachable):
    """Who answers at a url does not prove to be whom it names."""


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a host, as the system finds them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class GuardedHttp:
    """Fetches what strangers point at."""

    def __init__(
        self, policy: UrlPolicy, *, resolve: Resolve = resolve, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._ssl_context = ssl_context
        self._backend = _Guard(policy, resolve)

    def __repr__(self) -> str:
        return f"GuardedHttp({self._policy!r})"

    def check(self, url: str) -> SplitResult:
        """A url that could be called, by its looks. Raises NotAllowed, saying what is wrong with it."""
        return _checked(url, self._policy)

    async def judge(self, url: str) -> None:
        """Refuse a url now that would be refused as it is called, as things stand. Raises NotAllowed."""
        parts = self.check(url)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._backend.addresses(_ascii_host(parts), parts.port or 443)
        except TimeoutError:
            raise NotAllowed(NOT_PUBLIC) from None

    async def get(self, url: str, *, bytes_max: int, seconds_max: float) -> bytes:
        """The body at a url.

        Raises NotAllowed, InvalidRequest where there is no such thing, TooLarge, TimedOut, Unavailable.
        """
        try:
            async with asyncio.timeout(seconds_max):
                return await self._get(url, bytes_max)
        except TimeoutError:
            raise TimedOut(f"the url did not give its content within {seconds_max:g} s") from None

    async def _get(self, url: str, bytes_max: int) -> bytes:
        for _ in range(REDIRECTS_MAX + 1):
            async with self.request("GET", url) as response:
                if response.status in REDIRECTS:
                    url = _redirected(url, response)
                    continue
                if response.status != 200:
                    raise InvalidRequest(
                        f"the url answers with HTTP status {response.status}, and not with a recording"
                    )
                return await _body(response, bytes_max)
        raise InvalidRequest(f"the url redirects more than {REDIRECTS_MAX} times")

    @asynccontextmanager
    async def stream(self, url: str, *, bytes_max: int) -> AsyncIterator[tuple[AsyncIterator[bytes], int | None]]:
        """The body at a url as it comes, and how long it says that it is. Raises as `get`, but for the time in all."""
        for _ in range(REDIRECTS_MAX + 1):
            async with self.request("GET", url) as response:
                if response.status in REDIRECTS:
                    url = _redirected(url, response)
                    continue
                if response.status != 200:
                    raise InvalidRequest(
                        f"the url answers with HTTP status {response.status}, and not with a recording"
                    )
                yield _pieces(response, bytes_max), _said_bytes(response, bytes_max)
                return
        raise InvalidRequest(f"the url redirects more than {REDIRECTS_MAX} times")

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        content: bytes | AsyncIterator[bytes] = b"",
    ) -> AsyncIterator[httpcore.Response]:
        """One request, no redirects followed. Raises NotAllowed, Unreachable, TimedOut.

        content: what comes in pieces comes with its Content-Length among the headers, and is asked for once connected.
        """
        parts = self.check(url)
        host = _ascii_host(parts)
        target = httpcore.URL(
            scheme=parts.scheme.encode(), host=host.encode(), port=parts.port, target=_target(parts).encode()
        )
        named = f"[{host}]" if ":" in host else host
        sent = [
            ("Host", named if parts.port is None else f"{named}:{parts.port}"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "speakerd"),
            *headers,
        ]
        if isinstance(content, bytes) and content:
            sent.append(("Content-Length", str(len(content))))
        timeout = {"connect": CONNECT_S, "read": CHUNK_WAIT_S, "write": CHUNK_WAIT_S, "pool": CONNECT_S}
        async with httpcore.AsyncConnectionPool(
            ssl_context=self._ssl_context, network_backend=self._backend, max_connections=1, retries=0
        ) as pool:
            try:
                async with pool.stream(
                    method, target, headers=sent, content=content or None, extensions={"timeout": timeout}
                ) as response:
                    yield response
            except SpeakerdError:
                raise
            except httpcore.TimeoutException:
                raise TimedOut("the url's server does not answer in time") from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, ssl.SSLError, OSError) as error:
                # What exactly went wrong could tell a stranger about the network.
                is_tls = any(isinstance(one, ssl.SSLError) for one in (error, error.__context__, *error.args))
                kind = BadCertificate if is_tls else Unreachable
                raise kind("the url's server cannot be reached, or does not speak HTTP") from None


class _Guard(httpcore.AsyncNetworkBackend):
    """Connects to the addresses of a host, once all of them have been judged."""

    def __init__(self, policy: UrlPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of a host that answers. NotAllowed unless all of them may be called."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await self.addresses(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        *first, last = addresses[:ADDRESSES_MAX]
        for address in first:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._plain.connect_tcp(last, port, timeout, local_address, socket_options)

    async def addresses(self, host: str, port: int) -> list[str]:
        """All addresses of a host. NotAllowed unless all of them may be called."""
        try:
            found = await self._resolve(host, port)
        except OSError:
            found = []
        if not found or not all(may_be_called(address, self._policy.networks) for address in found):
            # One text for both: whether a name exists on this network is nobody's business.
            raise NotAllowed(NOT_PUBLIC)
        return found

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise NotAllowed("url: sockets of this machine are not called")

    async def sleep(self, seconds: float) -> None:
        """Wait between attempts."""
        await asyncio.sleep(seconds)


def _checked(url: str, policy: UrlPolicy) -> SplitResult:
    if len(url) > URL_CHARS_MAX or any(ord(letter) <= 32 or ord(letter) == 127 or letter == "\\" for letter in url):
        raise NotAllowed(f"url: at most {URL_CHARS_MAX} characters, no blanks and no control characters")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise NotAllowed("url: it cannot be read") from None
    if parts.scheme not in (("https", "http") if policy.plain else ("https",)):
        raise NotAllowed("url: it has to begin with https://" + (" or http://" if policy.plain else ""))
    if not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        raise NotAllowed("url: a host name, without user or password, has to follow the scheme")
    if port not in policy.ports:
        raise NotAllowed(f"url: port {port} is not called, but {', '.join(str(one) for one in policy.ports)}")
    _target(parts)  # refuses what no request line can say
    literal = _literal(_ascii_host(parts))
    if literal is not None and not may_be_called(literal, policy.networks):
        raise NotAllowed(NOT_PUBLIC)
    return parts


def _literal(host: str) -> str | None:
    """The address that a host is written as, in any of the ways in which systems read one; None: it is a name."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with contextlib.suppress(OSError):
        # 127.1, 0x7f000001, 2130706433, 0177.0.0.1.
        return socket.inet_ntoa(socket.inet_aton(host))
    return None


def _ascii_host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        return host if ":" in host else host.encode("idna").decode()
    except UnicodeError:
        raise NotAllowed("url: the host name cannot be read") from None


def _target(parts: SplitResult) -> str:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii():
        raise NotAllowed("url: percent-encode what is not ASCII")
    return path


def _redirected(url: str, response: httpcore.Response) -> str:
    """Where an answer sends us on to, not yet judged. Raises InvalidRequest where that is nowhere."""
    for key, value in response.headers:
        if key.lower() == b"location":
            # What cannot be read raises ValueError: "//[", for one.
            with contextlib.suppress(ValueError):
                return urljoin(url, bytes(value).decode("latin-1"))
    raise InvalidRequest("the url redirects to nowhere")


async def _body(response: httpcore.Response, bytes_max: int) -> bytes:
    _said_bytes(response, bytes_max)
    found = bytearray()
    async for chunk in _pieces(response, bytes_max):
        found += chunk
    return bytes(found)


async def _pieces(response: httpcore.Response, bytes_max: int) -> AsyncIterator[bytes]:
    """The body, as far as it may go."""
    total_bytes = 0
    async for chunk in response.aiter_stream():
        total_bytes += len(chunk)
        if total_bytes > bytes_max:
            raise _too_large(bytes_max)
        yield chunk


def _said_bytes(response: httpcore.Response, bytes_max: int) -> int | None:
    """The length that the answer announces. Raises TooLarge, and InvalidRequest for what is packed."""
    said = None
    for key, value in response.headers:
        name = key.lower()
        if name == b"content-length" and value.isdigit():
            said = int(value)
            if said > bytes_max:
                raise _too_large(bytes_max)
        if name == b"content-encoding" and value.lower() != b"identity":
            raise InvalidRequest("the url answers with packed content: a recording as it is was asked for")
    return said


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the recording at the url is larger than {bytes_max >> 20} MiB")
