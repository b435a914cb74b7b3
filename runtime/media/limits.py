"""How much an untrusted recording may ask of us."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Bounds on one decoding. The defaults are for recordings of a day; CLIP is for those sent in one message.

    `bytes_max` bounds the encoded file, `seconds_max` the sound in it, counted as it is decoded. `cpu_s_max` and
    `memory_bytes_max` bound the child process (the latter its address space, of which libraries take 300 MiB), and
    `wait_s_max` the time that we spend waiting for it, without the time that our own consumer takes.
    """

    bytes_max: int = 4096 * MIB
    seconds_max: float = 24 * 3600.0
    cpu_s_max: float = 1800.0
    wait_s_max: float = 3600.0
    memory_bytes_max: int = 1024 * MIB

    def __post_init__(self) -> None:
        assert min(self.bytes_max, self.seconds_max, self.cpu_s_max, self.wait_s_max, self.memory_bytes_max) > 0


CLIP = MediaLimits(bytes_max=32 * MIB, seconds_max=600.0, cpu_s_max=30.0, wait_s_max=60.0)

LIVE = MediaLimits(cpu_s_max=24 * 720.0, wait_s_max=30.0, memory_bytes_max=768 * MIB)
"""A stream that may last a day. The child itself is allowed a fifth of a core for what it has decoded (decode.py), and
`wait_s_max` bounds how long it may take nothing in and give nothing out."""
