"""One live stream: sound comes in, turns with names go out, and the stream can be carried on elsewhere.

In: messages of a peer, through an Intake. Out: events to it. What always holds: results wait in a queue bounded in
number and bytes, and a client that does not read for WRITE_BOUND_S is cut; names are looked up as a result is written,
never before; final turns are numbered without gaps, across resumption too; whatever ends the stream, its tasks end with
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from models.analysis import FloatArray, FrameGrid, WindowAnalysis
from models.live_naming import NamedTurn, Relabel
from models.online import OnlineDiarization, SessionSpeaker, StepOutcome
from node import events
from node.checkpoint import CheckpointSeal, StreamState
from node.heard_numbers import HeardNumbers
from node.intake import Intake
from node.metrics import NodeMetrics
from node.naming import NamingGuard, SessionNaming
from node.patience import Patience
from node.results import Results
from node.source import Source
from node.steps import Steps
from runtime.clock import Clock
from runtime.errors import SpeakerdError, TimedOut, Unavailable
from runtime.units import SAMPLE_RATE_HZ, ms_from_samples, seconds_from_samples

WRITE_BOUND_S = 5.0
TICK_S = 1.0
TICKS_A_PROGRESS = 5
"""Turns that are told say that the stream lives, and up to where all is final: progress follows TICK_S after the last,
and beside them it can be rarer."""
CHECKPOINT_S = 2.0
"""Between checkpoints. What was decided since the last one is decided again by who resumes, in the same way."""
CHECKPOINT_SAMPLES_MAX = 20 * SAMPLE_RATE_HZ
"""A stream that is faster than speech gets a checkpoint at least this often, so that its client need not keep more."""
EVENT_BYTES, TURN_BYTES = 64, 160
"""About what a result takes while it waits, and each turn in it."""


class Peer(Protocol):
    """The other end of a stream."""

    async def receive(self) -> events.StreamRequest | bytes | events.Finish | None:
        """The next message; None when the other end sends no more."""
        ...

    async def send(self, event: events.Event) -> None:
        """Tell the other end."""
        ...


@dataclass(frozen=True, slots=True)
class Said:
    """What steps decided, to be put into words when it is written: relabels, then turns with their sequence numbers.

    final_samples: everything before it is final, and told once this has been written.
    """

    relabels: Sequence[Relabel]
    turns: Sequence[tuple[NamedTurn, int]]
    final_samples: int


class End:
    """Nothing comes after it."""


class LiveSession:
    """A stream that holds a slot. Positions count from the start of the stream."""

    def __init__(
        self,
        request: events.StreamRequest,
        peer: Peer,
        source: Source,
        online: OnlineDiarization,
        naming: SessionNaming,
        *,
        node_id: str,
        grid: FrameGrid,
        resumed: StreamState | None,
        guard: NamingGuard,
        seal: CheckpointSeal,
        steps: Steps,
        metrics: NodeMetrics,
        clock: Clock,
    ) -> None:
        """resumed: the state that a checkpoint brought; `online` and `naming` hold their parts of it already."""
        self._request = request
        self._peer = peer
        self._source = source
        self._online = online
        self._naming = naming
        self._node_id = node_id
        self._grid = grid
        self._guard = guard
        self._seal = seal
        self._steps = steps
        self._metrics = metrics
        self._clock = clock
        self._results: Results[Said | events.Event | End] = Results()
        state = resumed or StreamState()
        self._base = state.resume_samples(grid)  # where the source's sound begins in the stream
        self._intake = Intake(
            peer,
            source,
            request.sound,
            piece_samples=grid.hop_samples,
            is_resumed=resumed is not None,
            is_live=True,
            skip_samples=self._base,
        )
        self._analysed = state.analysed_samples
        self._sequence = state.sequence
        self._heard = HeardNumbers(state)
        self._told = self._base  # final turns that begin before it have been written
        self._drain_deadline_s: float | None = None
        self._drain_told = False
        self._skipped_before = state.skipped  # on the nodes that carried it so far

    def __repr__(self) -> str:
        return f"LiveSession({self._request.stream_id}, {self._source!r}, {self._sequence} final turns)"

    async def run(self) -> None:
        """Serve the stream to its end. Raises what went wrong; Unavailable when it was handed over."""
        self._writing = Patience(WRITE_BOUND_S)
        try:
            await self._serve()
        finally:
            self._writing.close()
            self._results.close()

    async def _serve(self) -> None:
        await self._send(
            events.Opened(
                self._request.stream_id,
                self._node_id,
                self._request.latency_samples,
                self._grid.hop_samples,
                self._naming.num_candidates,
                self._base,
            )
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._intake.run(), name="stream-read")
                tasks.create_task(self._step(), name="stream-step")
                tasks.create_task(self._write(), name="stream-write")
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        if self._intake.handing_over:
            raise Unavailable("this node is stopping: place the stream again and resume from the last checkpoint")
        if self._intake.complaint is not None:
            raise self._intake.complaint

    def announce_drain(self, deadline_s: float) -> None:
        """Tell the client that the node is about to stop, by a Unix time, with a checkpoint to move on with."""
        self._drain_deadline_s = deadline_s

    def hand_over(self) -> None:
        """Read no more; what was heard becomes final, and the stream ends as UNAVAILABLE."""
        self._intake.hand_over()

    async def _step(self) -> None:
        """Analyses become turns with names. Several that came back together are named together."""
        checkpoint_due_s = self._clock.monotonic_s() + CHECKPOINT_S
        checkpoint_due = self._analysed + CHECKPOINT_SAMPLES_MAX
        num_named = self._heard.num_named
        handed_over = False
        while analyses := await self._source.take():
            placed = analyses
            if self._base:
                placed = [replace(analysis, start_samples=analysis.start_samples + self._base) for analysis in analyses]
            while placed:
                together = self._online.steps_on_one_roster
                known = self._known_voices()
                last_end = placed[-1].start_samples + self._grid.window_samples
                if self._intake.handing_over and not handed_over and last_end > self._end:
                    # The last window is filled up with silence that nobody has sent: where the stream goes on, that
                    # window is analysed with what was really said.
                    await self._hand_over_checkpoint()
                    handed_over = True
                now, placed = placed[:together], placed[together:]
                kind = "step" if self._online.is_next_step_short else "step that looks back"
                is_compared = self._naming.has_candidates
                outcomes, speakers = await self._steps.run(
                    partial(_step_all, self._online, now, known, is_compared=is_compared),
                    kind if len(now) == 1 else "steps",
                )
                if not is_compared and self._naming.has_candidates:  # a voice came meanwhile, or the lease
                    speakers = self._online.session_speakers()
                self._analysed = now[-1].start_samples + self._grid.window_samples
                await self._tell(outcomes, speakers)
            if self._drain_deadline_s is not None and not self._drain_told:
                await self._hand_over_checkpoint()
            elif (
                self._clock.monotonic_s() >= checkpoint_due_s
                or self._analysed >= checkpoint_due
                # Wherever the stream goes on, it has to know who was named: after an erasure they are no strangers.
                or self._heard.num_named > num_named
            ):
                await self._put(await self._checkpoint())
                num_named = self._heard.num_named
                checkpoint_due_s = self._clock.monotonic_s() + CHECKPOINT_S
                checkpoint_due = self._analysed + CHECKPOINT_SAMPLES_MAX
        if self._intake.handing_over and not handed_over:
            await self._hand_over_checkpoint()
        ended = self._online.finish(self._end, self._known_voices(), goes_on=self._intake.handing_over)
        await self._tell([ended], self._online.session_speakers())
        await self._put(self._summary())
        await self._put(End())

    async def _hand_over_checkpoint(self) -> None:
        """A checkpoint to move on with, and word of the drain behind it if none was given."""
        await self._put(await self._checkpoint())
        if self._drain_deadline_s is not None and not self._drain_told:
            self._drain_told = True
            await self._put(events.Draining(self._drain_deadline_s))

    def _known_voices(self) -> dict[int, str]:
        """The voice of each session speaker who is recognised now."""
        return self._naming.known()

    @property
    def skipped_windows(self) -> int:
        """Windows of the stream that were left out, here and on nodes that carried it before."""
        return self._skipped_before + self._source.num_skipped

    @property
    def _end(self) -> int:
        return self._base + self._intake.received_samples

    async def _tell(self, outcomes: Sequence[StepOutcome], speakers: Sequence[SessionSpeaker]) -> None:
        told = await self._naming.step(outcomes, speakers)
        for outcome, named in zip(outcomes, told, strict=True):
            turns = [self._numbered(turn) for turn in named.turns if turn.turn.final or self._request.provisional]
            self._heard.note(named)
            for move in outcome.moves:
                self._heard.move(move, self._naming.number(move.source), self._naming.number(move.target))
            await self._put(Said(named.relabels, turns, outcome.final_samples))

    async def _put(self, item: Said | events.Event | End) -> None:
        match item:
            case Said():
                num_bytes = EVENT_BYTES + TURN_BYTES * (len(item.turns) + len(item.relabels))
            case events.Checkpoint():
                num_bytes = EVENT_BYTES + len(item.data)
            case _:
                num_bytes = EVENT_BYTES
        await self._results.put(item, num_bytes)

    def _numbered(self, named: NamedTurn) -> tuple[NamedTurn, int]:
        if not named.turn.final:
            return named, 0
        self._sequence += 1
        self._heard.count(named.speaker, named.turn.end_samples - named.turn.start_samples)
        return named, self._sequence

    async def _checkpoint(self) -> events.Checkpoint:
        self._heard.forget(self._naming.numbers())
        state = StreamState(
            analysed_samples=self._analysed,
            sequence=self._sequence,
            naming=self._naming.state(),
            skipped=self.skipped_windows,
            **self._heard.state(),
        )
        sealed = await self._steps.run(partial(self._sealed, state), "checkpoint")
        return events.Checkpoint(sealed, state.resume_samples(self._grid))

    def _sealed(self, state: StreamState) -> bytes:
        return self._seal.seal(
            state.to_bytes(self._online.snapshot()),
            tenant_id=self._request.tenant_id,
            stream_id=self._request.stream_id,
        )

    async def _write(self) -> None:
        now_s = asyncio.get_running_loop().time
        tick_s, at_last_s = now_s() + TICK_S, now_s() + TICKS_A_PROGRESS * TICK_S
        degraded = False
        while True:
            item = await self._results.next(tick_s)
            if isinstance(item, End):
                return
            if degraded is self._guard.allows():
                degraded = not degraded
                await self._send(events.Degraded(degraded))
            if isinstance(item, Said):
                # Of what a party's channel tells the call may tell nothing yet, but for its progress.
                if await self._say(item) and not self._request.sound.parties_apart:
                    tick_s = min(now_s() + TICK_S, at_last_s)
            elif isinstance(item, events.Closed):
                await self._send(self._described(item))
            elif item is not None:
                await self._send(item)
            if now_s() >= tick_s:
                tick_s, at_last_s = now_s() + TICK_S, now_s() + TICKS_A_PROGRESS * TICK_S
                await self._send(self._progress())
                if self._drain_deadline_s is not None and not self._drain_told:
                    # No sound comes, so that no step tells it: the last checkpoint is as good as another.
                    self._drain_told = True
                    await self._send(events.Draining(self._drain_deadline_s))

    async def _say(self, said: Said) -> bool:
        """Put what was decided into words, with the names that may be said now; whether turns were told."""
        for relabel in said.relabels:
            # Asked for anew each time: while the one before was written, a voice may have been erased.
            reports = self._naming.reports()
            name = self._naming.name(relabel.voice, relabel.probability)
            match = reports.get(self._heard.index(relabel.shown_as))
            await self._send(events.Relabel(relabel.speaker, name, relabel.shown_as, relabel.since_samples, match))
        pieces = tuple(
            events.TurnPiece(
                named.turn.start_samples,
                named.turn.end_samples,
                named.speaker,
                self._naming.name(named.voice, named.probability),
                named.turn.final,
                sequence,
            )
            for named, sequence in said.turns
        )
        self._told = max(self._told, said.final_samples)
        if not pieces and not self._request.provisional:
            return False
        await self._send(events.Turns(pieces, self._told))
        return True

    async def _send(self, event: events.Event) -> None:
        try:
            with self._writing:
                await self._peer.send(event)
        except TimeoutError:
            raise TimedOut(f"results were not read for {WRITE_BOUND_S:g} s: read while you send") from None

    def _progress(self) -> events.Progress:
        lag = max(0, self._end - max(self._analysed, self._base))
        self._metrics.stream_lag_seconds.observe(seconds_from_samples(lag))
        return events.Progress(self._end, self._told, lag, self.skipped_windows)

    def _summary(self) -> events.Closed:
        clean = {self._heard.number(one.index): one.clean_samples for one in self._online.session_speakers()}
        speakers = tuple(
            events.SpeakerSummary(number, None, samples, min(samples, clean.get(number, 0)), None)
            for number, samples in self._heard.speech().items()
        )
        return events.Closed(self._end, speakers, self._sequence, self.skipped_windows, self._heard.num_left_out)

    def _described(self, closed: events.Closed) -> events.Closed:
        """The summary with the names that may be said now."""
        reports = self._naming.reports()
        voices = self._naming.voices()
        self._metrics.matched(reports.get(self._heard.index(speaker.speaker)) for speaker in closed.speakers)
        centroids = {one.index: one.centroid for one in self._online.session_speakers()}
        speakers = []
        for speaker in closed.speakers:
            index = self._heard.index(speaker.speaker)
            voice, probability = voices.get(index, (None, 0.0))
            name = self._naming.name(voice, probability)
            token = self._token(speaker, centroids.get(index)) if voice is None else b""
            speakers.append(replace(speaker, name=name, match=reports.get(index), token=token))
        return replace(closed, speakers=tuple(speakers))

    def _token(self, speaker: events.SpeakerSummary, centroid: FloatArray | None) -> bytes:
        """What a stranger may be enrolled from later. Who was named here is none, though erased by now."""
        was_named = self._heard.was_named(speaker.speaker)
        if was_named or centroid is None or not speaker.net_speech_samples or not centroid.any():
            return b""
        net_speech_ms = ms_from_samples(speaker.net_speech_samples)
        return self._seal.stranger(centroid.astype("<f4").tobytes(), net_speech_ms, tenant_id=self._request.tenant_id)


def _step_all(
    online: OnlineDiarization, analyses: Sequence[WindowAnalysis], known: Mapping[int, str], *, is_compared: bool
) -> tuple[list[StepOutcome], list[SessionSpeaker]]:
    # Who carries different voices is never merged, however alike they sound on a poor line.
    outcomes = [online.step(analysis, known) for analysis in analyses]
    return outcomes, online.session_speakers(centroids=is_compared)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the stream: what we know the cause of, before what we do not."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += [first_error(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((error for error in leaves if isinstance(error, SpeakerdError)), leaves[0])
