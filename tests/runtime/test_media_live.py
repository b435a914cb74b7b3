"""Recordings that are still being made: decoded as their bytes come, and stopped when they misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import BadAudio, SpeakerdError, TimedOut, TooLarge, UnsupportedMedia
from runtime.media import LIVE, MediaLimits, adecode, adecode_live
from tests.runtime.test_media_confinement import children
from tests.runtime.test_media_formats import ENCODED, encoded, sound_file, speechlike, wav_with

KINDS = {**ENCODED, "wav": "WAV", "flac": "FLAC", "ogg": "OGG"}
WAV_DATA_BYTES = 40


def made(kind: str, folder: Path, seconds: float = 3.0) -> bytes:
    how = KINDS[kind]
    samples = speechlike(seconds)
    return sound_file(samples, kind=how) if isinstance(how, str) else encoded(samples, *how, folder)


async def pieces(data: bytes, size: int = 777) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def decoded(data: bytes, *, limits: MediaLimits = LIVE, size: int = 777) -> np.ndarray:
    async with aclosing(adecode_live(pieces(data, size), limits=limits)) as blocks:
        found = [block async for block in blocks]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_of_every_format_comes_out_as_its_file_does(kind: str, tmp_path: Path) -> None:
    data = made(kind, tmp_path)
    live, whole = await decoded(data), (await adecode(data)).samples
    # An mp3's padding at its end is told by a header that is only looked at where one can seek.
    assert abs(len(live) - len(whole)) <= (0 if kind != "mp3" else 2_000)
    shared = min(len(live), len(whole))
    assert np.array_equal(live[:shared], whole[:shared])


@pytest.mark.parametrize("kind", ["opus", "webm, live", "mp3", "aac", "flac", "wav", "m4a, fragments"])
async def test_samples_come_out_while_bytes_still_come(kind: str, tmp_path: Path) -> None:
    """The rest is sent only once something of the beginning has been decoded."""
    data = made(kind, tmp_path, 12)
    heard = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        # A wav is looked at for 64 KiB before it is believed to hold samples; no other takes so much.
        first = 70_000 if kind == "wav" else len(data) // 2
        yield data[:first]
        async with asyncio.timeout(60):
            await heard.wait()
        yield data[first:]

    count = 0
    async with aclosing(adecode_live(chunks())) as blocks:
        async for block in blocks:
            heard.set()
            count += len(block)
    assert abs(count - 12 * 16_000) < 3_000


async def test_a_wav_that_declares_more_than_comes_gives_what_came_and_then_says_so() -> None:
    count = 0
    with pytest.raises(BadAudio, match=r"only 1\.5 s of the 3\.0 s"):
        async with aclosing(adecode_live(pieces(sound_file(speechlike())[: 44 + 48_000]))) as blocks:
            async for block in blocks:
                count += len(block)
    assert count == 24_000


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
async def test_a_wav_header_of_a_stream_that_has_no_length_yet_is_taken(length: int) -> None:
    assert len(await decoded(wav_with(WAV_DATA_BYTES, "<I", length))) == 48_000


async def test_an_encoder_that_is_stopped_in_mid_page_costs_what_was_on_that_page_alone(tmp_path: Path) -> None:
    data = made("opus", tmp_path, 12)
    whole = (await adecode(data)).samples
    got = await decoded(data[: len(data) - 3_000])
    assert 9 * 16_000 < len(got) < len(whole)
    sure = len(got) - 1_600  # where a stream ends, its resampler hears silence
    assert np.array_equal(got[:sure], whole[:sure])


@pytest.mark.parametrize("junk", [b"this is not audio\n" * 5_000, b"\0" * 100_000, b"RIFF", b"\x1aE\xdf\xa3" * 10_000])
async def test_what_is_no_sound_is_refused_with_words_that_help(junk: bytes) -> None:
    with pytest.raises((UnsupportedMedia, BadAudio), match="send"):
        await decoded(junk)


async def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(BadAudio, match="empty"):
        await decoded(b"")


async def test_a_stream_over_its_bounds_is_ended_where_it_passes_them() -> None:
    with pytest.raises(TooLarge, match="longer than 2 s"):
        await decoded(sound_file(speechlike(6)), limits=MediaLimits(seconds_max=2.0))
    with pytest.raises(TooLarge, match="MiB"):
        await decoded(sound_file(speechlike(6)), limits=MediaLimits(bytes_max=10_000))


async def test_samples_that_are_no_numbers_are_refused_where_they_come() -> None:
    samples = speechlike(6)
    samples[50_000] = np.nan
    with pytest.raises(BadAudio, match="NaN"):
        await decoded(sound_file(samples, subtype="FLOAT"))


async def test_what_ends_the_sender_ends_the_decoder_too() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield sound_file(speechlike())[:1_000]
        raise TimedOut("no audio for 30 s")

    with pytest.raises(TimedOut):
        async with aclosing(adecode_live(chunks())) as blocks:
            async for _ in blocks:
                pass
    assert not children()


async def test_a_decoder_that_takes_nothing_and_gives_nothing_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import runtime.media.live

    monkeypatch.setattr(
        runtime.media.live, "command", lambda *_: [sys.executable, "-I", "-c", "import time; time.sleep(600)"]
    )
    with pytest.raises(BadAudio, match="was stopped"):
        await decoded(b"\0" * (4 << 20), limits=MediaLimits(wait_s_max=0.5), size=1 << 20)


@pytest.mark.deep
async def test_a_slow_consumer_is_no_fault_of_the_decoder(tmp_path: Path) -> None:
    data = made("aac", tmp_path, 60)
    count = 0
    async with aclosing(adecode_live(pieces(data * 4, 1 << 20), limits=MediaLimits(wait_s_max=10.0))) as blocks:
        async for block in blocks:
            if not count:
                await asyncio.sleep(21)  # the bound passes twice
            count += len(block)
    assert count > 200 * 16_000


async def test_a_cancelled_stream_leaves_no_child() -> None:
    started = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield sound_file(speechlike(6))
        started.set()
        await asyncio.sleep(600)

    async def run() -> None:
        async with aclosing(adecode_live(chunks())) as blocks:
            async for _ in blocks:
                pass

    task = asyncio.create_task(run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children()


async def test_a_stream_that_uses_up_more_processor_time_than_its_sound_is_worth_is_stopped() -> None:
    """By the kernel, whatever it hangs in: here before its first byte."""
    import sys

    import runtime.media.live
    from runtime.media.decoding import command

    spin = "import runtime.media_child.decode as d; d._allow_cpu_s(0.0)\nwhile True: pass"
    words = command(LIVE, "live")
    words[words.index("-c") + 1] = f"import sys; sys.path.append(sys.argv[5]); {spin}"
    words[0] = sys.executable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime.media.live, "command", lambda *_: words)
        with pytest.raises(SpeakerdError, match="processor time"):
            await decoded(b"\0" * 1_000)
