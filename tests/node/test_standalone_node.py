"""A real node process with the null engine, driven by a real client."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.node.conftest import ADA, BOB, CHUNK_BYTES, ROOT, Heard, RunningNode, pcm, requests, running_node, tones

from runtime.grpc_server import ERROR_TRAILER, open_channel
from speakerd.v1 import common_pb2, node_pb2


async def test_an_enrolled_voice_is_named_and_after_eviction_is_a_stranger(null_node: RunningNode) -> None:
    await null_node.enroll("ada", "Ada Lovelace", tones(4, *ADA))
    talk = np.concatenate([tones(4, *ADA), np.zeros(8000, np.float32), tones(4, *BOB)])

    known = await null_node.diarize(talk)

    assert known.opened is not None and known.opened.num_voices == 1
    assert "Ada Lovelace" in known.names and "ada" in known.names
    assert known.closed is not None
    assert [(s.speaker, s.label) for s in known.closed.speakers] == [("spk_0", "Ada Lovelace"), ("spk_1", "spk_1")]
    assert known.closed.duration_ms == 8500
    assert abs(known.speech_s("spk_0") - 4) < 0.6 and abs(known.speech_s("spk_1") - 4) < 0.6
    assert [turn.sequence for turn in known.turns] == list(range(1, len(known.turns) + 1))

    evicted = await null_node.stub.Evict(node_pb2.EvictRequest(voice=common_pb2.VoiceRef(voice_id="ada")))
    assert evicted.was_held
    unknown = await null_node.diarize(talk)

    assert unknown.names == {"spk_0", "spk_1"}
    assert unknown.relabels == []
