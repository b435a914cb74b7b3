"""What the parties of one call say, put together as one stream: pure bookkeeping.

In: the events of each channel's session, in its order. Out: the events of the call. What always holds: speaker k of
channel c is speaker k * channels + c of the call; a final piece goes out once every channel is final up to its end, so
that `final_samples` means for the call what it means for a stream; a checkpoint of the call goes on, for each channel,
from where nothing that was not sent yet had been told; pieces that waited carry what holds as they go out.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from node import events
from node.naming import Name
from runtime.errors import InvalidRequest

CHECKPOINTS_KEPT = 64
_HEADER = struct.Struct(">4sBQ")
_LENGTH = struct.Struct(">I")
_MAGIC = b"CALL"


@dataclass(slots=True)
class _Channel:
    """What one channel's session has said so far."""

    opened: events.Opened | None = None
    told: int = 0  # final up to here
    held: list[events.TurnPiece] = field(default_factory=list)
    provisional: list[events.TurnPiece] = field(default_factory=list)
    progress: events.Progress | None = None
    checkpoints: deque[tuple[int, events.Checkpoint]] = field(default_factory=lambda: deque(maxlen=CHECKPOINTS_KEPT))
    is_degraded: bool = False
    is_fresh: bool = False  # has given a checkpoint since the call's last one
    closed: events.Closed | None = None


class PartyEvents:
    """The events of a call.

    sequence: of the last final piece before it was resumed. may_say: whether a name may be said still.
    """

    def __init__(
        self,
        stream_id: str,
        num_channels: int,
        *,
        provisional: bool,
        sequence: int,
        may_say: Callable[[Name], bool],
    ) -> None:
        self._stream_id = stream_id
        self._channels = [_Channel() for _ in range(num_channels)]
        self._provisional = provisional
        self._sequence = sequence
        self._may_say = may_say
        self._final = 0
        self._drain_told = False
        self._degraded = False

    def __repr__(self) -> str:
        return f"PartyEvents({len(self._channels)} channels, {self._sequence} final pieces, final up to {self._final})"

    @property
    def resume_samples(self) -> list[int] | None:
        """Where each channel's session begins, once all are open."""
        found = [channel.opened.resume_samples for channel in self._channels if channel.opened is not None]
        return found if len(found) == len(self._channels) else None

    def take(self, index: int, event: events.Event) -> list[events.Event]:
        """An event of a channel; what the call says because of it."""
        channel = self._channels[index]
        match event:
            case events.Opened():
                channel.opened = event
                channel.told = event.resume_samples
                bases = self.resume_samples
                if bases is None:
                    return []
                self._final = min(bases)
                return [replace(event, stream_id=self._stream_id, resume_samples=min(bases))]
            case events.Turns():
                return self._turns(index, event)
            case events.Relabel():
                shown_as = self._number(index, event.shown_as)
                said = replace(event, speaker=self._number(index, event.speaker), shown_as=shown_as)
                channel.held = [_relabelled(piece, said) for piece in channel.held]
                channel.provisional = [_relabelled(piece, said) for piece in channel.provisional]
                return [said]
            case events.Progress():
                channel.progress = event
                channel.told = max(channel.told, event.final_samples)
                told = self._settled()
                return [*told, self._progress()] if index == 0 else told
            case events.Checkpoint():
                channel.checkpoints.append((channel.told, event))
                channel.is_fresh = True
                return self._checkpoint()
            case events.Draining():
                first, self._drain_told = not self._drain_told, True
                return [event] if first else []
            case events.Degraded():
                channel.is_degraded = event.active
                was, self._degraded = self._degraded, any(one.is_degraded for one in self._channels)
                return [events.Degraded(self._degraded)] if was is not self._degraded else []
            case events.Closed():
                channel.closed = event
                channel.told = max(channel.told, event.duration_samples)
                channel.provisional = []
                told = self._settled()
                closed = [one.closed for one in self._channels if one.closed is not None]
                return [*told, self._summary(closed)] if len(closed) == len(self._channels) else told

    def _turns(self, index: int, event: events.Turns) -> list[events.Event]:
        channel = self._channels[index]
        pieces = [replace(piece, speaker=self._number(index, piece.speaker)) for piece in event.pieces]
        channel.held += [piece for piece in pieces if piece.final]
        channel.provisional = [piece for piece in pieces if not piece.final]
        channel.told = max(channel.told, event.final_samples)
        found = self._settled()
        if not found and self._provisional:
            found.append(self._said([]))
        return found

    def _settled(self) -> list[events.Event]:
        """The pieces that have become final for the whole call, those that are longer cut where it ends."""
        # A channel that has ended holds nobody up.
        running = [channel.told for channel in self._channels if channel.closed is None]
        final = min(running) if running else max(channel.told for channel in self._channels)
        self._final = max(self._final, final)
        ready = []
        for channel in self._channels:
            for piece in channel.held:
                if piece.start_samples < self._final:
                    ready.append(replace(piece, end_samples=min(piece.end_samples, self._final)))
            channel.held = [
                replace(piece, start_samples=max(piece.start_samples, self._final))
                for piece in channel.held
                if piece.end_samples > self._final
            ]
        ready.sort(key=lambda piece: (piece.start_samples, piece.end_samples, piece.speaker))
        return [self._said(ready)] if ready else []

    def _said(self, ready: Sequence[events.TurnPiece]) -> events.Turns:
        pieces = []
        for piece in ready:
            self._sequence += 1
            pieces.append(replace(self._named_now(piece), sequence=self._sequence))
        if self._provisional:
            # What waits for another channel stands provisionally until then.
            waiting = [piece for channel in self._channels for piece in channel.held]
            pieces += [replace(self._named_now(piece), final=False, sequence=0) for piece in waiting]
            pieces += [piece for channel in self._channels for piece in channel.provisional]
        return events.Turns(tuple(pieces), self._final)

    def _named_now(self, piece: events.TurnPiece) -> events.TurnPiece:
        return piece if piece.name is None or self._may_say(piece.name) else replace(piece, name=None)

    def _progress(self) -> events.Progress:
        told = [channel.progress for channel in self._channels if channel.progress is not None]
        return events.Progress(
            max(one.received_samples for one in told),
            self._final,
            max(one.lag_samples for one in told),
            sum(one.skipped_windows for one in told),
        )

    def _checkpoint(self) -> list[events.Event]:
        for channel in self._channels:
            # Of those before which all is sent, only the newest is of use.
            while len(channel.checkpoints) > 1 and channel.checkpoints[1][0] <= self._final:
                channel.checkpoints.popleft()
        if not all(channel.is_fresh and channel.checkpoints[0][0] <= self._final for channel in self._channels):
            return []
        for channel in self._channels:
            channel.is_fresh = False
        chosen = [channel.checkpoints[0][1] for channel in self._channels]
        data = joined([checkpoint.data for checkpoint in chosen], self._sequence)
        return [events.Checkpoint(data, min(checkpoint.position_samples for checkpoint in chosen))]

    def _summary(self, closed: Sequence[events.Closed]) -> events.Closed:
        speakers = sorted(
            (
                replace(speaker, speaker=self._number(index, speaker.speaker))
                for index, one in enumerate(closed)
                for speaker in one.speakers
            ),
            key=lambda speaker: speaker.speaker,
        )
        return events.Closed(
            max(one.duration_samples for one in closed),
            tuple(speakers),
            self._sequence,
            sum(one.skipped_windows for one in closed),
            sum(one.num_left_out for one in closed),
        )

    def _number(self, index: int, speaker: int) -> int:
        return speaker * len(self._channels) + index


