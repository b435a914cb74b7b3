"""Taking names out of what leaves through a relay. Pure.

In: a node's answer and which voices may be named. Out: the same answer, in place, in which everybody else is called as
strangers are. What always holds: a voice that may not be named appears nowhere in it, neither by label nor by id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from speakerd.v1 import common_pb2, node_pb2

WITHHELD = "names are withheld: this control plane lost its lease while the recording was under way; send it again"

MayName = Callable[[str], bool]
"""Whether a voice, by its id, may be named at this moment."""

LiveEvent = (
    node_pb2.Turns
    | node_pb2.Relabel
    | node_pb2.Progress
    | node_pb2.Checkpoint
    | node_pb2.Draining
    | node_pb2.Degraded
    | node_pb2.StreamClosed
)
"""What a live stream says, as the contract has it."""


def voices_in(result: node_pb2.FileResult) -> set[str]:
    """Every voice that a result tells of."""
    named = {voice_id for speaker in result.speakers for voice_id in _voices_of(speaker)}
    named |= {turn.voice_id for turns in (result.turns, result.exclusive_turns) for turn in turns}
    named |= {candidate.voice_id for identity in result.identities for candidate in _candidates(identity)}
    named.discard("")
    return named


def strip_result(result: node_pb2.FileResult, may_name: MayName) -> bool:
    """Take out of a recording's result who may not be named; whether anybody was."""
    turned = [_strip(one, may_name) for one in (*result.turns, *result.exclusive_turns)]
    told = [_strip_identity(identity, may_name) for identity in result.identities]
    return any([*turned, *told, *(_strip_speaker(speaker, may_name) for speaker in result.speakers)])


def voices_of_event(event: LiveEvent) -> set[str]:
    """Every voice that a live stream's message tells of."""
    named: set[str] = set()
    if isinstance(event, node_pb2.Turns):
        named = {turn.voice_id for turn in event.turns}
    elif isinstance(event, node_pb2.Relabel):
        named = {event.voice_id, event.match.best_voice_id, event.match.runner_up_voice_id}
    elif isinstance(event, node_pb2.StreamClosed):
        named = {voice_id for speaker in event.speakers for voice_id in _voices_of(speaker)}
    named.discard("")
    return named


def strip_event(event: LiveEvent, may_name: MayName) -> bool:
    """Take out of a live stream's message who may not be named; whether anybody was."""
    stripped: list[bool] = []
    if isinstance(event, node_pb2.Turns):
        stripped = [_strip(turn, may_name) for turn in event.turns]
    elif isinstance(event, node_pb2.Relabel):
        stripped = [_strip(event, may_name), _strip_match(event, may_name)]
    elif isinstance(event, node_pb2.StreamClosed):
        stripped = [_strip_speaker(speaker, may_name) for speaker in event.speakers]
    return any(stripped)


def _strip(one: common_pb2.Turn | common_pb2.Speaker | node_pb2.Relabel, may_name: MayName) -> bool:
    if not one.voice_id or may_name(one.voice_id):
        return False
    one.label = one.speaker
    one.ClearField("voice_id")
    one.ClearField("probability")
    return True


def _strip_speaker(speaker: common_pb2.Speaker, may_name: MayName) -> bool:
    is_denied = _strip(speaker, may_name)
    return _strip_match(speaker, may_name) or is_denied


def _strip_match(one: common_pb2.Speaker | node_pb2.Relabel, may_name: MayName) -> bool:
    # A report also tells of the voices that came second, and that were not enough.
    told = _told((one.match.best_voice_id, one.match.runner_up_voice_id))
    if all(may_name(voice_id) for voice_id in told):
        return False
    one.ClearField("match")
    return True


def _strip_identity(identity: node_pb2.SpeakerIdentity, may_name: MayName) -> bool:
    kept = [one for one in identity.candidates if not one.voice_id or may_name(one.voice_id)]
    is_denied = len(kept) < len(identity.candidates)
    if is_denied:
        del identity.candidates[:]
        identity.candidates.extend(kept)
    if identity.match.voice_id and not may_name(identity.match.voice_id):
        identity.ClearField("match")
        is_denied = True
    return is_denied


def _candidates(identity: node_pb2.SpeakerIdentity) -> list[node_pb2.Candidate]:
    return [*identity.candidates, identity.match]


def _told(voice_ids: Iterable[str]) -> list[str]:
    return [voice_id for voice_id in voice_ids if voice_id]


def _voices_of(speaker: common_pb2.Speaker) -> tuple[str, str, str]:
    return speaker.voice_id, speaker.match.best_voice_id, speaker.match.runner_up_voice_id
