"""What pyannoteAI's clients send, and what it means to the core.

In: JSON with camelCase names, explicit nulls where something is not said. Out: a JobSpec. What always holds: null means
the same as absent; unknown fields are ignored; a value of the wrong type is refused by its path.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr
from pydantic.alias_generators import to_camel

from controlplane.job_spec import (
    LABEL_CHARS_MAX,
    MODEL_CHARS_MAX,
    SPEAKERS_ASKED_MAX,
    URL_CHARS_MAX,
    VOICEPRINT_CHARS_MAX,
    VOICEPRINTS_MAX,
    JobKind,
    JobSource,
    JobSpec,
    Matching,
    MediaKey,
    MediaUrl,
    SentVoiceprint,
    Webhook,
)
from edge.failures import FieldError, InvalidFields

MEDIA_SCHEME = "media://"
MEDIA_PATTERN = r"^media://[a-zA-Z0-9\-_./]+$"
MEDIA_CHARS_MAX = 255
SPEAKERS_MAX = 10_000
EVERYBODY = "*"
KNOWN_MODELS = frozenset({"", "precision-1", "precision-2", "community-1"})
"""Names that pyannoteAI's clients send without being asked to: they all mean the engine that is installed here."""

_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)


def _number(value: Any) -> Any:
    # Clients whose numbers are all floats send 2.0; a text or a truth value is no number.
    if isinstance(value, bool | str):
        raise ValueError("has to be a number")  # noqa: TRY004  # pydantic takes no other
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=SPEAKERS_MAX)]