def _relabelled(piece: events.TurnPiece, relabel: events.Relabel) -> events.TurnPiece:
    """A piece that waits while its speaker is called something else: who hears it later hears no relabel after it."""
    if piece.speaker != relabel.speaker or piece.end_samples <= relabel.since_samples:
        return piece
    return replace(piece, speaker=relabel.shown_as, name=relabel.name)


def joined(checkpoints: Sequence[bytes], sequence: int) -> bytes:
    """The checkpoints of a call's channels as one. What is sealed stays so; the rest is only a number of pieces."""
    parts = [_HEADER.pack(_MAGIC, len(checkpoints), sequence)]
    for checkpoint in checkpoints:
        parts += [_LENGTH.pack(len(checkpoint)), checkpoint]
    return b"".join(parts)


def parted(data: bytes, num_channels: int) -> tuple[list[bytes], int]:
    """The checkpoint of each channel, and the sequence. Raises InvalidRequest where it is of no such call."""
    wrong = InvalidRequest("the checkpoint is not one of this call: send what the node sent, with the same format")
    if len(data) < _HEADER.size:
        raise wrong
    magic, count, sequence = _HEADER.unpack_from(data)
    if magic != _MAGIC or count != num_channels or sequence >= 1 << 53:
        raise wrong
    found, at = [], _HEADER.size
    for _ in range(count):
        if len(data) < at + _LENGTH.size:
            raise wrong
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        found.append(data[at : at + length])
        at += length
    if at != len(data):
        raise wrong
    return found, sequence
