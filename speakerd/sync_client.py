"""The client for programs without an event loop: the same calls, blocking.

One thread runs a loop and a `Client` on it; every method hands its work there and waits. Use it as a context manager.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from queue import Queue
from types import TracebackType
from typing import Any, Self, TypeVar

from speakerd.client import Client, Clip, FileOptions, OnProgress
from speakerd.live_stream import Event, StreamOptions
from speakerd.v1 import node_pb2, people_pb2

ResultT = TypeVar("ResultT")


class SyncClient:
    """`Client`, blocking. Safe to share between threads."""

    def __init__(self, address: str, api_key: str | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="speakerd-client", daemon=True)
        self._thread.start()
        self._client = self._run(_client_on_this_loop(address, api_key))

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
        events: Queue[Event | BaseException | None] = Queue()
        pieces = iter(sound)

        async def carry() -> None:
            try:
                async with await self._client.open_stream(options) as stream, asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(send(stream.send, stream.finish))
                    async for event in stream:
                        events.put(event)
                    sending.cancel()
                events.put(None)
            except BaseExceptionGroup as group:
                events.put(group.exceptions[0])
            except BaseException as error:
                events.put(error)
                raise

        async def send(send_piece: Any, finish: Any) -> None:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await send_piece(piece)
            await finish()

        carrying = asyncio.run_coroutine_threadsafe(carry(), self._loop)
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            carrying.cancel()

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _client_on_this_loop(address: str, api_key: str | None) -> Client:
    return Client(address, api_key)