class _Sent(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class MediaRequest(_Sent):
    """A place in the media store."""

    url: Annotated[StrictStr, Field(pattern=MEDIA_PATTERN, max_length=MEDIA_CHARS_MAX)]


class _JobRequest(_Sent):
    url: Annotated[StrictStr, Field(min_length=1, max_length=URL_CHARS_MAX)] = Field(
        description="media://KEY of something uploaded here, or an http(s) url that can be fetched."
    )
    webhook: Annotated[StrictStr, Field(max_length=URL_CHARS_MAX)] | None = None
    webhook_status_only: StrictBool | None = None
    model: Annotated[StrictStr, Field(max_length=MODEL_CHARS_MAX)] | None = Field(
        None, description="Accepted for the sake of clients; what hears is the engine that is installed here."
    )

    def _source(self) -> JobSource:
        if self.url.startswith(MEDIA_SCHEME):
            if not re.fullmatch(MEDIA_PATTERN, self.url) or len(self.url) > MEDIA_CHARS_MAX:
                raise InvalidFields(FieldError("url", f"has to match {MEDIA_PATTERN}, at most {MEDIA_CHARS_MAX} long"))
            return MediaKey(self.url.removeprefix(MEDIA_SCHEME))
        if not _URL.fullmatch(self.url):
            raise InvalidFields(
                FieldError(
                    "url", "has to be a url, https://… or media://…; POST /v1/media/input uploads a file of yours"
                )
            )
        return MediaUrl(self.url)

    def _webhook(self) -> Webhook | None:
        if not self.webhook:
            return None
        if not _URL.fullmatch(self.webhook):
            raise InvalidFields(FieldError("webhook", "has to be an http(s) url"))
        return Webhook(self.webhook, status_only=bool(self.webhook_status_only))

    def warning(self) -> str | None:
        """What of the request has no effect here."""
        if (self.model or "").lower() not in KNOWN_MODELS:
            return "model: has no effect; what hears is the engine that is installed here"
        return None


class VoiceprintRequest(_JobRequest):
    """A voiceprint of the one who speaks."""

    def spec(self, idempotency_key: str) -> JobSpec:
        """The job."""
        return JobSpec(
            JobKind.VOICEPRINT,
            self._source(),
            webhook=self._webhook(),
            model=self.model or "",
            idempotency_key=idempotency_key,
        )


class DiarizeRequest(_JobRequest):
    """Who spoke when."""

    num_speakers: Count | None = None
    min_speakers: Count | None = None
    max_speakers: Count | None = None
    confidence: StrictBool | None = None
    turn_level_confidence: StrictBool | None = None
    exclusive: StrictBool | None = None
    transcription: StrictBool | None = Field(None, description="Not done here: true is refused.")
    transcription_config: dict[str, Any] | None = Field(None, description="Without effect.")

    def spec(self, idempotency_key: str) -> JobSpec:
        """The job. Raises InvalidFields."""
        return JobSpec(JobKind.DIARIZE, **self._common(idempotency_key))

    def warning(self) -> str | None:
        """What of the request has no effect here."""
        said = [super().warning()]
        if self.transcription_config:
            said.append("transcriptionConfig: has no effect; nothing is transcribed here")
        return "; ".join(text for text in said if text) or None

    def _common(self, idempotency_key: str) -> dict[str, Any]:
        if self.transcription:
            # A result without the words that were asked for would be found out only as it is used.
            raise InvalidFields(
                FieldError("transcription", "is not done here; diarize without it, and merge with your transcript")
            )
        return {
            "source": self._source(),
            "num_speakers": self.num_speakers,
            "min_speakers": self.min_speakers,
            "max_speakers": self.max_speakers,
            "exclusive": bool(self.exclusive),
            "confidence": bool(self.confidence),
            "turn_confidence": bool(self.turn_level_confidence),
            "webhook": self._webhook(),
            "model": self.model or "",
            "idempotency_key": idempotency_key,
        }


class VoiceprintSent(_Sent):
    """A voiceprint and what its speaker is called."""

    label: Annotated[
        StrictStr,
        Field(
            min_length=1,
            max_length=LABEL_CHARS_MAX,
            json_schema_extra={"not": {"pattern": "^[sS][pP][eE][aA][kK][eE][rR]_"}},
        ),
    ]
    voiceprint: Annotated[StrictStr, Field(min_length=1, max_length=VOICEPRINT_CHARS_MAX)] = Field(
        description="Base64, as a voiceprint job gave it."
    )


class MatchingSent(_Sent):
    """How voiceprints are matched with speakers."""

    exclusive: StrictBool | None = Field(None, description="A voiceprint matches one speaker at most. Default: true.")
    threshold: Annotated[float, BeforeValidator(_number), Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="Matches score at least this. Default: 0."
    )
    speakers: StrictStr | Annotated[list[StrictStr], Field(max_length=SPEAKERS_ASKED_MAX)] | None = Field(
        None, description='Enrolled people to look for: "*" for all that the key may use, or their ids.'
    )

    def matching(self) -> Matching:
        """As the core takes it."""
        everybody = self.speakers == EVERYBODY
        if isinstance(self.speakers, str) and not everybody:
            raise InvalidFields(FieldError("matching.speakers", f'"{EVERYBODY}" or a list of ids'))
        named = self.speakers if isinstance(self.speakers, list) else []
        return Matching(
            exclusive=self.exclusive is not False,
            threshold=self.threshold or 0.0,
            everybody=everybody or EVERYBODY in named,
            speakers=tuple(one for one in named if one != EVERYBODY),
        )


class IdentifyRequest(DiarizeRequest):
    """Who spoke when, and who of those one knows that is."""

    voiceprints: Annotated[list[VoiceprintSent], Field(max_length=VOICEPRINTS_MAX)] | None = Field(
        None, description="1 to 50; may be absent where matching.speakers says whom to look for."
    )
    matching: MatchingSent | None = None

    def spec(self, idempotency_key: str) -> JobSpec:
        """The job. Raises InvalidFields."""
        sent = self.voiceprints or []
        return JobSpec(
            JobKind.IDENTIFY,
            voiceprints=tuple(SentVoiceprint(one.label, one.voiceprint) for one in sent),
            matching=self.matching.matching() if self.matching is not None else Matching(),
            **self._common(idempotency_key),
        )
