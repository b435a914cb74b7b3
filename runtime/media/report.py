"""Reads what the decoding child reports, and puts its refusals into words. Does no I/O.

In: bytes from the child's pipe, cut anywhere, and at last how the child ended. Out: float32 blocks, the file's
format, or an error. The child has handled hostile bytes and is not trusted either: lengths, names and numbers are
checked, and the words of every error are ours.
"""

from __future__ import annotations

import json
import re
import signal
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.errors import BadAudio, SpeakerdError, TooLarge, Unavailable, UnsupportedMedia
from runtime.media.limits import MediaLimits
from runtime.units import SAMPLE_RATE_HZ

FloatArray = npt.NDArray[np.float32]

LINE_BYTES_MAX = 4_096
BLOCK_BYTES_MAX = 4 * SAMPLE_RATE_HZ
NUMBER_MAX = 1e15
NAME = re.compile(r"[a-z0-9_]{1,32}")
ERROR_NAME = re.compile(r"[A-Za-z]{1,40}")

FORMATS = "wav, flac, ogg, mp3, m4a or webm"
NOT_AUDIO = f"not an audio file that we read: send {FORMATS}"
AGAIN = "send the whole file again, or save it anew as wav or flac"


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """What the file was before it became 16 kHz mono. `container` and `codec` are named as FFmpeg names them.

    declared_s: how long it says it is, 0 where it does not; what it delivers may be another length.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    declared_s: float = field(default=0.0, compare=False)


class _Misreported(Exception):
    """The child did not keep to the protocol."""


class ReportReader:
    """The report of one child, read as it arrives.

    `source` is None until the child has said what the file is. `ended` turns True with the last line.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self.source: SourceFormat | None = None
        self.ended = False
        self.num_samples = 0
        self._limits = limits
        self._buffer = bytearray()
        self._tail: dict[str, Any] | None = None

    def feed(self, data: bytes) -> list[FloatArray]:
        """The blocks that these bytes complete, each float32 (N,), at most a second long.

        Raises BadAudio when the child does not keep to the protocol, which a decoder that was taken over might.
        """
        self._buffer += data
        blocks: list[FloatArray] = []
        try:
            while not self.ended and self._step(blocks):
                pass
        except (_Misreported, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadAudio(f"the audio makes the decoder misbehave: {AGAIN}") from None
        return blocks

    def close(self, returncode: int) -> None:
        """Raises what the end of the child means; returns when the file was decoded whole."""
        if self.ended and self._tail is not None:
            if self._tail.get("ok") is True:
                return
            raise self._refusal(self._tail)
        decoded = self._so_far()
        if returncode == -signal.SIGKILL:
            raise Unavailable(f"the decoder was killed {decoded}, most likely for want of memory: try again later")
        if returncode == -signal.SIGXCPU:
            raise self._out_of_cpu()
        if returncode < 0:
            raise BadAudio(f"the decoder broke down {decoded}, the file is damaged: {AGAIN}")
        raise SpeakerdError(f"the decoder ended without a report {decoded} (status {returncode})")

    def timed_out(self) -> SpeakerdError:
        """The error for a child that was waited for too long."""
        return BadAudio(
            f"decoding took more than {self._limits.wait_s_max:g} s and was stopped {self._so_far()}: "
            "send a shorter recording, or save it anew as wav or flac"
        )

    def _out_of_cpu(self) -> SpeakerdError:
        return BadAudio(
            f"decoding took more than {self._limits.cpu_s_max:g} s of processor time and was stopped {self._so_far()}: "
            "send a shorter recording, or save it anew as wav or flac"
        )

    def _so_far(self) -> str:
        return f"after {self.num_samples / SAMPLE_RATE_HZ:.1f} s of sound"

    def _step(self, blocks: list[FloatArray]) -> bool:
        """Takes one item off the buffer; False when it holds no whole one."""
        if self.source is None and self._buffer[:1] == b"{":
            line = self._line(0)
            if line is None:
                return False
            self.source = SourceFormat(
                container=_name(line["container"]),
                codec=_name(line["codec"]),
                sample_rate_hz=int(line["sample_rate_hz"]),
                channels=int(line["channels"]),
                declared_s=min(max(float(line.get("declared_s", 0.0)), 0.0), self._limits.seconds_max),
            )
            return True
        if len(self._buffer) < 4:
            return False
        (length,) = struct.unpack_from("<I", self._buffer)
        if length == 0:
            self._tail = self._line(4)
            self.ended = self._tail is not None
            return False
        # The child counts seconds at the source's rate; resampling rounds by less than a sample.
        if self.source is None or length > BLOCK_BYTES_MAX or length % 4:
            raise _Misreported
        if len(self._buffer) < 4 + length:
            return False
        block = np.frombuffer(bytes(self._buffer[4 : 4 + length]), dtype="<f4").astype(np.float32, copy=False)
        del self._buffer[: 4 + length]
        self.num_samples += len(block)
        if not np.isfinite(block).all() or self.num_samples > self._limits.seconds_max * SAMPLE_RATE_HZ + 1:
            raise _Misreported
        blocks.append(block)
        return True

    def _line(self, start: int) -> dict[str, Any] | None:
        end = self._buffer.find(b"\n", start)
        if end < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise _Misreported
            return None
        line = json.loads(bytes(self._buffer[start:end]))
        del self._buffer[: end + 1]
        if not isinstance(line, dict):
            raise _Misreported
        return line

    def _refusal(self, tail: dict[str, Any]) -> SpeakerdError:
        numbers = tail.get("numbers")
        said = _Numbers(numbers if isinstance(numbers, dict) else {})
        match tail.get("code"):
            case "unknown":
                return UnsupportedMedia(NOT_AUDIO)
            case "codec":
                return UnsupportedMedia(
                    f"the sound in it is coded in a way that we do not read ({said.name('codec')}): send {FORMATS}"
                )
            case "no_sound":
                return BadAudio(
                    f"the {said.name('container')} file holds no sound: send a recording with a sound track"
                )
            case "broken":
                return BadAudio(
                    f"the file begins as {said.name('container')} but cannot be read, cut short or damaged: {AGAIN}"
                )
            case "rate":
                return BadAudio(
                    f"the header says {said.number('rate'):.0f} Hz: sample rates from 4000 to 192000 Hz are read; "
                    "save the recording anew with its true rate"
                )
            case "channels":
                return BadAudio(
                    f"the header says {said.number('channels'):.0f} channels: 1 to 8 are read; "
                    "save the recording anew with its true channels, or mix it down"
                )
            case "rate_changes":
                return BadAudio(
                    f"the sample rate changes at {said.number('at_s'):.1f} s: save the recording anew with one rate"
                )
            case "cut":
                return BadAudio(self._cut(said))
            case "damaged":
                return BadAudio(f"{said.number('share'):.0%} of the file cannot be decoded, it is damaged: {AGAIN}")
            case "not_finite":
                return BadAudio(
                    f"the sample at {said.number('at_s'):.3f} s is NaN or infinite: "
                    "save the recording anew with finite samples, as 16-bit wav for instance"
                )
            case "beyond":
                return BadAudio(
                    f"the float sample at {said.number('at_s'):.3f} s lies far outside [-1, 1]: "
                    "scale the recording, or save it anew as 16-bit wav"
                )
            case "index_last":
                return TooLarge(
                    f"the index comes last in this recording of over {said.number('mib'):.0f} MiB, so that it cannot "
                    "be decoded as it comes: save it with the index first (faststart), or diarize it as a file"
                )
            case "too_long":
                return TooLarge(
                    f"the recording is longer than {self._limits.seconds_max:g} s, the most that is taken here: "
                    "send it in shorter parts"
                )
            case "cpu":
                return self._out_of_cpu()
            case "memory":
                return TooLarge(
                    f"decoding needs more than {self._limits.memory_bytes_max >> 20} MiB of memory: "
                    "save the recording anew as wav or flac"
                )
            case "start":
                return SpeakerdError(
                    f"the decoder cannot start ({said.error()}): check the installation of av and soxr"
                )
            case _:
                return SpeakerdError(f"the decoder failed ({said.error()})")

    def _cut(self, said: _Numbers) -> str:
        decoded_s, declared_s = said.number("decoded_s"), said.number("declared_s")
        of = f" of the {declared_s:.1f} s that it declares" if declared_s else ""
        return f"the file is cut short or damaged: only {decoded_s:.1f} s{of} could be decoded; {AGAIN}"


class _Numbers:
    """What the child says beside a code, checked."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = said

    def number(self, key: str) -> float:
        value = self._said.get(key)
        # An integer may have hundreds of digits, more than a float holds.
        return float(value) if isinstance(value, int | float) and abs(value) <= NUMBER_MAX else 0.0

    def name(self, key: str) -> str:
        value = self._said.get(key)
        return value if isinstance(value, str) and NAME.fullmatch(value) else "unknown"

    def error(self) -> str:
        value = self._said.get("error")
        return value if isinstance(value, str) and ERROR_NAME.fullmatch(value) else "unknown error"


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Misreported
    return value
