"""What a live stream asks and is told, as dataclasses: the wire translates them, the session makes them.

Positions are samples from the first sample of the stream. Speakers are the session's numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.analysis import FloatArray
from models.file_turns import FrameConfidence
from node.naming import Match, Name


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """How the bytes hold sound. The numbers are those of speakerd.v1.AudioFormat; 0 takes the default.

    parties_apart: it is a call with one party a channel; of one channel: it is one party of a call.
    """

    encoding: int
    sample_rate_hz: int
    channels: int
    parties_apart: bool = False


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """The opening of a stream, checked. voice_ids: empty for every voice in scope; checkpoint: empty for none.

    audiences: whose voices are in scope, as the ticket says; empty: the tenant's.
    """

    stream_id: str
    tenant_id: str
    ticket: str
    sound: SoundFormat
    latency_samples: int
    exclusive: bool
    voice_ids: frozenset[str]
    num_speakers_max: int
    checkpoint: bytes
    provisional: bool
    audiences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """No more sound."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The stream has a slot."""

    stream_id: str
    node_id: str
    latency_samples: int
    step_samples: int
    num_voices: int
    resume_samples: int


@dataclass(frozen=True, slots=True)
class TurnPiece:
    """A piece of a turn. sequence: from 1 for final pieces, 0 for provisional ones. name: None for strangers.

    confidence: the share of it in which the speaker is expected to be speaking indeed; None where it is not known.
    """

    start_samples: int
    end_samples: int
    speaker: int
    name: Name | None
    final: bool
    sequence: int
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """New final pieces, and all provisional ones that stand. final_samples: what begins before it is all told now."""

    pieces: tuple[TurnPiece, ...]
    final_samples: int


@dataclass(frozen=True, slots=True)
class Relabel:
    """A speaker is called something else from since_samples on. shown_as: its number, or whose it was found to be."""

    speaker: int
    name: Name | None
    shown_as: int
    since_samples: int
    match: Match | None


@dataclass(frozen=True, slots=True)
class Progress:
    """The stream lives."""

    received_samples: int
    final_samples: int
    lag_samples: int
    skipped_windows: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Sealed state; sound after position_samples has to be sent again."""

    data: bytes
    position_samples: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The node is about to stop. deadline_s: Unix time."""

    deadline_s: float


@dataclass(frozen=True, slots=True)
class Degraded:
    """Names are withheld (True), or are back."""

    active: bool


@dataclass(frozen=True, slots=True)
class SpeakerPrint:
    """What a speaker of a file sounds like to a model. embedding: little-endian float32, as it travels."""

    model: str
    embedding: bytes

    def __repr__(self) -> str:
        return f"SpeakerPrint({self.model})"


@dataclass(frozen=True, slots=True)
class SpeakerSummary:
    """A speaker of a stream or file, summed up.

    confidence: as of a turn, over all of this speaker's. voiceprint: where it was asked for and enough was heard.
    token: of a stranger of a live stream, whom nobody has enrolled; empty where there is none.
    """

    speaker: int
    name: Name | None
    speech_samples: int
    net_speech_samples: int
    match: Match | None
    confidence: float | None = None
    voiceprint: SpeakerPrint | None = None
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream has been told whole.

    num_left_out: of very many speakers, how many of the longest silent are not listed.
    """

    duration_samples: int
    speakers: tuple[SpeakerSummary, ...]
    num_final_turns: int
    skipped_windows: int
    num_left_out: int = 0


Event = Opened | Turns | Relabel | Progress | Checkpoint | Draining | Degraded | Closed


@dataclass(frozen=True, slots=True, eq=False)
class SentVoice:
    """A voiceprint that comes with a file. embedding: unit (D,); None where it is of another model."""

    embedding: FloatArray | None
    net_speech_samples: int


@dataclass(frozen=True, slots=True)
class Identify:
    """Whom the speakers of a file may be: those sent with it, in order, and the voices in scope if `enrolled`."""

    sent: tuple[SentVoice, ...]
    enrolled: bool
    exclusive: bool
    threshold: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of those. sent: its index; None: an enrolled voice, by its name."""

    sent: int | None
    name: Name | None
    probability: float


@dataclass(frozen=True, slots=True)
class SpeakerIdentity:
    """What a speaker of a file was found to be, and how near the others came."""

    speaker: int
    match: Candidate | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class FileRequest:
    """The opening of a file, checked. duration_samples: 0 when unknown. Numbers of speakers: None without a bound.

    job_id: whose recording it is, for logs; "": no job's.
    """

    tenant_id: str
    sound: SoundFormat
    duration_samples: int
    num_speakers: int | None
    min_speakers: int | None
    max_speakers: int | None
    voice_ids: frozenset[str]
    fast: bool = False
    audiences: tuple[str, ...] = ()
    embeddings: bool = False
    frame_confidence: bool = False
    identify: Identify | None = None
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far a file is. duration_samples: 0 while unknown."""

    processed_samples: int
    duration_samples: int


@dataclass(frozen=True, slots=True)
class FileResult:
    """Who spoke when in a file. confidence: of each frame, where it was asked for and is known.

    identities: one a speaker, where they were to be identified.
    """

    turns: tuple[TurnPiece, ...]
    exclusive_turns: tuple[TurnPiece, ...]
    speakers: tuple[SpeakerSummary, ...]
    duration_samples: int
    warnings: tuple[str, ...]
    confidence: FrameConfidence | None = None
    identities: tuple[SpeakerIdentity, ...] = ()
