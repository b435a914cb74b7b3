"""One recording, or the microphone, through a node; and a server of our own where none is named.

In: a client, sound, how to hear it. Out: who spoke when, once the stream has ended well. What always holds: a stream
that broke off raises, and a server of our own is gone when its context ends, with its folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speakerd.cli.connection import Connection, own_connection
from speakerd.cli.fleet import Fleet, FleetPlan
from speakerd.cli.output import Output
from speakerd.cli.recording import Microphone, Recording
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.live_stream import Event, LiveStream, StreamOptions
from speakerd.timeline import SpeechTimeline
from speakerd.v1 import common_pb2, node_pb2

SILENCE_BOUND_S = 120.0
"""A stream that says nothing for so long is given up: nodes report progress about once a second."""


@dataclass(frozen=True, slots=True)
class StreamedFile:
    """What became of one stream."""

    timeline: SpeechTimeline
    closed: node_pb2.StreamClosed


async def stream_sound(
    client: Client,
    sound: Recording | Microphone,
    options: StreamOptions,
    *,
    realtime: bool,
    on_event: Callable[[Event], None] = lambda event: None,
    timeline: SpeechTimeline | None = None,
) -> StreamedFile:
    """Stream to the end of the sound. Raises SpeakerdError when the stream breaks off.

    timeline: filled as turns come, so that a caller still has them when the stream breaks off.
    """
    timeline = SpeechTimeline() if timeline is None else timeline
    closed: node_pb2.StreamClosed | None = None
    opened = await client.open_stream(replace(options, encoding=sound.encoding))
    try:
        async with opened as live, asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(_send(live, sound.chunks(realtime=realtime)), name="send")
            async for event in _bounded(live):
                timeline.take(event)
                on_event(event)
                if isinstance(event, node_pb2.StreamClosed):
                    closed = event
            sending.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    if closed is None:
        raise SpeakerdError("unavailable", "the node ended the stream before its end: stream it again")
    return StreamedFile(timeline, closed)


def matches_as_json(closed: node_pb2.StreamClosed) -> list[dict[str, Any]]:
    """Each speaker of a stream, and why he was named or not, as plain values."""
    return [
        {
            "speaker": speaker.speaker,
            "label": speaker.label,
            "voice_id": speaker.voice_id or None,
            "speech": speaker.speech_ms / 1000,
            "net_speech": speaker.net_speech_ms / 1000,
            "outcome": common_pb2.MatchReport.Outcome.Name(speaker.match.outcome).removeprefix("OUTCOME_").lower(),
            "best_voice_id": speaker.match.best_voice_id or None,
            "best_probability": round(speaker.match.best_probability, 4),
            "best_cosine": round(speaker.match.best_cosine, 4),
        }
        for speaker in closed.speakers
    ]


@contextlib.asynccontextmanager
async def own_server(out: Output, *, device: str | None = None, bundle: str | None = None) -> AsyncIterator[Connection]:
    """A fleet in a temporary folder, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="speakerd-", ignore_cleanup_errors=True) as folder:
        data = Path(folder)
        steps = _Steps(out)
        fleet = Fleet(FleetPlan(data=data, device=device, bundle=bundle, drain_s=1.0), say=steps.begin)
        with steps:
            await fleet.__aenter__()
        try:
            yield own_connection(fleet.endpoints.grpc, data)
        finally:
            await fleet.__aexit__(None, None, None)


class _Steps(contextlib.ExitStack):
    """Shows one step of a start after the other."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._out = out

    def begin(self, text: str) -> None:
        """The step before is done, this one begins."""
        self.close()
        self.enter_context(self._out.working(text))


async def _send(live: LiveStream, chunks: AsyncGenerator[bytes, None]) -> None:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            await live.send(chunk)
    await live.finish()


async def _bounded(live: LiveStream) -> AsyncIterator[Event]:
    events = aiter(live)
    while True:
        try:
            async with asyncio.timeout(SILENCE_BOUND_S):
                event = await anext(events)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise SpeakerdError(
                "timeout", f"the node said nothing for {SILENCE_BOUND_S:.0f} s: stream it again"
            ) from None
        yield event
