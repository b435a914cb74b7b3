"""The client for programs without an event loop: the same calls, blocking.

One thread runs a loop and a `Client` on it; every method hands its work there and waits. Use it as a context manager.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

from speakerd.channel import TlsTrust
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.live_stream import Event, LiveStream
from speakerd.stream_leg import StreamOptions
from speakerd.uploads import Clip, FileOptions, OnProgress
from speakerd.v1 import node_pb2, people_pb2

ResultT = TypeVar("ResultT")


class SyncClient:
    """`Client`, blocking. Safe to share between threads."""

    def __init__(self, address: str, api_key: str | None, *, tls: TlsTrust | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="speakerd-client", daemon=True)
        self._thread.start()
        self._client = self._run(_client_on_this_loop(address, api_key, tls))

    def __repr__(self) -> str:
        return f"Sync{self._client!r}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up and stop the thread."""
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def enroll(
        self, label: str, clips: Sequence[Clip], *, voice_id: str = "", consent: people_pb2.Consent | None = None
    ) -> people_pb2.EnrollVoiceResponse:
        """Enrol a person from one to ten recordings."""
        return self._run(self._client.enroll(label, clips, voice_id=voice_id, consent=consent))

    def voices(self, *, label: str = "") -> list[people_pb2.Voice]:
        """All voices, or those with a label."""
        return self._run(self._client.voices(label=label))

    def erase(self, voice_id: str, *, wait_s: float = 0.0) -> people_pb2.Erasure:
        """Erase a voice."""
        return self._run(self._client.erase(voice_id, wait_s=wait_s))

    def diarize_file(
        self, recording: Clip, options: FileOptions | None = None, *, on_progress: OnProgress | None = None
    ) -> node_pb2.FileResult:
        """Diarize a recording. on_progress is called from the client's thread."""
        return self._run(self._client.diarize_file(recording, options, on_progress=on_progress))

    def stream(self, sound: Iterable[bytes], options: StreamOptions | None = None) -> Iterator[Event]:
        """Send sound as it comes, and yield what the stream says, until it is closed.

        `sound` is drawn from in a thread of its own, so it may block, for example on a microphone.
        """
        live = self._run(self._client.open_stream(options))
        sending = asyncio.run_coroutine_threadsafe(_send(live, iter(sound)), self._loop)
        events = aiter(live)
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        except (CancelledError, SpeakerdError) as error:
            # A sender that failed has let go of the stream: its reason is the one to tell.
            if isinstance(error, CancelledError) or error.cause == "stale":
                sending.result()
            raise
        finally:
            sending.cancel()
            self._run(live.close())

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _client_on_this_loop(address: str, api_key: str | None, tls: TlsTrust | None) -> Client:
    return Client(address, api_key, tls=tls)


async def _send(live: LiveStream, pieces: Iterator[bytes]) -> None:
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            await live.send(piece)
        await live.finish()
    except SpeakerdError:
        raise  # the node's own end of the stream, which its reader is told as well
    except BaseException:
        await live.close()
        raise


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)
