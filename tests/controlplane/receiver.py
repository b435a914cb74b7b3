"""A receiver of webhooks: a real HTTP server that remembers each request as it came, byte for byte."""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Told:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    def is_signed_with(self, secret: str) -> bool:
        """As a receiver checks it who has read nothing but the contract."""
        signed = f"v0:{self.headers['x-request-timestamp']}:".encode() + self.body
        expected = hmac.new(secret.encode(), signed, "sha256").hexdigest()
        return hmac.compare_digest(expected, self.headers["x-signature"])

    @property
    def retry(self) -> tuple[str, str] | None:
        number = self.headers.get("x-retry-num")
        return None if number is None else (number, self.headers["x-retry-reason"])


def says(status: str, *headers: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", *headers, "", ""]).encode())
        await writer.drain()

    return answer


async def never(writer: asyncio.StreamWriter) -> None:
    """Take the request and say nothing, until the other side has had enough."""
    while not writer.is_closing():
        await asyncio.sleep(0.02)


OK = says("204 No Content")


@dataclass
class Receiver:
    """Answers each path from a list of answers, the last of which stays."""

    port: int = 0
    told: list[Told] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path = head[0].split()[1]
            self.told.append(Told(path, headers, body))
            answers = self.answers.get(path, [OK])
            await (answers.pop(0) if len(answers) > 1 else answers[0])(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # CancelledError: the test is over
        finally:
            writer.close()


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made._serve, "127.0.0.1", 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
