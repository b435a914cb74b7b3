"""The pieces of a transcribing stream by themselves: bytes to samples, samples to stretches, words to speakers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack

import numpy as np
import pytest

from controlplane.transcribers import SpokenWord, Transcript
from edge.scaiecho.stretches import Stretches
from edge.scaiecho.transcript import Delta, Stretch, TurnDeltas, WordDeltas
from edge.scaigrid.sound import DECODERS, DECODERS_MAX, sound_type, whole_recording
from edge.scaigrid.sound import samples_of as decoded
from runtime.errors import BadAudio, InvalidRequest, Overloaded, UnsupportedMedia
from speakerd.v1 import common_pb2, node_pb2
from tests.controlplane.conftest import speech, wav


async def samples_of(
    media_type: str, data: bytes, size: int = 999, rate: int | None = None, tenant_id: str = "default"
) -> np.ndarray:
    async def frames() -> AsyncIterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    return np.concatenate([block async for block in decoded(sound_type(media_type, rate), frames(), tenant_id)])


@pytest.mark.parametrize("order", ["<i2", ">i2"])
@pytest.mark.parametrize("silence", [0, 8_000])
@pytest.mark.parametrize("loudness", [1.0, 0.003])
async def test_raw_sound_is_read_the_right_way_round_without_being_told(
    order: str, silence: int, loudness: float
) -> None:
    sound = np.concatenate([np.zeros(silence, np.float32), loudness * speech(1, 2.0)])
    found = await samples_of("audio/L16;rate=16000;channels=1", (sound * 32767).astype(order).tobytes())
    assert len(found) == len(sound) and np.abs(found - sound).max() < 1e-3
    clip = whole_recording(sound_type("audio/l16", 16_000), (sound * 32767).astype(order).tobytes())
    assert clip.data == (sound * 32767).astype("<i2").tobytes()


async def test_what_a_media_type_says_is_kept_to_and_what_is_not_read_is_refused() -> None:
    tone = (np.sin(np.arange(8_000) / 9) * 20_000).astype("<i2")
    stereo = np.repeat(tone, 2).tobytes()
    assert len(await samples_of("audio/L16; rate=8000; channels=2", stereo)) == 16_000
    assert len(await samples_of("audio/L16", tone.tobytes(), rate=8_000)) == 16_000
    assert len(await samples_of("audio/wav", wav(speech(1, 1.0)))) == 16_000
    assert len(await samples_of("audio/L16", b"\1\2" * 10)) == 10
    for wrong, error in (
        ("video/mp4", UnsupportedMedia), ("", UnsupportedMedia), ("audio/L16;rate=x", InvalidRequest),
        ("audio/L16;rate=1", InvalidRequest), ("audio/L16;channels=99", InvalidRequest),
        ("audio/L16;endianness=middle", InvalidRequest),
    ):  # fmt: skip
        with pytest.raises(error):
            sound_type(wrong, None)
    with pytest.raises(BadAudio):
        await samples_of("audio/L16", b"\1\2\3")


async def test_one_tenants_containers_leave_decoders_for_the_others() -> None:
    recording = wav(speech(1, 1.0))
    with ExitStack() as held:
        for _ in range(DECODERS_MAX - DECODERS_MAX // 4):
            held.enter_context(DECODERS.taken("busy"))
        with pytest.raises(Overloaded):
            await samples_of("audio/wav", recording, tenant_id="busy")
        assert len(await samples_of("audio/L16", b"\1\2" * 10, tenant_id="busy")) == 10
        assert len(await samples_of("audio/wav", recording, tenant_id="other")) == 16_000
    assert DECODERS.num_taken == 0


async def test_stretches_lose_nothing_and_are_cut_where_it_is_quiet() -> None:
    sound = np.concatenate([np.full(15_000, 0.5), np.zeros(2_000), np.full(30_000, 0.5)]).astype(np.float32)
    stretches = Stretches(1_200)
    found = []

    async def collect() -> None:
        found.extend([one async for one in stretches])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(collect())
        for at in range(0, len(sound), 700):
            await stretches.put(sound[at : at + 700])
        await stretches.end()
    assert np.array_equal(np.concatenate([samples for _, samples in found]), sound)
    assert all(len(samples) <= 1_200 * 16 for _, samples in found)
    assert 15_000 < len(found[0][1]) < 17_000, "in the pause"
    begins = np.cumsum([0, *(len(samples) for _, samples in found)])[:-1]
    assert [start for start, _ in found] == [int(at) * 1000 // 16_000 for at in begins]


def turns(final_ms: int, *spoken: tuple[int, int, str, str]) -> node_pb2.Turns:
    return node_pb2.Turns(
        final_ms=final_ms,
        turns=[
            common_pb2.Turn(
                start_ms=start_ms, end_ms=end_ms, speaker=speaker, label=name or speaker,
                voice_id=f"v_{name}" if name else "", probability=0.9 if name else 0.0,
                state=common_pb2.Turn.STATE_FINAL,
            )
            for start_ms, end_ms, speaker, name in spoken
        ],
    )  # fmt: skip


def told(deltas: Sequence[Delta]) -> list[tuple[int, int, str]]:
    return [(one.start_ms, one.end_ms, one.by.label or one.by.speaker if one.by else "") for one in deltas]


def test_turns_are_told_whole_once_and_under_the_name_that_was_found() -> None:
    deltas = TurnDeltas(3_000)
    assert deltas.take(turns(1_000, (0, 1_000, "spk_0", ""))) == []
    assert deltas.take(turns(2_000, (1_000, 2_000, "spk_0", "Ada"))) == []
    # It goes on to the moment that is final, so that it may go on from there; then it does not.
    assert deltas.take(node_pb2.Progress(final_ms=2_000)) == []
    assert told(deltas.take(node_pb2.Progress(final_ms=2_500))) == [(0, 2_000, "Ada")]
    # A long one is told in parts; one that ends being somebody else's is another.
    assert told(deltas.take(turns(6_000, (3_000, 6_000, "spk_1", "")))) == [(3_000, 6_000, "spk_1")]
    assert deltas.take(turns(7_000, (6_000, 7_000, "spk_1", "Bo"))) == []
    assert told(deltas.take(turns(8_000, (7_000, 8_000, "spk_1", "")))) == [(6_000, 7_000, "Bo")]
    assert told(deltas.take(node_pb2.StreamClosed())) == [(7_000, 8_000, "spk_1")]


def heard(start_ms: int, end_ms: int, *words: tuple[str, int, int]) -> Stretch:
    text = " ".join(word for word, _, _ in words)
    return Stretch(start_ms, end_ms, Transcript(f"{text}.", tuple(SpokenWord(*word) for word in words), 0.8))


def test_words_wait_for_the_turns_of_their_time_and_go_to_who_spoke_most_of_them() -> None:
    deltas = WordDeltas(has_speakers=True)
    assert deltas.take(turns(1_000, (0, 1_000, "spk_0", ""), (900, 1_000, "spk_1", ""))) == []
    stretch = heard(0, 2_000, ("hello", 0, 400), ("there", 500, 1_000), ("yes", 1_100, 1_500), ("hm", 1_800, 1_900))
    assert deltas.heard(stretch) == []
    assert deltas.take(node_pb2.Relabel(speaker="spk_0", label="Ada", voice_id="v_Ada", since_ms=0)) == []
    ready = deltas.take(turns(2_000, (1_000, 1_600, "spk_1", "")))
    assert told(ready) == [(0, 1_000, "Ada"), (1_100, 1_500, "spk_1"), (1_800, 1_900, "")]
    assert [one.text for one in ready] == ["hello there", "yes", "hm"]
    assert {one.confidence for one in ready} == {0.8}
    # Of one speaker alone, the text as it was written.
    assert deltas.heard(heard(2_000, 3_000, ("well", 100, 500))) == []
    (last,) = deltas.take(turns(3_100, (2_000, 3_100, "spk_1", "")))
    assert (last.text, last.start_ms, last.end_ms) == ("well.", 2_100, 2_500)
    # Where no more turns come, what waits is told without them.
    assert deltas.heard(heard(3_200, 4_000, ("end", 0, 500))) == []
    assert told(deltas.take(node_pb2.StreamClosed())) == [(3_200, 3_700, "")]
    assert told(WordDeltas(has_speakers=False).heard(heard(0, 1_000, ("alone", 0, 500)))) == [(0, 500, "")]
