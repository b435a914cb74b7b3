"""What a job is asked to do, checked. Pure: no I/O, no clock.

In: what a caller wants of a recording, as dataclasses. Out: the same, or InvalidRequest that names the field. What
always holds: whatever passes `check` fits the limits that the worker relies on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from runtime.errors import InvalidRequest

VOICEPRINTS_MAX = 50
LABEL_CHARS_MAX = 100
VOICEPRINT_CHARS_MAX = 20_000
SPEAKERS_ASKED_MAX = 1_000
"""Enrolled voices that one job may name."""
URL_CHARS_MAX = 2_048
MEDIA_KEY_CHARS_MAX = 255
IDEMPOTENCY_CHARS_MAX = 255
MODEL_CHARS_MAX = 64
SCORE_MAX = 100
_MEDIA_KEY = re.compile(r"[A-Za-z0-9\-_./]{1,255}")


class JobKind(Enum):
    """What is done with the recording."""

    DIARIZE = "diarize"
    IDENTIFY = "identify"
    VOICEPRINT = "voiceprint"


class JobState(Enum):
    """Where a job is. PENDING: its recording is not here yet; CREATED: it waits for its turn."""

    PENDING = "pending"
    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_end(self) -> bool:
        """Whether nothing happens to it any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)


class Priority(IntEnum):
    """Among a tenant's own jobs; between tenants, turns are taken. Lower goes first.

    SHORT: of every job that makes a voiceprint, whatever was asked for; such a job waits for no place of a node.
    """

    SHORT = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


@dataclass(frozen=True, slots=True)
class MediaKey:
    """A recording in the tenant's media store, by its key there (of media://KEY, the KEY)."""

    key: str


@dataclass(frozen=True, slots=True)
class MediaUrl:
    """A recording that is fetched from where the caller says."""

    url: str

    def __repr__(self) -> str:
        return "MediaUrl(…)"


JobSource = MediaKey | MediaUrl


@dataclass(frozen=True, slots=True)
class SentVoiceprint:
    """A voiceprint that comes with the job. label: what its matches are called. blob: base64, as a job gave it."""

    label: str
    blob: str

    def __repr__(self) -> str:
        return "SentVoiceprint(…)"


@dataclass(frozen=True, slots=True)
class Matching:
    """How speakers are identified.

    exclusive: a voiceprint matches one speaker at most. threshold: in [0, 100], matches score at least this. everybody:
    against every voice that the caller may use; speakers: against these enrolled voices, by id.
    """

    exclusive: bool = True
    threshold: float = 0.0
    everybody: bool = False
    speakers: tuple[str, ...] = ()

    @property
    def is_enrolled(self) -> bool:
        """Whether enrolled voices are candidates at all."""
        return self.everybody or bool(self.speakers)


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell when the job ends. status_only: without the output."""

    url: str
    status_only: bool = False

    def __repr__(self) -> str:
        return "Webhook(…)"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job. Numbers of speakers: None without a bound.

    exclusive: turns without overlap are wanted as well. confidence: of each frame. turn_confidence: of each turn.
    names: of a DIARIZE job: enrolled people are named in its turns. voice_ids: who may be named so; empty for all.
    fast: the fast mode. model: what the caller called the model, kept and otherwise ignored.
    """

    kind: JobKind
    source: JobSource
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None
    exclusive: bool = False
    confidence: bool = False
    turn_confidence: bool = False
    names: bool = False
    voice_ids: tuple[str, ...] = ()
    fast: bool = False
    voiceprints: tuple[SentVoiceprint, ...] = ()
    matching: Matching = field(default_factory=Matching)
    webhook: Webhook | None = None
    model: str = ""
    priority: Priority = Priority.NORMAL
    idempotency_key: str = ""


def place_of(spec: JobSpec) -> Priority:
    """Where a job queues."""
    return Priority.SHORT if spec.kind is JobKind.VOICEPRINT else max(spec.priority, Priority.HIGH)


def check(spec: JobSpec) -> None:
    """Raises InvalidRequest, naming the field in the words of this module."""
    _check_source(spec.source)
    for name in ("num_speakers", "min_speakers", "max_speakers"):
        value = getattr(spec, name)
        if value is not None and not 1 <= value <= 10_000:
            raise InvalidRequest(f"{name}: has to be at least 1")
    least, most = spec.min_speakers, spec.max_speakers
    if least is not None and most is not None and least > most:
        raise InvalidRequest("min_speakers: is more than max_speakers")
    if len(spec.model) > MODEL_CHARS_MAX:
        raise InvalidRequest(f"model: at most {MODEL_CHARS_MAX} characters")
    if len(spec.idempotency_key) > IDEMPOTENCY_CHARS_MAX:
        raise InvalidRequest(f"idempotency_key: at most {IDEMPOTENCY_CHARS_MAX} characters")
    if spec.webhook is not None and len(spec.webhook.url) > URL_CHARS_MAX:
        raise InvalidRequest(f"webhook: at most {URL_CHARS_MAX} characters")
    if len(spec.voice_ids) > SPEAKERS_ASKED_MAX:
        raise InvalidRequest(f"voice_ids: at most {SPEAKERS_ASKED_MAX}; none means all")
    if len(spec.matching.speakers) > SPEAKERS_ASKED_MAX:
        raise InvalidRequest(f"matching.speakers: at most {SPEAKERS_ASKED_MAX}; * means all")
    if spec.kind is JobKind.IDENTIFY:
        _check_identification(spec)
    elif spec.voiceprints:
        raise InvalidRequest("voiceprints: only a job that identifies takes them")


def _check_source(source: JobSource) -> None:
    match source:
        case MediaKey(key):
            require_media_key(key)
        case MediaUrl(url):
            if not 1 <= len(url) <= URL_CHARS_MAX:
                raise InvalidRequest(f"url: 1 to {URL_CHARS_MAX} characters")


def require_media_key(key: str) -> None:
    """Raises InvalidRequest unless this can be a key of the media store."""
    if not _MEDIA_KEY.fullmatch(key):
        raise InvalidRequest(f"url: a media key is 1 to {MEDIA_KEY_CHARS_MAX} letters, digits and - _ . /")


def _check_identification(spec: JobSpec) -> None:
    if not spec.voiceprints and not spec.matching.is_enrolled:
        raise InvalidRequest("voiceprints: send at least 1, or say in matching.speakers whom to look for")
    if len(spec.voiceprints) > VOICEPRINTS_MAX:
        raise InvalidRequest(f"voiceprints: at most {VOICEPRINTS_MAX}")
    if not 0 <= spec.matching.threshold <= SCORE_MAX:
        raise InvalidRequest(f"matching.threshold: 0 to {SCORE_MAX}")
    seen: set[str] = set()
    for index, sent in enumerate(spec.voiceprints):
        where = f"voiceprints.{index}"
        if not 1 <= len(sent.label) <= LABEL_CHARS_MAX:
            raise InvalidRequest(f"{where}.label: 1 to {LABEL_CHARS_MAX} characters")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in sent.label):
            raise InvalidRequest(f"{where}.label: no control characters")
        if sent.label.casefold().startswith("speaker_"):
            raise InvalidRequest(f"{where}.label: must not begin with speaker_, which strangers are called")
        if sent.label in seen:
            raise InvalidRequest(f"{where}.label: another voiceprint has it already")
        seen.add(sent.label)
        if not 1 <= len(sent.blob) <= VOICEPRINT_CHARS_MAX:
            raise InvalidRequest(f"{where}.voiceprint: 1 to {VOICEPRINT_CHARS_MAX} characters of base64")
