"""Cloning a voice: what POST /voices and WS /voices/record do alike.

In: what is said of the voice, and two recordings. Out: what the core answers. A reference has to be of 5 to 30 seconds
here, whatever else is configured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.agreements import Consent, Licence
from controlplane.config import ControlPlaneSettings
from controlplane.enrolment import Enrolled
from controlplane.enrolment_request import Details, Request
from controlplane.intake import Clip
from controlplane.policy import Principal, VoiceScope
from edge.dialect import Edge
from runtime.media import PreflightLimits

REFERENCE_S_MIN = 5.0
REFERENCE_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Cloning:
    """What is said of a new voice. idempotency_key "": not repeatable."""

    display_name: str
    details: Details
    consent: Consent
    idempotency_key: str = ""


def reference_limits(settings: ControlPlaneSettings) -> PreflightLimits:
    """The configured limits, within those of this dialect."""
    configured = settings.preflight
    longest_s = min(REFERENCE_S_MAX, configured.duration_s_fail_above)
    shortest_s = min(max(REFERENCE_S_MIN, configured.duration_s_fail_below), longest_s)
    return PreflightLimits(
        **{
            **configured.model_dump(),
            "duration_s_fail_below": shortest_s,
            "duration_s_warn_below": min(max(shortest_s, configured.duration_s_warn_below), longest_s),
            "duration_s_fail_above": longest_s,
        }
    )


async def clone(edge: Edge, principal: Principal, said: Cloning, *, reference: Clip, consent: Clip) -> Enrolled:
    """Clone a voice for its owner alone. Raises what `Enrolment.enrol` does."""
    # A key that stands for no user has nobody whose own the voice could be: it is the tenant's.
    scope = VoiceScope.TENANT if principal.user_id is None else VoiceScope.USER
    return await edge.core.enrolment.enrol(
        principal,
        Request(
            voice_id="",
            label=said.display_name,
            consent=said.consent,
            idempotency_key=said.idempotency_key,
            clips=(reference, replace(consent, is_consent=True)),
            scope=scope,
            details=said.details,
            preflight=reference_limits(edge.settings),
        ),
    )


async def take_in(
    edge: Edge, principal: Principal, label: str, details: Details, licence: Licence, *, reference: Clip, turn: str
) -> Enrolled:
    """Import a global voice under a licence. Raises what `Enrolment.enrol` does."""
    return await edge.core.enrolment.enrol(
        principal,
        Request(
            voice_id="",
            label=label,
            consent=Consent(),
            idempotency_key=turn,
            clips=(reference,),
            scope=VoiceScope.GLOBAL,
            licence=licence,
            details=details,
            preflight=reference_limits(edge.settings),
        ),
    )
