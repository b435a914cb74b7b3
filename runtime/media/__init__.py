"""Recordings from outside: decoded in a confined child process, and measured as signals before a model hears them.

`decode`, `decode_stream` and their twins `adecode`, `adecode_stream` take any common format and give float32 mono at
16 kHz; `adecode_live` does so while a recording is still being made; `preflight` measures.
Nothing here imports torch. How many decodings run at once is the caller's to bound: each takes a core while it runs.
"""

from __future__ import annotations

from runtime.media.decoding import DecodedAudio, adecode, adecode_stream, decode, decode_stream
from runtime.media.limits import CLIP, LIVE, MediaLimits
from runtime.media.live import adecode_live
from runtime.media.preflight import Finding, PreflightFailed, PreflightLimits, SignalPreflight, measure, preflight
from runtime.media.report import SourceFormat

__all__ = [
    "CLIP",
    "LIVE",
    "DecodedAudio",
    "Finding",
    "MediaLimits",
    "PreflightFailed",
    "PreflightLimits",
    "SignalPreflight",
    "SourceFormat",
    "adecode",
    "adecode_live",
    "adecode_stream",
    "decode",
    "decode_stream",
    "measure",
    "preflight",
]
