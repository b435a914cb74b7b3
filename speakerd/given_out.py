"""What a stream's caller was told, so that a stream that went on elsewhere tells nothing twice and leaves nothing out.

In: a node's events, and word of each resumption. Out: what to pass on. What always holds: final turns never overlap
what was final before the resumption, and their sequence grows by one; progress never goes back; after each resumption
the caller's idea of whether names are given is that of the new node.
"""

from __future__ import annotations

from collections.abc import Iterable

from speakerd.v1 import common_pb2, node_pb2

NodeEvent = (
    node_pb2.Turns
    | node_pb2.Relabel
    | node_pb2.Progress
    | node_pb2.Checkpoint
    | node_pb2.Draining
    | node_pb2.Degraded
    | node_pb2.StreamClosed
)


class GivenOut:
    """The record of one stream."""

    def __init__(self) -> None:
        self._floor_ms = 0  # what lies before it was final before the last resumption
        self._received_ms = 0
        self._sequence = 0
        self._labels: dict[str, tuple[str, str, int]] = {}
        self._degraded = False
        self.final_ms = 0

    def __repr__(self) -> str:
        return f"GivenOut({self._sequence} turns, final up to {self.final_ms} ms)"

    def resumed(self) -> list[NodeEvent]:
        """The stream goes on from a checkpoint; what has to be told because of that."""
        self._floor_ms = self.final_ms
        was_degraded, self._degraded = self._degraded, False
        return [node_pb2.Degraded(active=False)] if was_degraded else []

    def pass_on(self, event: NodeEvent) -> NodeEvent | None:
        """The event as the caller should get it; None when it says nothing new."""
        if isinstance(event, node_pb2.Turns):
            return self._turns(event)
        if isinstance(event, node_pb2.Relabel):
            said = (event.label, event.voice_id, event.since_ms)
            is_new = self._labels.get(event.speaker) != said
            self._labels[event.speaker] = said
            return event if is_new else None
        if isinstance(event, node_pb2.Progress):
            self.final_ms = max(self.final_ms, event.final_ms)
            self._received_ms = max(self._received_ms, event.received_ms)
            event.final_ms, event.received_ms = self.final_ms, self._received_ms
        elif isinstance(event, node_pb2.Degraded):
            self._degraded = event.active
        elif isinstance(event, node_pb2.StreamClosed):
            event.num_final_turns = self._sequence
        return event

    def _turns(self, event: node_pb2.Turns) -> node_pb2.Turns | None:
        passed = list(self._new(event.turns))
        for turn in passed:
            if turn.state == common_pb2.Turn.STATE_FINAL:
                self._sequence += 1
                turn.sequence = self._sequence
                self.final_ms = max(self.final_ms, turn.end_ms)
        self.final_ms = max(self.final_ms, event.final_ms)
        if event.turns and not passed:
            return None
        return node_pb2.Turns(turns=passed, final_ms=self.final_ms)

    def _new(self, turns: Iterable[common_pb2.Turn]) -> Iterable[common_pb2.Turn]:
        for turn in turns:
            if turn.end_ms > self._floor_ms:
                turn.start_ms = max(turn.start_ms, self._floor_ms)
                label, voice_id, _ = self._labels.get(turn.speaker, (turn.label, turn.voice_id, 0))
                if (label, voice_id) != (turn.label, turn.voice_id):
                    # A node that went on from before the relabel: when it says the same again, this turn needs it.
                    del self._labels[turn.speaker]
                yield turn
