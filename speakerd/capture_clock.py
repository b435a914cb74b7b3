"""Where sound belongs in a stream, by the clock of whoever captured it.

In: pieces of samples and when each was captured, in seconds from the start of the stream. Out: the bytes to send, so
that a second of the stream is a second of that clock: silence where sound was lost, nothing where it came twice. What
always holds: a piece lies within TOLERANCE_S of when it was captured; smaller differences, of jitter and of clocks
that drift apart, are left alone until they add up to that, and then made good at once.
"""

from __future__ import annotations

from speakerd.errors import SpeakerdError
from speakerd.kept_sound import frame_bytes, is_resumable
from speakerd.stream_leg import StreamOptions
from speakerd.v1 import common_pb2

TOLERANCE_S = 0.2
"""A packet may come so early or late; a turn that is off by so much is still the right one."""
GAP_S_MAX = 600.0

_SILENCE = {common_pb2.ENCODING_PCM_MULAW: b"\xff", common_pb2.ENCODING_PCM_ALAW: b"\xd5"}


class CaptureClock:
    """The place of one stream's sound. Raises SpeakerdError for a container, whose bytes do not tell their time."""

    def __init__(self, options: StreamOptions) -> None:
        if not is_resumable(options):
            raise SpeakerdError("invalid", "the bytes of a container cannot be put in their place: leave out at_s")
        self._frame_bytes = frame_bytes(options)
        self._rate_hz = options.sample_rate_hz or 16_000
        self._silence = _SILENCE.get(options.encoding, b"\0")
        self._sent_bytes = 0

    def __repr__(self) -> str:
        return f"CaptureClock({self.position_s:.3f} s sent)"

    @property
    def position_s(self) -> float:
        """How far the stream is."""
        return self._sent_bytes / self._frame_bytes / self._rate_hz

    def begin(self, sent_bytes: int) -> None:
        """So much has been sent until now, whether anybody said when it was captured or not."""
        self._sent_bytes = sent_bytes

    def placed(self, sound: bytes, at_s: float) -> tuple[int, bytes]:
        """How many bytes of silence to send first, and then which of these bytes.

        Raises SpeakerdError where the clock is off by more than GAP_S_MAX.
        """
        off_s = at_s - self.position_s
        if not abs(off_s) <= GAP_S_MAX:
            raise SpeakerdError(
                "invalid",
                f"sound of {at_s:g} s follows on {self.position_s:.1f} s: give seconds from the start of the stream, "
                "and open a new one after a longer pause",
            )
        silence, repeated = 0, 0
        if off_s >= TOLERANCE_S:
            silence = round(off_s * self._rate_hz) * self._frame_bytes
        elif off_s <= -TOLERANCE_S:
            repeated = min(round(-off_s * self._rate_hz) * self._frame_bytes, len(sound))
        self._sent_bytes += silence + len(sound) - repeated
        return silence, sound[repeated:]

    def silence(self, num_bytes: int) -> bytes:
        """So many bytes of silence in the stream's encoding."""
        return self._silence * (num_bytes // len(self._silence))
