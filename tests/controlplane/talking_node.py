"""A fake node that carries live streams: it names whom the test says, one turn for each 100 ms that it hears."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from speakerd.v1 import common_pb2, node_pb2
from tests.controlplane.fake_node import FakeNode

PIECE = b"\0" * 3_200
"""100 ms of 16-bit samples."""


class TalkingNode(FakeNode):
    """`names`: label and voice id of the speaker of each turn, in rotation; all it hears is spoken by them."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.names: list[tuple[str, str]] = []
        self.opened: list[node_pb2.StreamOpen] = []

    async def Diarize(
        self, requests: AsyncIterator[node_pb2.DiarizeRequest], context: Any
    ) -> AsyncIterator[node_pb2.DiarizeResponse]:
        first = await anext(requests)
        self.opened.append(first.open)
        stream_id = first.open.stream_id
        at_ms = int(first.open.checkpoint or b"0")
        sequence = 0
        yield _said(
            opened=node_pb2.StreamOpened(stream_id=stream_id, node_id=self.node_id, step_ms=100, resume_ms=at_ms)
        )
        async for message in requests:
            if message.HasField("finish"):
                speakers = [
                    common_pb2.Speaker(speaker=f"spk_{number}", label=label, voice_id=voice_id)
                    for number, (label, voice_id) in enumerate(self.names)
                ]
                yield _said(closed=node_pb2.StreamClosed(duration_ms=at_ms, speakers=speakers))
                return
            turns = []
            for _ in range(len(message.audio) // len(PIECE)):
                number = (at_ms // 100) % len(self.names)
                label, voice_id = self.names[number]
                sequence += 1
                turns.append(
                    common_pb2.Turn(
                        start_ms=at_ms, end_ms=at_ms + 100, speaker=f"spk_{number}", label=label, voice_id=voice_id,
                        probability=0.9, state=common_pb2.Turn.STATE_FINAL, sequence=sequence,
                    )
                )  # fmt: skip
                at_ms += 100
            yield _said(turns=node_pb2.Turns(turns=turns, final_ms=at_ms))
            yield _said(checkpoint=node_pb2.Checkpoint(data=str(at_ms).encode(), position_ms=at_ms))
            yield _said(progress=node_pb2.Progress(received_ms=at_ms, final_ms=at_ms))


def _said(**message: Any) -> node_pb2.DiarizeResponse:
    return node_pb2.DiarizeResponse(**message)
