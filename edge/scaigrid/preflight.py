"""The preflight block: what was measured of a recording, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from runtime.media import Finding, SignalPreflight


class FindingBody(BaseModel):
    """One thing that is wrong: what was measured, and the threshold that it tripped, in the unit of the field."""

    code: str
    measured: float
    threshold: float
    message: str


class Preflight(BaseModel):
    """What a reference recording looks like. warnings and fail_reasons are the codes of the findings."""

    duration_ms: int
    sample_rate: int = Field(description="Hertz, of the recording as it came.")
    channels: int
    peak_dbfs: float
    snr_db: float
    voice_activity_ratio: float
    warnings: list[str]
    fail_reasons: list[str]
    findings: list[FindingBody] = Field(description="Ours: the same, with what was measured and what mends it.")


def preflight_of(measured: SignalPreflight, heard: Sequence[Finding] = ()) -> Preflight:
    """The block. heard: what a node found besides, which is told and refuses nothing."""
    warnings = (*measured.warnings, *heard)
    return Preflight(
        duration_ms=measured.duration_ms,
        sample_rate=measured.sample_rate_hz,
        channels=measured.channels,
        peak_dbfs=measured.peak_dbfs,
        snr_db=measured.snr_db,
        voice_activity_ratio=measured.voice_activity_ratio,
        warnings=list(dict.fromkeys(finding.code for finding in warnings)),
        fail_reasons=[reason.code for reason in measured.fail_reasons],
        findings=[
            FindingBody(code=finding.code, measured=finding.measured, threshold=finding.threshold, message=finding.text)
            for finding in (*measured.fail_reasons, *warnings)
        ],
    )
