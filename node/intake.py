"""The incoming side of a stream or file: messages become samples, which go to the device as fast as it takes them.

In: a peer's messages. Out: 16 kHz samples, pushed into a source, which is ended with them. What always holds: a
message is read only when the sound of the one before has found its place; nothing that was read is lost when the
stream is handed over; containers of a stream are decoded as they come, those of a file when they are whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import numpy as np

from models.analysis import FloatArray
from node import events
from node.enrolment import CONTAINER, SILENCE_DBFS, SILENCE_PEAK
from node.patience import Patience
from node.source import Source
from runtime.errors import BadAudio, InvalidRequest, SpeakerdError, TimedOut, TooLarge
from runtime.media import adecode_live, adecode_stream
from runtime.pcm import PcmDecoder
from runtime.units import SAMPLE_RATE_HZ, seconds_from_samples

IDLE_S = 30.0
SOUND_MIN_S = 0.5
CONTAINER_BYTES_MIN = 256
"""Less than this in the IDLE_S from a message on is no sound that comes: messages that are empty, or a byte a second,
would keep a slot for ever."""
AUDIO_BYTES_MAX = 1 << 20
DECODE_ON_LOOP_BYTES_MAX = 64 << 10
"""Larger chunks are decoded on a thread: the event loop never works longer than a millisecond."""


class Sender(Protocol):
    """Where sound comes from."""

    async def receive(self) -> object:
        """The next message: sound as bytes; Finish, or None, when there is no more; anything else is out of place."""
        ...


class Intake:
    """Reads one stream or file.

    is_resumed: it goes on from a checkpoint, so that it may hold no further sound. is_live: it is still being made.
    skip_samples: what lies before the checkpoint in a container, which is sent again from its first byte.
    """

    def __init__(
        self,
        sender: Sender,
        source: Source,
        sound: events.SoundFormat,
        *,
        piece_samples: int,
        samples_max: int | None = None,
        is_resumed: bool = False,
        is_live: bool = False,
        skip_samples: int = 0,
    ) -> None:
        self._sender = sender
        self._source = source
        self._piece_samples = piece_samples
        self._samples_max = samples_max
        self._is_resumed = is_resumed
        self._decode = adecode_live if is_live else adecode_stream
        self._is_live = is_live
        self._skip_samples = skip_samples
        self._may_be_silent = is_resumed or sound.parties_apart  # a party may have nothing to say
        self._decoder = (
            None
            if sound.encoding == CONTAINER
            else PcmDecoder.from_wire(sound.encoding, sound.sample_rate_hz, sound.channels)
        )
        self._receiver: asyncio.Task[object] | None = None
        self._bytes_min = CONTAINER_BYTES_MIN if self._decoder is None else _bytes_of(SOUND_MIN_S, self._decoder)
        # For the sound that is not enough yet, since the first of it came; None: none has. And how much of it there is.
        self._waited_s: float | None = None
        self._came_bytes = 0
        self.handing_over = False
        self.complaint: BadAudio | None = None
        """What is wrong with a container of which some could be decoded: to be told once that has become turns."""
        self._pushed_samples = 0
        self._gathered_samples = 0  # in messages that complete no window yet
        self._peak = 0.0

    def __repr__(self) -> str:
        return f"Intake({self.received_samples} samples received, handing_over={self.handing_over})"

    @property
    def received_samples(self) -> int:
        """How much sound has come, in samples at 16 kHz."""
        return self._pushed_samples + self._gathered_samples

    async def run(self) -> None:
        """Read until the stream is finished, half-closed or handed over."""
        self._patience = Patience(IDLE_S)
        try:
            if self._decoder is None:
                await self._read_container()
            else:
                await self._read_samples(self._decoder)
        except SpeakerdError as error:
            if isinstance(error, BadAudio) and self._decoder is None and self._is_live and self.received_samples:
                self.complaint = error
            elif not self.handing_over:
                raise
        finally:
            self._patience.close()
        if not self.received_samples and not self.handing_over and not self._is_resumed:
            raise BadAudio("there is no audio: send `audio` after `open`")
        if self._peak <= SILENCE_PEAK and not self.handing_over and not self._may_be_silent:
            raise BadAudio(
                f"no sound above {SILENCE_DBFS} dBFS in {seconds_from_samples(self.received_samples):.1f} s: "
                "the audio is silent; check the microphone and its level, and the encoding"
            )
        self._source.end()

    def hand_over(self) -> None:
        """Read no more."""
        self.handing_over = True
        if self._receiver is not None:
            self._receiver.cancel()

    async def _read_samples(self, decoder: PcmDecoder) -> None:
        # What completes no window can wait for what does: a message costs as much to decode and to place as a window.
        gathered, wanted = bytearray(), self._bytes_to_window(decoder)
        while (data := await self._message()) is not None:
            gathered += data
            if len(gathered) >= wanted:
                await self._push_decoded(decoder, bytes(gathered))
                gathered.clear()
                wanted = self._bytes_to_window(decoder)
            self._gathered_samples = len(gathered) // decoder.frame_bytes * SAMPLE_RATE_HZ // decoder.sample_rate_hz
        self._gathered_samples = 0
        await self._push_decoded(decoder, bytes(gathered))
        await self._push(decoder.flush())

    def _bytes_to_window(self, decoder: PcmDecoder) -> int:
        frames = -(-self._source.samples_to_window * decoder.sample_rate_hz // SAMPLE_RATE_HZ)
        return min(frames * decoder.frame_bytes, DECODE_ON_LOOP_BYTES_MAX)

    async def _push_decoded(self, decoder: PcmDecoder, data: bytes) -> None:
        self._gathered_samples = 0
        if len(data) > DECODE_ON_LOOP_BYTES_MAX:
            await self._push(await asyncio.to_thread(decoder.feed, data))
        else:
            await self._push(decoder.feed(data))

    async def _read_container(self) -> None:
        skip = self._skip_samples
        async with aclosing(self._messages()) as messages, aclosing(self._decode(messages)) as blocks:
            async for block in blocks:
                await self._push(block[skip:])
                skip = max(0, skip - len(block))

    async def _messages(self) -> AsyncGenerator[bytes, None]:
        while (data := await self._message()) is not None:
            yield data

    async def _message(self) -> bytes | None:
        """The next piece of sound; None at its end."""
        if self.handing_over:
            return None
        message = await self._receive()
        if message is None or isinstance(message, events.Finish):
            return None
        if not isinstance(message, bytes):
            raise InvalidRequest("`open` was sent twice: send it once, then `audio`")
        if len(message) > AUDIO_BYTES_MAX:
            raise TooLarge(
                f"an audio message holds {len(message)} bytes: send at most {AUDIO_BYTES_MAX}, 100 ms is best"
            )
        self._require_enough(len(message))
        return message

    def _require_enough(self, num_bytes: int) -> None:
        """Raises TimedOut when what has come for a while is next to nothing."""
        self._came_bytes += num_bytes
        if self._came_bytes >= self._bytes_min:
            self._waited_s, self._came_bytes = None, 0
        elif self._waited_s is None:
            # A pause has its own bound: who speaks at the end of a long one has as long as everybody.
            self._waited_s = 0.0
        elif self._waited_s > IDLE_S:
            raise TimedOut(
                f"less than {SOUND_MIN_S:g} s of audio in {IDLE_S:g} s: "
                "send audio as it comes, or `finish` when it ends"
            )

    async def _receive(self) -> object:
        self._receiver = asyncio.current_task()  # of a container, the task that feeds its decoder
        # Only what the sender takes counts, not what we take for the sound before.
        began_s = asyncio.get_running_loop().time()
        try:
            with self._patience:
                return await self._sender.receive()
        except TimeoutError:
            raise TimedOut(f"no audio for {IDLE_S:g} s: send audio as it comes, or `finish` when it ends") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.handing_over or task is None or task.uncancel():
                raise
            return None
        finally:
            self._receiver = None
            if self._waited_s is not None:
                self._waited_s += asyncio.get_running_loop().time() - began_s

    async def _push(self, samples: FloatArray) -> None:
        # Pieces of a hop keep one large message from overfilling the backlog.
        if self._samples_max is not None and self.received_samples + len(samples) > self._samples_max:
            raise TooLarge(
                f"the recording is longer than {seconds_from_samples(self._samples_max) / 3600:g} h: send it in parts"
            )
        if self._peak <= SILENCE_PEAK:
            self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))
        for at in range(0, len(samples), self._piece_samples):
            piece = samples if len(samples) <= self._piece_samples else samples[at : at + self._piece_samples]
            await self._source.push(piece)
            self._pushed_samples += len(piece)


def _bytes_of(seconds: float, decoder: PcmDecoder) -> int:
    return round(seconds * decoder.sample_rate_hz) * decoder.frame_bytes
