"""The child is not trusted: what it may say, and what becomes of it."""

from __future__ import annotations

import json
import signal
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BadAudio, SpeakerdError, TooLarge, Unavailable, UnsupportedMedia
from runtime.media import MediaLimits, SourceFormat
from runtime.media.report import ReportReader

LIMITS = MediaLimits(seconds_max=10, cpu_s_max=7)
HEAD = b'{"container": "wav", "codec": "pcm_s16le", "sample_rate_hz": 8000, "channels": 2}\n'


def block(samples: np.ndarray) -> bytes:
    data = samples.astype("<f4").tobytes()
    return struct.pack("<I", len(data)) + data


def tail(code: str | None = None, **numbers: Any) -> bytes:
    said = {"ok": True} if code is None else {"ok": False, "code": code, "numbers": numbers}
    return struct.pack("<I", 0) + json.dumps(said).encode() + b"\n"


def read(*pieces: bytes, returncode: int = 0) -> list[np.ndarray]:
    reader = ReportReader(LIMITS)
    blocks = [samples for piece in pieces for samples in reader.feed(piece)]
    reader.close(returncode)
    return blocks


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=8))
def test_a_report_is_read_however_it_is_cut(cuts: list[int]) -> None:
    report = HEAD + block(np.arange(100) / 100) + block(np.arange(70) / 100) + tail()
    edges = sorted({0, len(report), *(min(cut, len(report)) for cut in cuts)})
    reader = ReportReader(LIMITS)
    blocks = [b for start, end in pairwise(edges) for b in reader.feed(report[start:end])]
    reader.close(0)
    assert [len(b) for b in blocks] == [100, 70]
    assert reader.source == SourceFormat("wav", "pcm_s16le", 8_000, 2)


@pytest.mark.parametrize(
    "report",
    [
        block(np.zeros(10)),
        HEAD + struct.pack("<I", 2**31),
        HEAD + struct.pack("<I", 7) + bytes(7),
        HEAD + block(np.array([0.0, np.nan])),
        HEAD + block(np.zeros(16_000)) * 11,
        b'{"container": "<b>", "codec": "x", "sample_rate_hz": 8000, "channels": 2}\n',
        b'{"container": "wav"}\n',
        b"{not json\n",
        b"{" + b"x" * 5_000,
        HEAD + struct.pack("<I", 0) + b"[1]\n",
    ],
)
def test_a_child_that_breaks_the_protocol_is_not_listened_to(report: bytes) -> None:
    with pytest.raises(BadAudio, match="makes the decoder misbehave"):
        read(report, tail())


def test_words_of_the_child_never_reach_the_client() -> None:
    for code in ("codec", "broken", "failed", "start", "no_sound", "made up"):
        with pytest.raises(SpeakerdError) as refused:
            read(tail(code, codec="My Secret!", container="My Secret!", error="My Secret!", rate="My Secret!"))
        assert "Secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("report", "error", "says"),
    [
        (tail("unknown"), UnsupportedMedia, "send wav, flac, ogg, mp3, m4a or webm"),
        (tail("codec", codec="wmav2"), UnsupportedMedia, r"\(wmav2\)"),
        (tail("memory"), TooLarge, "1024 MiB of memory"),
        (tail("cpu"), BadAudio, "7 s of processor time"),
        (tail("too_long"), TooLarge, "longer than 10 s"),
        (tail("rate_changes", at_s=1.0), BadAudio, r"changes at 1\.0 s"),
        (tail("failed", error="KeyError"), SpeakerdError, r"the decoder failed \(KeyError\)"),
    ],
)
def test_every_refusal_is_put_into_words(report: bytes, error: type[SpeakerdError], says: str) -> None:
    with pytest.raises(error, match=says):
        read(report)


@pytest.mark.parametrize(
    ("returncode", "error", "says"),
    [
        (-signal.SIGXCPU, BadAudio, r"7 s of processor time and was stopped after 1\.0 s of sound"),
        (-signal.SIGKILL, Unavailable, "for want of memory"),
        (-signal.SIGSEGV, BadAudio, r"broke down after 1\.0 s of sound"),
        (1, SpeakerdError, r"without a report after 1\.0 s of sound \(status 1\)"),
    ],
)
def test_a_child_that_ends_without_a_last_line_is_an_error(
    returncode: int, error: type[SpeakerdError], says: str
) -> None:
    with pytest.raises(error, match=says):
        read(HEAD, block(np.zeros(16_000)), returncode=returncode)
