"""What comes out of `runtime.media.decode` for good files and for bad ones."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from runtime.errors import BadAudio, InvalidRequest, SpeakerdError, TooLarge, UnsupportedMedia
from runtime.media import MediaLimits, decode

WAV_CHANNELS, WAV_RATE, WAV_DATA_BYTES = 22, 24, 40


def speechlike(seconds: float = 3.0, rate: int = 16_000) -> np.ndarray:
    rng = np.random.default_rng(5)
    t = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 9))
    return (0.2 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) + 0.001 * rng.standard_normal(len(t))).astype("f4")


def sound_file(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def encoded(samples: np.ndarray, container: str, codec: str, options: dict[str, str], folder: Path) -> bytes:
    """Through a file, because muxers that put their index first read what they wrote."""
    path = folder / f"made.{container}"
    with av.open(path, "w", format=container, options=options) as muxer:
        stream = muxer.add_stream(codec, rate=16_000, layout="mono")
        whole = av.AudioFrame.from_ndarray((samples * 32767).astype("i2").reshape(1, -1), format="s16", layout="mono")
        whole.sample_rate = 16_000
        context = stream.codec_context
        context.open()
        fit = av.AudioResampler(context.format, "mono", 16_000, frame_size=context.frame_size or 1024)
        for frame in [*fit.resample(whole), *fit.resample(None), None]:
            for packet in stream.encode(frame):
                muxer.mux(packet)
    return path.read_bytes()


def wav_with(offset: int, layout: str, value: int) -> bytes:
    data = bytearray(sound_file(speechlike()))
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


ENCODED = {
    "m4a, index last": ("mp4", "aac", {}),
    "m4a, index first": ("mp4", "aac", {"movflags": "faststart"}),
    "m4a, fragments": ("mp4", "aac", {"movflags": "frag_every_frame+empty_moov"}),
    "webm": ("webm", "libopus", {}),
    "webm, live": ("webm", "libopus", {"live": "1"}),
    "opus": ("ogg", "libopus", {}),
    "mp3": ("mp3", "libmp3lame", {}),
    "mp3 without a length": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "aac": ("adts", "aac", {}),
    "aiff": ("aiff", "pcm_s16be", {}),
    "au": ("au", "pcm_s16be", {}),
}
WRITTEN = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG"}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    folder = tmp_path_factory.mktemp("made")

    def one(kind: str) -> bytes:
        if kind in WRITTEN:
            return sound_file(speechlike(), kind=WRITTEN[kind])
        return encoded(speechlike(), *ENCODED[kind], folder)

    return one


@pytest.mark.parametrize("kind", [*WRITTEN, *ENCODED])
def test_a_file_of_every_common_format_is_decoded_whole(make: Callable[[str], bytes], kind: str) -> None:
    audio = decode(make(kind))
    assert abs(audio.duration_s - 3.0) < 0.15
    assert audio.samples.dtype == np.float32
    # An encoder delays and colours the sound, but keeps its level.
    assert np.sqrt(np.mean(audio.samples**2)) == pytest.approx(np.sqrt(np.mean(speechlike() ** 2)), rel=0.15)


@pytest.mark.parametrize("kind", [*WRITTEN, *ENCODED])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_file_cut_short_is_noticed_in_every_format(make: Callable[[str], bytes], kind: str, share: float) -> None:
    data = make(kind)
    with pytest.raises(BadAudio, match="cut short"):
        decode(data[: int(share * len(data))])


def test_the_error_for_a_file_cut_short_says_how_much_of_how_much() -> None:
    with pytest.raises(BadAudio, match=r"only 1\.5 s of the 3\.0 s that it declares could be decoded; send the whole"):
        decode(sound_file(speechlike())[: 44 + 48_000])


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_damage_in_the_middle_is_noticed(make: Callable[[str], bytes], kind: str) -> None:
    data = bytearray(make(kind))
    middle, length = len(data) // 2, len(data) // 4
    data[middle : middle + length] = np.random.default_rng(1).bytes(length)
    with pytest.raises(BadAudio, match="damaged"):
        decode(bytes(data))


def test_sixteen_bit_wav_and_flac_at_16_khz_come_out_bit_for_bit(audio: Path) -> None:
    recording = min((audio / "librispeech" / "members").glob("*/*"))
    expected, rate = soundfile.read(recording, dtype="float32")
    assert rate == 16_000
    assert np.array_equal(decode(recording).samples, expected)
    assert np.array_equal(decode(sound_file(expected, subtype="PCM_16")).samples, expected)
    assert np.array_equal(decode(sound_file(expected, subtype="FLOAT")).samples, expected)


def test_real_ogg_comes_out_as_libsndfile_reads_it(audio: Path) -> None:
    recording = min((audio / "librispeech" / "training").glob("*/*.ogg"))
    expected, _ = soundfile.read(recording, dtype="float32")
    samples = decode(recording).samples
    assert len(samples) == len(expected)
    assert np.max(np.abs(samples - expected)) < 1e-3


def test_eight_bits_and_96_khz_of_six_channels_are_decoded() -> None:
    eight = decode(sound_file(speechlike(), subtype="PCM_U8"))
    assert np.max(np.abs(eight.samples - speechlike())) < 0.01

    one = speechlike(1.0, rate=96_000).astype("f8")
    six = decode(sound_file(np.outer(one, [1.0, 0.5, 0.0, -0.25, 1.0, 0.75]), 96_000, subtype="PCM_24"))
    alone = decode(sound_file(one * 0.5, 96_000, subtype="PCM_24"))
    assert (six.source.channels, six.source.sample_rate_hz, len(six.samples)) == (6, 96_000, 16_000)
    # Every channel counts the same, whatever loudspeaker it is meant for.
    assert np.max(np.abs(six.samples - alone.samples)) < 1e-5


def test_silence_is_decoded() -> None:
    assert not decode(sound_file(np.zeros(16_000))).samples.any()


@pytest.mark.parametrize("placeholder", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_a_wav_whose_writer_could_not_know_its_length_is_decoded(placeholder: int) -> None:
    assert decode(wav_with(WAV_DATA_BYTES, "<I", placeholder)).duration_s == 3.0


def test_a_length_that_the_header_only_claims_is_not_believed() -> None:
    with pytest.raises(BadAudio, match=r"only 3\.0 s of the 58720\.3 s"):
        decode(wav_with(WAV_DATA_BYTES, "<I", 0x70000000))


BAD: dict[str, tuple[bytes, type[SpeakerdError], str]] = {
    "empty": (b"", BadAudio, "the audio is empty"),
    "text": (b"Good morning, everybody.\n" * 99, UnsupportedMedia, "not an audio file that we read: send wav, flac"),
    "one byte": (b"R", UnsupportedMedia, "not an audio file"),
    "zeros": (bytes(100_000), UnsupportedMedia, "not an audio file"),
    "sync bytes": (b"\xff" * 100_000, UnsupportedMedia, "not an audio file"),
    "noise": (np.random.default_rng(2).bytes(200_000), UnsupportedMedia, "not an audio file"),
    "a header alone": (sound_file(speechlike())[:30], BadAudio, "begins as wav but cannot be read, cut short"),
    "no samples": (sound_file(np.zeros(0)), BadAudio, "holds no sound"),
    "0 Hz": (wav_with(WAV_RATE, "<I", 0), BadAudio, "the header says 0 Hz"),
    "4 GHz": (wav_with(WAV_RATE, "<I", 0xFFFFFFFF), BadAudio, "the header says 4294967295 Hz"),
    "0 channels": (wav_with(WAV_CHANNELS, "<H", 0), BadAudio, "the header says 0 channels"),
    "9 channels": (sound_file(np.zeros((16_000, 9))), BadAudio, "the header says 9 channels"),
    "3999 Hz": (sound_file(speechlike(), 3_999), BadAudio, "the header says 3999 Hz"),
    "integers as floats": (sound_file(speechlike() * 30_000, subtype="FLOAT"), BadAudio, r"far outside \[-1, 1\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_what_mends_it(name: str) -> None:
    data, error, says = BAD[name]
    with pytest.raises(error, match=says):
        decode(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_that_are_no_numbers_are_refused_with_their_place(value: float, subtype: str) -> None:
    samples = speechlike().astype("f8")
    samples[40_000] = value
    with pytest.raises(BadAudio, match=r"at 2\.500 s is NaN or infinite"):
        decode(sound_file(samples, subtype=subtype))


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile '{secret}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "RIFF\x10\x01\x01\x01WAVEffconcat version 1.0\nfile '{secret}'\n",
    ],
)
def test_a_playlist_called_wav_opens_nothing(tmp_path: Path, playlist: str) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(sound_file(speechlike()))
    recording = tmp_path / "recording.wav"
    recording.write_text(playlist.format(secret=secret))
    for source in (recording, recording.read_bytes()):
        with pytest.raises((UnsupportedMedia, BadAudio)) as refused:
            decode(source)
        assert "secret" not in str(refused.value)


def test_a_path_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        decode(tmp_path / "pipe.wav")
    with pytest.raises(InvalidRequest, match="cannot be opened: No such file"):
        decode(tmp_path / "absent.wav")


def test_tags_before_and_after_the_sound_do_no_harm(make: Callable[[str], bytes]) -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x07\x00" + bytes(7 * 128)
    for data in (tag + make("mp3"), make("mp3 without a length") + b"TAG" + b"x" * 125, tag + make("flac")):
        assert abs(decode(data).duration_s - 3.0) < 0.15


def test_more_bytes_than_are_taken_are_refused_before_decoding() -> None:
    with pytest.raises(TooLarge, match=r"too large \(0\.1 MiB\): at most 0\.0625 MiB"):
        decode(sound_file(speechlike()), limits=MediaLimits(bytes_max=65_536))


@pytest.mark.parametrize("kind", ["wav", "flac", "aac", "m4a, index first", "webm"])
def test_whatever_damage_does_is_blamed_on_the_file_and_not_on_us(make: Callable[[str], bytes], kind: str) -> None:
    rng = np.random.default_rng(3)
    whole = make(kind)
    for _ in range(3):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 12):
            data[place] = rng.integers(0, 256)
        try:
            assert np.isfinite(decode(bytes(data)).samples).all()
        except (BadAudio, UnsupportedMedia, TooLarge):
            continue
