"""A stranger's url reaches the public and what the operator allows, and nothing else, whatever it looks like."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from controlplane.addresses import may_be_called
from controlplane.guarded_http import GuardedHttp, NotAllowed, UrlPolicy, resolve
from runtime.errors import InvalidRequest, TimedOut, TooLarge, Unavailable

PRIVATE = [
    "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "203.0.113.5",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1",
    "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::1", "not an address", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_not_called_in_whatever_form(address: str) -> None:
    assert not may_be_called(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_what_is_public_is_called(address: str) -> None:
    assert may_be_called(address)


def test_the_operator_may_allow_a_network_and_allows_no_other_by_it() -> None:
    allowed = [ipaddress.ip_network("10.1.0.0/16")]
    assert may_be_called("10.1.2.3", allowed)
    assert not may_be_called("10.2.0.1", allowed)
    assert not may_be_called("::ffff:127.0.0.1", allowed)


Answer = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]


@dataclass
class Server:
    """Answers HTTP on this machine, and remembers what it was asked."""

    port: int = 0
    asked: list[bytes] = field(default_factory=list)
    answers: dict[bytes, Answer] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            await self.answers[head.split()[1]](writer, head)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def says(status: str, body: bytes = b"", *headers: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter, _: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()
    await listening.wait_closed()


def allowing(
    server: Server, *networks: str, resolving: Callable[[str, int], Awaitable[list[str]]] = resolve
) -> GuardedHttp:
    policy = UrlPolicy.of(networks or ("127.0.0.0/8",), (server.port,), plain=True)
    return GuardedHttp(policy, resolve=resolving)


async def got(http: GuardedHttp, url: str, bytes_max: int = 1 << 20, seconds_max: float = 5.0) -> bytes:
    return await http.get(url, bytes_max=bytes_max, seconds_max=seconds_max)


async def test_an_allowed_url_gives_its_content_and_is_asked_with_its_own_host(server: Server) -> None:
    server.answers[b"/a%20b?x=1"] = says("200 OK", b"sound" * 1000)
    assert await got(allowing(server), f"http://127.0.0.1:{server.port}/a%20b?x=1#fragment") == b"sound" * 1000
    (asked,) = server.asked
    assert f"Host: 127.0.0.1:{server.port}".encode() in asked
    assert b"Authorization" not in asked


async def test_a_host_of_another_script_is_called_by_its_ascii_name(server: Server) -> None:
    server.answers[b"/"] = says("200 OK", b"sound")
    asked: list[str] = []

    async def here(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    assert await got(allowing(server, resolving=here), f"http://münchen.example:{server.port}/") == b"sound"
    assert asked == ["xn--mnchen-3ya.example"]
    assert f"Host: xn--mnchen-3ya.example:{server.port}".encode() in server.asked[0]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_this_machine_is_not_reached_under_any_of_its_names(server: Server, host: str) -> None:
    server.answers[b"/"] = says("200 OK", b"secret")
    with pytest.raises(NotAllowed):
        await got(allowing(server, "10.0.0.0/8"), f"http://{host}:{server.port}/")
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org:22/", "https://user:password@example.org/", "ftp://example.org/", "file:///etc/passwd",
        "gopher://example.org/", "https://", "https:///path", "https://exa mple.org/", "https://example.org\\@evil/",
        "https://example.org/\r\nX: y", "//example.org", "example.org", "https://[::1", "https://%31%32%37.0.0.1/",
        "https://" + "a" * 3000, "data:audio/wav;base64,AAAA", "http://example.org/",
        "https://example.org/sé", "https://example.org?x=é",
    ],
)  # fmt: skip
async def test_a_url_that_is_not_plainly_https_to_a_host_is_refused_before_anything_is_resolved(url: str) -> None:
    async def never(host: str, port: int) -> list[str]:
        raise AssertionError(host)

    with pytest.raises(NotAllowed, match="url: "):
        await got(GuardedHttp(UrlPolicy(), resolve=never), url)


async def test_one_private_answer_among_public_ones_refuses_the_name(server: Server) -> None:
    async def both(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "10.0.0.1"]

    with pytest.raises(NotAllowed, match="not a public one, or does not exist"):
        await got(allowing(server, "192.0.2.0/24", resolving=both), f"http://double.example:{server.port}/")


async def test_a_name_is_asked_for_once_and_the_address_that_was_judged_is_the_one_that_is_called(
    server: Server,
) -> None:
    server.answers[b"/"] = says("200 OK", b"right")
    asked: list[str] = []

    async def changing(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.66.66.66"]

    assert await got(allowing(server, resolving=changing), f"http://rebinding.example:{server.port}/") == b"right"
    assert asked == ["rebinding.example"]
    assert f"Host: rebinding.example:{server.port}".encode() in server.asked[0]


async def test_redirects_are_judged_anew_and_bounded(server: Server) -> None:
    base = f"http://127.0.0.1:{server.port}"
    server.answers[b"/go"] = says("302 Found", b"", "Location: /there")
    server.answers[b"/there"] = says("200 OK", b"there")
    assert await got(allowing(server), f"{base}/go") == b"there"
    server.answers[b"/in"] = says("302 Found", b"", "Location: http://169.254.169.254/latest/meta-data/")
    with pytest.raises(NotAllowed):
        await got(allowing(server), f"{base}/in")
    server.answers[b"/file"] = says("302 Found", b"", "Location: file:///etc/passwd")
    with pytest.raises(NotAllowed):
        await got(allowing(server), f"{base}/file")
    server.answers[b"/round"] = says("302 Found", b"", "Location: /round")
    with pytest.raises(InvalidRequest, match="more than 3 times"):
        await got(allowing(server), f"{base}/round")
    assert sum(b"/round" in head for head in server.asked) == 4


async def test_size_and_time_are_bounded_whatever_the_headers_say(server: Server) -> None:
    base = f"http://127.0.0.1:{server.port}"
    server.answers[b"/said"] = says("200 OK", b"x" * 5000)
    with pytest.raises(TooLarge):
        await got(allowing(server), f"{base}/said", bytes_max=4000)

    async def unsaid(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        for _ in range(100_000):
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()

    server.answers[b"/unsaid"] = unsaid
    with pytest.raises(TooLarge):
        await got(allowing(server), f"{base}/unsaid", bytes_max=1 << 20)

    async def trickle(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    server.answers[b"/slow"] = trickle
    with pytest.raises(TimedOut):
        await got(allowing(server), f"{base}/slow", seconds_max=0.5)


async def test_what_the_other_side_says_is_not_repeated(server: Server) -> None:
    base = f"http://127.0.0.1:{server.port}"
    server.answers[b"/no"] = says("403 hidden-words", b"the secret body")
    with pytest.raises(InvalidRequest, match="status 403") as refused:
        await got(allowing(server), f"{base}/no")
    assert "hidden" not in str(refused.value) and "secret" not in str(refused.value)
    server.answers[b"/gzip"] = says("200 OK", b"\x1f\x8b", "Content-Encoding: gzip")
    with pytest.raises(InvalidRequest, match="packed"):
        await got(allowing(server), f"{base}/gzip")

    async def garbage(writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    server.answers[b"/ssh"] = garbage
    with pytest.raises(Unavailable) as unclear:
        await got(allowing(server), f"{base}/ssh")
    assert "SSH" not in str(unclear.value)


async def test_nobody_listening_and_no_such_name_are_told_without_details(server: Server) -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    with pytest.raises(NotAllowed, match="not a public one, or does not exist"):
        await got(allowing(server, resolving=nowhere), f"http://nowhere.example:{server.port}/")
    policy = UrlPolicy.of(("127.0.0.0/8",), (1,), plain=True)
    with pytest.raises(Unavailable):
        await got(GuardedHttp(policy), "http://127.0.0.1:1/")
