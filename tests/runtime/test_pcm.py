from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import BadAudio, InvalidRequest
from runtime.pcm import PcmDecoder, PcmEncoding, said_rate_and_channels
from speakerd.v1 import common_pb2

RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 44_101, 48_000, 96_000]


def decoded(decoder: PcmDecoder, *chunks: bytes) -> np.ndarray:
    return np.concatenate([decoder.feed(chunk) for chunk in chunks] + [decoder.flush()])


def tone(rate: int, seconds: float, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


def s16(samples: np.ndarray) -> bytes:
    return np.round(samples * 32767).astype("<i2").tobytes()


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(list(PcmEncoding)),
    rate=st.one_of(st.sampled_from(RATES), st.integers(8_000, 96_000)),
    channels=st.integers(1, 8),
    frames=st.integers(0, 4_000),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    seed=st.integers(0, 2**16),
)
def test_the_output_does_not_depend_on_how_the_input_is_cut(encoding, rate, channels, frames, cuts, seed) -> None:
    rng = np.random.default_rng(seed)
    if encoding is PcmEncoding.F32LE:
        data = rng.uniform(-1, 1, frames * channels).astype("<f4").tobytes()
    else:
        data = rng.bytes(frames * PcmDecoder(encoding, rate, channels).frame_bytes)
    edges = sorted({0, len(data), *(int(cut * len(data)) for cut in cuts)})
    whole, cut = PcmDecoder(encoding, rate, channels), PcmDecoder(encoding, rate, channels)

    at_once = decoded(whole, data)
    in_pieces = decoded(cut, *(data[a:b] for a, b in pairwise(edges)))

    assert np.array_equal(at_once, in_pieces)
    assert whole.samples_out == cut.samples_out == len(at_once) == round(frames * 16_000 / rate)
    assert whole.frames_in == frames


@pytest.mark.parametrize(("encoding", "subtype"), [("MULAW", "ULAW"), ("ALAW", "ALAW"), ("S16LE", "PCM_16")])
def test_every_code_means_what_libsndfile_says_it_means(encoding: str, subtype: str) -> None:
    data = bytes(range(256)) if encoding != "S16LE" else np.arange(-32768, 32768, dtype="<i2").tobytes()
    expected, _ = soundfile.read(
        io.BytesIO(data), samplerate=16_000, channels=1, format="RAW", subtype=subtype, dtype="float32"
    )
    assert np.array_equal(decoded(PcmDecoder(PcmEncoding[encoding]), data), expected)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_place_and_level_at_every_rate(rate: int) -> None:
    out = decoded(PcmDecoder(PcmEncoding.F32LE, rate), tone(rate, 0.5).astype("<f4").tobytes())
    inner = slice(400, -400)
    assert np.max(np.abs(out - tone(16_000, 0.5)[: len(out)])[inner]) < 1e-3


def test_what_lies_above_eight_kilohertz_does_not_fold_back() -> None:
    out = decoded(PcmDecoder(PcmEncoding.F32LE, 48_000), tone(48_000, 0.5, hz=11_000).astype("<f4").tobytes())
    assert np.max(np.abs(out[400:-400])) < 1e-4


def test_channels_are_averaged() -> None:
    frames = np.array([[0.5, -0.25, 0.0, 0.75], [1.0, 1.0, 1.0, 1.0]], dtype="<f4")
    assert decoded(PcmDecoder(PcmEncoding.F32LE, 16_000, 4), frames.tobytes()).tolist() == [0.25, 1.0]


def test_bytes_that_end_inside_a_sample_are_refused_with_the_size_of_a_whole_one() -> None:
    decoder = PcmDecoder(PcmEncoding.S16LE, 16_000, 2)
    decoder.feed(bytes(11))
    with pytest.raises(BadAudio, match=r"2 channel\(s\) of PCM_S16LE take 4 bytes a sample, and 3 are left over"):
        decoder.flush()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused_with_their_place(value: float) -> None:
    samples = np.zeros(32_000, dtype="<f4")
    samples[24_000] = value
    decoder = PcmDecoder(PcmEncoding.F32LE, 16_000, 2)
    decoder.feed(samples[:8_000].tobytes())
    with pytest.raises(BadAudio, match=r"at 0\.750 s is NaN or infinite"):
        decoder.feed(samples[8_000:].tobytes())


def test_integers_sent_as_floats_are_refused() -> None:
    with pytest.raises(BadAudio, match="floats in \\[-1, 1\\]"):
        PcmDecoder(PcmEncoding.F32LE).feed(np.array([0, 1200], dtype="<f4").tobytes())


@pytest.mark.parametrize(
    ("rate", "channels", "says"),
    [
        (0, 1, "sample_rate_hz is 0"),
        (7_999, 1, "7999"),
        (96_001, 1, "96001"),
        (16_000, 0, "channels is 0"),
        (16_000, 9, "is 9"),
    ],
)
def test_what_is_out_of_range_is_refused(rate: int, channels: int, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        PcmDecoder(PcmEncoding.S16LE, rate, channels)


def test_the_wire_means_defaults_by_zero_and_the_same_encodings_by_the_same_numbers() -> None:
    default = PcmDecoder.from_wire(common_pb2.ENCODING_UNSPECIFIED, 0, 0)
    assert (default.encoding, default.sample_rate_hz, default.channels) == (PcmEncoding.S16LE, 16_000, 1)
    for encoding in PcmEncoding:
        assert common_pb2.Encoding.Name(encoding.value) == f"ENCODING_PCM_{encoding.name}"
    with pytest.raises(InvalidRequest, match="not raw samples"):
        PcmDecoder.from_wire(common_pb2.ENCODING_CONTAINER, 0, 0)


def test_a_stream_without_a_sample_ends_well() -> None:
    assert len(decoded(PcmDecoder(PcmEncoding.S16LE, 44_100))) == 0


@pytest.mark.parametrize("field", ["sample_rate_hz", "channels"])
def test_a_rate_or_channel_count_of_zero_is_told_from_one_that_is_absent(field: str) -> None:
    assert said_rate_and_channels(common_pb2.AudioFormat()) == (0, 0)
    with pytest.raises(InvalidRequest, match=f"{field} is 0"):
        said_rate_and_channels(common_pb2.AudioFormat(**{field: 0}))
    # A container says it itself.
    container = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_CONTAINER, **{field: 0})
    assert said_rate_and_channels(container) == (0, 0)
