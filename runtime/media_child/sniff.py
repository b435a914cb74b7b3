"""Tells from the bytes alone which demuxer to force, and what the file says about its own length.

In: a reader of bytes at an offset, and the file's size. Out: a Sniffed, or a Refused. The first bytes decide, never a
name: a playlist called .wav is no wav. Declared lengths are only ever compared with what was decoded, never trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

ReadAt = Callable[[int, int], bytes]

# A file may be short of what it declares by this much: encoders count their own delay and padding differently. What
# is stored sample by sample has neither; there a twentieth of the file is the most that is let pass, for writers that
# count their header among the sound.
SHORTFALL_S = 0.25
SHORTFALL_SHARE = 0.05
MIN_RATE_HZ = 4_000
MAX_RATE_HZ = 192_000
MAX_CHANNELS = 8
# Tags before the sound (covers, mostly) are skipped; a chain of them longer than this is no recording.
ID3_TAGS_MAX = 8
RIFF_CHUNKS_MAX = 1_000
# A writer that cannot seek back leaves a placeholder for the length: 0, or something near 2 or 4 GiB. No file in our
# limits is that long, so that from here on a length is read as "not known".
RIFF_PLACEHOLDER_BYTES = 0x7FFF0000
# How far into a file without tags the first mp3 frame may lie.
MP3_SEARCH_BYTES = 65_536
# Room for three frames.
MP3_FRAMES_BYTES = 8_192
OGG_PAGE_BYTES_MAX = 65_307
OGG_HEADER_BYTES = 27
OGG_END_OF_STREAM = 4
# Segment and Cluster, which live writers leave without a size.
EBML_UNSIZED = {b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"}

MP3_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
MP3_KBPS = {
    (True, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Refused(Exception):
    """The file is not taken. `code` and `numbers` go to the parent, which has the words."""

    def __init__(self, code: str, **numbers: float | str) -> None:
        super().__init__(code)
        self.code = code
        self.numbers = numbers


@dataclass(frozen=True, slots=True)
class Sniffed:
    """A format that we read.

    `demuxer` is libavformat's name. `declared_s` is the length that the header states, None where it states none or
    where only the demuxer can tell. `ends_early` is True when the file's end is seen to be missing.
    """

    demuxer: str
    declared_s: float | None = None
    ends_early: bool = False


def sniff(read_at: ReadAt, size: int | None) -> Sniffed:
    """The format of the file. Raises Refused: `unknown`, `rate`, `channels` or `broken`.

    size: None where the file is still being made, so that there is no end to look at.
    """
    start = _after_tags(read_at)
    head = read_at(start, 16)
    if head[:4] in {b"RIFF", b"RF64", b"BW64"} and head[8:12] == b"WAVE":
        return _wav(read_at, start, size)
    if head[:4] == b"fLaC":
        return _flac(read_at, start)
    if head[:4] == b"OggS":
        return Sniffed("ogg", ends_early=size is not None and not _ogg_has_its_end(read_at, size))
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return Sniffed("mov", ends_early=size is not None and _mov_ends_early(read_at, start, size))
    if head[:4] == b"\x1aE\xdf\xa3":
        return Sniffed("matroska", ends_early=size is not None and _matroska_ends_early(read_at, start, size))
    if head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"}:
        return Sniffed("aiff")
    if head[:4] == b".snd":
        return Sniffed("au")
    if head[:5] == b"#!AMR":
        return Sniffed("amr")
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and (head[2] >> 2) & 15 < 13:
        return Sniffed("aac")
    return _mp3(read_at, start)


def refuse_strange(rate: int, channels: int) -> None:
    """Raises Refused for a sample rate or a number of channels that no recording has."""
    if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise Refused("rate", rate=rate)
    if not 1 <= channels <= MAX_CHANNELS:
        raise Refused("channels", channels=channels)


def shortfall_s(declared_s: float, *, exact: bool) -> float:
    """How much of its declared length a file may lack before it counts as cut short."""
    return min(SHORTFALL_S, SHORTFALL_SHARE * declared_s) if exact else SHORTFALL_S


def mp3_packet_is_whole(packet: bytes) -> bool:
    """Whether a packet of an mp3 file is as long as its header says."""
    frame = _mp3_frame(packet[:4])
    return frame is None or len(packet) >= frame[0]


def _after_tags(read_at: ReadAt) -> int:
    start = 0
    for _ in range(ID3_TAGS_MAX):
        head = read_at(start, 10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        length = 0
        for byte in head[6:10]:
            length = length << 7 | byte & 0x7F
        start += 10 + length + (10 if head[5] & 0x10 else 0)
    return start


def _wav(read_at: ReadAt, start: int, size: int | None) -> Sniffed:
    position, bytes_a_second, long_data = start + 12, 0, 0
    for _ in range(RIFF_CHUNKS_MAX):
        head = read_at(position, 8)
        if len(head) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        body = position + 8
        if name == b"fmt ":
            fields = read_at(body, 16)
            if len(fields) < 16:
                break
            _, channels, rate, bytes_a_second, block, _ = struct.unpack("<HHIIHH", fields)
            refuse_strange(rate, channels)
            bytes_a_second = bytes_a_second or rate * block
        elif name == b"ds64":
            long_data = int.from_bytes(read_at(body + 8, 8), "little")
        elif name == b"data":
            if not bytes_a_second:
                raise Refused("broken", container="wav")
            length = long_data if length == 0xFFFFFFFF and long_data else length
            known = 0 < length < RIFF_PLACEHOLDER_BYTES or (long_data and length == long_data)
            if not known:
                return Sniffed("wav")
            declared_s = length / bytes_a_second
            missing_s = 0.0 if size is None else (body + length - size) / bytes_a_second
            return Sniffed("wav", declared_s, missing_s > shortfall_s(declared_s, exact=True))
        position = body + length + (length & 1)
    raise Refused("broken", container="wav")


def _flac(read_at: ReadAt, start: int) -> Sniffed:
    info = read_at(start + 8, 34)
    if len(info) < 34:
        raise Refused("broken", container="flac")
    packed = int.from_bytes(info[10:18], "big")
    rate, channels, samples = packed >> 44, ((packed >> 41) & 7) + 1, packed & ((1 << 36) - 1)
    refuse_strange(rate, channels)
    return Sniffed("flac", samples / rate if samples else None)


def _ogg_has_its_end(read_at: ReadAt, size: int) -> bool:
    """Whether the last page is whole and says that a stream ends with it."""
    start = max(0, size - 2 * OGG_PAGE_BYTES_MAX)
    tail = read_at(start, size - start)
    last = tail.rfind(b"OggS")
    if last < 0 or last + OGG_HEADER_BYTES > len(tail):
        return False
    segments = tail[last + 26]
    lacing = tail[last + OGG_HEADER_BYTES : last + OGG_HEADER_BYTES + segments]
    whole = len(lacing) == segments and last + OGG_HEADER_BYTES + segments + sum(lacing) <= len(tail)
    return whole and bool(tail[last + 5] & OGG_END_OF_STREAM)


def _mov_ends_early(read_at: ReadAt, start: int, size: int) -> bool:
    """Whether a box reaches past the file's end; fragments cut off would go unseen otherwise."""
    position = start
    while position < size:
        head = read_at(position, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 0:  # to the end of the file
            return False
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        position += max(length, 8)
    return position > size


def _matroska_ends_early(read_at: ReadAt, start: int, size: int) -> bool:
    """Whether an element reaches past the file's end. Only elements without a size of their own are gone into."""
    position = start
    while position < size:
        head = read_at(position, 12)
        id_bytes = _vint_bytes(head)
        size_bytes = _vint_bytes(head[id_bytes:])
        if not id_bytes or not size_bytes or len(head) < id_bytes + size_bytes:
            return True
        field = head[id_bytes : id_bytes + size_bytes]
        length = int.from_bytes(field, "big") & (1 << 7 * size_bytes) - 1
        unsized = length == (1 << 7 * size_bytes) - 1
        position += id_bytes + size_bytes
        if unsized and head[:id_bytes] in EBML_UNSIZED:
            continue
        position += length
    return position > size


def _vint_bytes(data: bytes) -> int:
    """Length of an EBML number from its first byte; 0 where there is none."""
    return 9 - data[0].bit_length() if data and data[0] else 0


def _mp3(read_at: ReadAt, start: int) -> Sniffed:
    # Mostly the first frame comes at once; a stream need not wait for all that may have to be searched.
    for length in (MP3_FRAMES_BYTES, MP3_SEARCH_BYTES + MP3_FRAMES_BYTES):
        data = read_at(start, length)
        ends = len(data) < length or length > MP3_FRAMES_BYTES
        at = data.find(b"\xff")
        while 0 <= at < MP3_SEARCH_BYTES:
            frame = _mp3_frame(data[at : at + 4])
            if frame and _mp3_chain(data, at + frame[0], ends=ends):
                _, samples, rate = frame
                return Sniffed("mp3", _mp3_declared(data[at : at + frame[0]], samples, rate))
            at = data.find(b"\xff", at + 1)
    raise Refused("unknown")


def _mp3_chain(data: bytes, at: int, *, ends: bool) -> bool:
    """Whether two more frames follow where the first says they do, or, if the data `ends`, it does so there."""
    for _ in range(2):
        if at >= len(data):
            return ends
        frame = _mp3_frame(data[at : at + 4])
        if frame is None:
            return False
        at += frame[0]
    return True


def _mp3_frame(header: bytes) -> tuple[int, int, int] | None:
    """Bytes, samples and rate of an MPEG audio frame, or None."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = (header[1] >> 3) & 3, (header[1] >> 1) & 3
    kbps_index, rate_index, padding = header[2] >> 4, (header[2] >> 2) & 3, (header[2] >> 1) & 1
    if version == 1 or layer == 0 or rate_index == 3 or not 0 < kbps_index < 15:
        return None
    rate = MP3_RATES_HZ[version][rate_index]
    bits_a_second = 1_000 * MP3_KBPS[version == 3, layer][kbps_index - 1]
    if layer == 3:
        return (12 * bits_a_second // rate + padding) * 4, 384, rate
    samples = 576 if layer == 1 and version != 3 else 1_152
    return samples // 8 * bits_a_second // rate + padding, samples, rate


def _mp3_declared(frame: bytes, samples: int, rate: int) -> float | None:
    """The length that a Xing, Info or VBRI header in the first frame states."""
    for tag in (b"Xing", b"Info"):
        at = frame.find(tag, 4, 64)
        if at > 0 and len(frame) >= at + 12 and frame[at + 7] & 1:
            return int.from_bytes(frame[at + 8 : at + 12], "big") * samples / rate
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return int.from_bytes(frame[50:54], "big") * samples / rate
    return None
