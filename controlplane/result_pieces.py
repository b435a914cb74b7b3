"""A long result in pieces that fit a message, as the contract has them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.job_view import FrameConfidences
from speakerd.v1 import node_pb2

TURNS_AT_ONCE = 10_000
"""Turns in one message, which stays below the 4 MiB that gRPC's clients take unless they ask for more."""
FRAMES_AT_ONCE = 262_144


def result_pieces(result: node_pb2.FileResult) -> list[node_pb2.FileResult]:
    """To be merged: all but turns is in the first."""
    first = node_pb2.FileResult()
    first.CopyFrom(result)
    del first.turns[TURNS_AT_ONCE:]
    del first.exclusive_turns[TURNS_AT_ONCE:]
    pieces = [first]
    for at in range(TURNS_AT_ONCE, max(len(result.turns), len(result.exclusive_turns)), TURNS_AT_ONCE):
        piece = slice(at, at + TURNS_AT_ONCE)
        pieces.append(node_pb2.FileResult(turns=result.turns[piece], exclusive_turns=result.exclusive_turns[piece]))
    return pieces


def confidence_pieces(confidence: FrameConfidences | None) -> Iterator[node_pb2.FileConfidence]:
    """How sure the result is, frame by frame."""
    if confidence is None:
        return
    for at in range(0, len(confidence.values), FRAMES_AT_ONCE):
        yield node_pb2.FileConfidence(
            start_ms=at * confidence.frame_ms,
            frame_ms=confidence.frame_ms,
            values=confidence.values[at : at + FRAMES_AT_ONCE],
        )
