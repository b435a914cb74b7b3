"""Why a voice failed or is frozen, as a word that software can tell apart: `state_code` of a voice.

In: the error that ended an intake. Out: one of the words below, or the code of the finding that refused. Pure.
"""

from __future__ import annotations

from controlplane.speaker_checks import SpeakerChecksFailed
from runtime.errors import BadAudio, SpeakerdError
from runtime.media import PreflightFailed

REFERENCE_TOO_SHORT = "reference_too_short"
REFERENCE_TOO_LONG = "reference_too_long"
REFERENCE_UNAVAILABLE = "reference_unavailable"
REFERENCE_UNREADABLE = "reference_unreadable"
NEVER_HEARD = "no_node_listened"
CONSENT_WITHDRAWN = "consent_withdrawn"
_WORDS = {
    "duration_below_minimum": REFERENCE_TOO_SHORT,
    "net_speech_below_minimum": REFERENCE_TOO_SHORT,
    "duration_above_maximum": REFERENCE_TOO_LONG,
}


class RecordingMissing(BadAudio):
    """The store has no recording where it should have one: it may be back later, so that nothing else is deleted."""


def failure_code(error: SpeakerdError) -> str:
    """The word for an error that ended an intake."""
    if isinstance(error, RecordingMissing):
        return REFERENCE_UNAVAILABLE
    findings = error.preflight.fail_reasons if isinstance(error, PreflightFailed) else ()
    if isinstance(error, SpeakerChecksFailed):
        findings = error.findings
    return _WORDS.get(findings[0].code, findings[0].code) if findings else REFERENCE_UNREADABLE
