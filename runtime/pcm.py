"""Raw sound from the wire becomes 16 kHz mono floats, as it arrives.

In: bytes of S16LE, F32LE, mu-law or A-law samples, channels interleaved, 8 to 96 kHz, cut anywhere. Out: float32 mono
at SAMPLE_RATE_HZ. What always holds: the output does not depend, not even in its last bit, on how the input was cut;
after `flush` exactly round(frames_in * 16000 / rate) samples have come out, the first of them at the time of the
first sample in; and no sample that went in was NaN, infinite or beyond LOUDEST.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import soxr

from runtime.errors import BadAudio, InvalidRequest
from runtime.units import SAMPLE_RATE_HZ
from speakerd.v1 import common_pb2

FloatArray = npt.NDArray[np.float32]

MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 96_000
MAX_CHANNELS = 8
# Float samples belong in [-1, 1]. Some overshoot is ordinary; 18 dB of it is integers sent as floats.
LOUDEST = 8.0


class PcmEncoding(IntEnum):
    """How samples lie in the bytes. The numbers are those of speakerd.v1.Encoding."""

    S16LE = 1
    F32LE = 2
    MULAW = 3
    ALAW = 4


SAMPLE_BYTES = {PcmEncoding.S16LE: 2, PcmEncoding.F32LE: 4, PcmEncoding.MULAW: 1, PcmEncoding.ALAW: 1}


def said_rate_and_channels(message: common_pb2.AudioFormat) -> tuple[int, int]:
    """Rate and channels of a speakerd.v1.AudioFormat; 0 where they are absent. InvalidRequest where they are 0."""
    if message.encoding != common_pb2.ENCODING_CONTAINER:
        for name in ("sample_rate_hz", "channels"):
            if message.HasField(name) and getattr(message, name) == 0:
                raise InvalidRequest(f"{name} is 0: give that of the audio, or leave it out for the default")
    return message.sample_rate_hz, message.channels


class PcmDecoder:
    """Decodes, mixes and resamples one stream of raw samples.

    Channels are mixed by their average. Raises InvalidRequest for a rate or a number of channels out of range.
    """

    def __init__(self, encoding: PcmEncoding, sample_rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1) -> None:
        if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
            raise InvalidRequest(
                f"sample_rate_hz is {sample_rate_hz}: give the rate of the audio, {MIN_RATE_HZ} to {MAX_RATE_HZ}"
            )
        if not 1 <= channels <= MAX_CHANNELS:
            raise InvalidRequest(f"channels is {channels}: give 1 to {MAX_CHANNELS} interleaved channels")
        self.encoding = encoding
        self.sample_rate_hz = sample_rate_hz
        self.channels = channels
        self.frame_bytes = SAMPLE_BYTES[encoding] * channels
        self.frames_in = 0
        self.samples_out = 0
        self._rest = b""
        # soxr's streams give the same bits however their input is cut, without delay, and end at the nearest sample.
        self._resampler = (
            None
            if sample_rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(sample_rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        )
        self._flushed = False

    @classmethod
    def from_wire(cls, encoding: int, sample_rate_hz: int, channels: int) -> PcmDecoder:
        """A decoder for the fields of speakerd.v1.AudioFormat, where 0 takes the default.

        Raises InvalidRequest for values out of range, and for encodings that are not raw samples.
        """
        try:
            known = PcmEncoding(encoding or PcmEncoding.S16LE)
        except ValueError:
            raise InvalidRequest(
                f"encoding {encoding} is not raw samples: send PCM_S16LE, PCM_F32LE, PCM_MULAW or PCM_ALAW"
            ) from None
        return cls(known, sample_rate_hz or SAMPLE_RATE_HZ, channels or 1)

    def __repr__(self) -> str:
        return (
            f"PcmDecoder({self.encoding.name}, {self.sample_rate_hz} Hz, {self.channels} channels: "
            f"{self.frames_in} frames in, {self.samples_out} samples out)"
        )

    def feed(self, data: bytes | bytearray | memoryview) -> FloatArray:
        """The samples that these bytes complete, float32 (N,); N may be 0, as the resampler holds a little back.

        Raises BadAudio for float samples that are NaN, infinite or beyond LOUDEST. The decoder is of no use after that.
        """
        assert not self._flushed, "fed after flush"
        joined = self._rest + bytes(data) if self._rest else bytes(data)
        whole = len(joined) - len(joined) % self.frame_bytes
        self._rest = joined[whole:]
        if not whole:
            return np.empty(0, dtype=np.float32)
        samples = self._to_floats(joined[:whole])
        if self.channels > 1:
            samples = samples.reshape(-1, self.channels).mean(axis=1, dtype=np.float32)
        self.frames_in += len(samples)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self.samples_out += len(samples)
        return samples

    def flush(self) -> FloatArray:
        """The last samples, float32 (N,). Nothing can be fed after it.

        Raises BadAudio when the bytes end inside a sample.
        """
        assert not self._flushed, "flushed twice"
        self._flushed = True
        if self._rest:
            raise BadAudio(
                f"the audio ends inside a sample: {self.channels} channel(s) of PCM_{self.encoding.name} take "
                f"{self.frame_bytes} bytes a sample, and {len(self._rest)} are left over; check encoding and channels, "
                "and send whole samples"
            )
        expected = round(self.frames_in * SAMPLE_RATE_HZ / self.sample_rate_hz)
        if self._resampler is None or not self.frames_in:
            return np.empty(0, dtype=np.float32)
        tail: FloatArray = self._resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)
        # soxr rounds halves its own way; one sample more or less is made good here, so that positions are exact.
        missing = expected - self.samples_out - len(tail)
        assert abs(missing) <= 1, f"the resampler is off by {missing} samples"
        tail = np.pad(tail, (0, missing)) if missing > 0 else tail[: len(tail) + missing]
        self.samples_out += len(tail)
        return tail

    def _to_floats(self, data: bytes) -> FloatArray:
        match self.encoding:
            case PcmEncoding.S16LE:
                return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(32768)
            case PcmEncoding.F32LE:
                return self._checked(np.frombuffer(data, dtype="<f4").astype(np.float32))
            case PcmEncoding.MULAW:
                return _MULAW[np.frombuffer(data, dtype=np.uint8)]
            case PcmEncoding.ALAW:
                return _ALAW[np.frombuffer(data, dtype=np.uint8)]

    def _checked(self, samples: FloatArray) -> FloatArray:
        # NaN compares false, so that one comparison finds all three.
        good = np.abs(samples) <= LOUDEST
        if good.all():
            return samples
        frame = self.frames_in + int(np.argmin(good)) // self.channels
        at_s = frame / self.sample_rate_hz
        if np.isfinite(samples[int(np.argmin(good))]):
            raise BadAudio(
                f"a float sample at {at_s:.3f} s lies beyond ±{LOUDEST:g}: PCM_F32LE takes floats in [-1, 1]; scale "
                "them, or send integers as PCM_S16LE"
            )
        raise BadAudio(f"the sample at {at_s:.3f} s is NaN or infinite: send finite floats in [-1, 1]")


def _mulaw_table() -> FloatArray:
    """G.711 mu-law: the value of each of the 256 bytes, scaled to [-1, 1)."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent = ((code >> 4) & 7).astype(np.int32)
    magnitude = ((((code & 15).astype(np.int32) << 3) + 132) << exponent) - 132
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> FloatArray:
    """G.711 A-law: the value of each of the 256 bytes, scaled to [-1, 1)."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent = ((code >> 4) & 7).astype(np.int32)
    mantissa = ((code & 15).astype(np.int32) << 4) + 8
    magnitude = np.where(exponent > 0, (mantissa + 256) << np.maximum(exponent - 1, 0), mantissa)
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768).astype(np.float32)


_MULAW = _mulaw_table()
_ALAW = _alaw_table()
