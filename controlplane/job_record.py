"""What a job gave, as it is stored: no names, only which voices were meant; packed, for a day's turns are many.

In: a node's answers. Out: bytes, and the same again. What always holds: a label of an enrolled person is not in them,
so that an erasure needs to change no result.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from controlplane.job_view import FrameConfidences
from controlplane.relay_names import strip_result
from speakerd.v1 import node_pb2

UNPACKED_BYTES_MAX = 512 << 20


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A result without names. voiceprint: base64, of a job that makes one."""

    result: node_pb2.FileResult
    confidence: FrameConfidences | None = None
    voiceprint: str | None = None

    def __repr__(self) -> str:
        return f"JobRecord({len(self.result.turns)} turns)"


def without_names(result: node_pb2.FileResult, *, names: bool) -> None:
    """Take labels, tokens and embeddings out, in place. names: whether it may say which voice somebody is."""
    if not names:
        strip_result(result, lambda _: False)
    for turn in (*result.turns, *result.exclusive_turns):
        turn.ClearField("label")
    for speaker in result.speakers:
        for field in ("label", "token", "voiceprint"):
            speaker.ClearField(field)
    for identity in result.identities:
        if identity.HasField("match"):
            identity.match.ClearField("label")
        for candidate in identity.candidates:
            candidate.ClearField("label")


def pack(record: JobRecord) -> bytes:
    """Bytes of a record."""
    body = record.result.SerializeToString()
    confidence = record.confidence
    head = {
        "result_bytes": len(body),
        "frame_ms": None if confidence is None else confidence.frame_ms,
        "voiceprint": record.voiceprint,
    }
    values = b"" if confidence is None else confidence.values
    return zlib.compress(json.dumps(head).encode() + b"\n" + body + values, 1)


def unpack(packed: bytes) -> JobRecord:
    """The record again."""
    whole = zlib.decompressobj().decompress(packed, UNPACKED_BYTES_MAX)
    head_bytes, _, rest = whole.partition(b"\n")
    head = json.loads(head_bytes)
    size = head["result_bytes"]
    confidence = None if head["frame_ms"] is None else FrameConfidences(head["frame_ms"], rest[size:])
    return JobRecord(node_pb2.FileResult.FromString(rest[:size]), confidence, head["voiceprint"])
