"""What an engine heard in an enrolment, judged: one person, enough of them, the consent theirs, nobody else's voice.

Pure. In: an Analysis and the limits. Out: findings, each with the threshold that it tripped; those that refuse come as
one error that says what to mend.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from controlplane.nodes import Analysis
from runtime.errors import BadAudio
from runtime.media import Finding


class SpeakerLimits(BaseModel):
    """What has to be heard in the recordings of an enrolment. Probabilities are calibrated, in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    net_speech_s_fail_below: float = Field(
        default=1.0, ge=0.0, description="Less clean speech of the person is refused."
    )
    net_speech_s_warn_below: float = Field(default=5.0, ge=0.0, description="Less serves, more serves better.")
    cohesion_fail_below: float = Field(
        default=0.3, ge=-1.0, le=1.0, description="Parts that do not sound alike: refused."
    )
    cohesion_warn_below: float = Field(default=0.6, ge=-1.0, le=1.0, description="The same, told.")
    consent_fail_below: float = Field(
        default=0.2,
        ge=0.0,
        le=1.0,
        description="Probability that the consent is spoken by the enrolled voice: refused below.",
    )
    consent_warn_below: float = Field(default=0.5, ge=0.0, le=1.0, description="The same, told.")
    collision_warn_above: float = Field(
        default=0.9, ge=0.0, le=1.0, description="Probability of being a voice that is enrolled already: told above."
    )
    collision_fail_above: float = Field(default=1.0, ge=0.0, le=1.0, description="The same, refused above. 1: never.")


class SpeakerChecksFailed(BadAudio):
    """Recordings that nobody can be enrolled from. findings: all that refuses, and all that was warned of."""

    def __init__(self, findings: Sequence[Finding], warnings: Sequence[Finding]) -> None:
        super().__init__("; ".join(finding.text for finding in findings))
        self.findings = tuple(findings)
        self.warnings = tuple(warnings)


def judge(analysis: Analysis, limits: SpeakerLimits) -> tuple[Finding, ...]:
    """What to know of an enrolment that can be made. Raises SpeakerChecksFailed for one that cannot."""
    refusing = _heard(analysis, limits)
    telling: list[Finding] = []
    if not refusing:  # there is a voice to compare with
        for refuses, finding in [*_cohesion(analysis, limits), *_consent(analysis, limits), *_near(analysis, limits)]:
            (refusing if refuses else telling).append(finding)
        if 1000 * limits.net_speech_s_warn_below > analysis.net_speech_ms:
            telling.append(
                Finding(
                    "net_speech_below_recommended",
                    analysis.net_speech_ms / 1000,
                    limits.net_speech_s_warn_below,
                    f"{analysis.net_speech_ms / 1000:.1f} s of clean speech: "
                    f"{limits.net_speech_s_warn_below:g} s or more make a better voice",
                )
            )
        telling += [
            Finding("clip_left_out", clip.probability, 0.0, f"clip {number} was left out: it is not of the same person")
            for number, clip in enumerate(analysis.clips, start=1)
            if clip.left_out
        ]
    if refusing:
        raise SpeakerChecksFailed(refusing, telling)
    return tuple(telling)


def _heard(analysis: Analysis, limits: SpeakerLimits) -> list[Finding]:
    seconds = analysis.net_speech_ms / 1000
    if analysis.num_speakers == 0 or not analysis.net_speech_ms:
        text = "no speech was found in the recording: record the person speaking, 5 to 30 s"
        return [Finding("no_speech", seconds, limits.net_speech_s_fail_below, text)]
    if analysis.num_speakers > 1:
        text = f"{analysis.num_speakers} different voices are heard: enrol from recordings of that one person alone"
        return [Finding("several_speakers", analysis.num_speakers, 1, text)]
    if seconds < limits.net_speech_s_fail_below:
        text = (
            f"only {seconds:.1f} s of clean speech: at least {limits.net_speech_s_fail_below:g} s is needed, "
            "5 to 30 s are better"
        )
        return [Finding("net_speech_below_minimum", seconds, limits.net_speech_s_fail_below, text)]
    return []


def _cohesion(analysis: Analysis, limits: SpeakerLimits) -> list[tuple[bool, Finding]]:
    text = "the parts of the recording do not sound alike: there may be noise, or a second voice"
    for refuses, limit in ((True, limits.cohesion_fail_below), (False, limits.cohesion_warn_below)):
        if analysis.cohesion < limit:
            return [(refuses, Finding("cohesion_below_threshold", analysis.cohesion, limit, text))]
    return []


def _consent(analysis: Analysis, limits: SpeakerLimits) -> list[tuple[bool, Finding]]:
    consent = analysis.consent
    if consent is None:
        return []
    if not consent.net_speech_ms:
        text = "no speech was found in the recording of the consent: record the person speaking it"
        return [(True, Finding("consent_without_speech", 0.0, 0.0, text))]
    if consent.num_speakers > 1:
        text = f"{consent.num_speakers} different voices are heard in the recording of the consent: one is needed"
        return [(True, Finding("consent_of_several_speakers", consent.num_speakers, 1, text))]
    text = "the consent is not spoken by the voice of the recordings: the same person has to speak both"
    for refuses, limit in ((True, limits.consent_fail_below), (False, limits.consent_warn_below)):
        if consent.probability < limit:
            return [(refuses, Finding("consent_of_another_voice", consent.probability, limit, text))]
    return []


def _near(analysis: Analysis, limits: SpeakerLimits) -> list[tuple[bool, Finding]]:
    near = analysis.collision
    if near is None:
        return []
    text = "the voice is very close to one that is enrolled already: is it the same person?"
    for refuses, limit in ((True, limits.collision_fail_above), (False, limits.collision_warn_above)):
        if near.probability > limit:
            return [(refuses, Finding("collision", near.probability, limit, text))]
    return []
