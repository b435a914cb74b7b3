"""Rows of jobs as callers see them, and the cursors of their lists. No I/O."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from sqlalchemy import Row

from controlplane.job_codec import decode_spec
from controlplane.job_spec import JobKind, JobSpec, JobState
from controlplane.job_view import Job, JobAsked
from controlplane.tenant_seals import JOBS, TenantSeals
from runtime.errors import InvalidRequest


def spec_of(row: Row[Any], seals: TenantSeals | None) -> JobSpec | None:
    """What a job was asked; None once that has been deleted, or cannot be opened any more."""
    if row.spec_ciphertext is None or seals is None:
        return None
    return decode_spec(seals.open(JOBS, bytes(row.spec_ciphertext), row.job_id))


def job_of(row: Row[Any], spec: JobSpec | None) -> Job:
    """A job without what it gave. spec: None where what it was asked does not matter."""
    asked = (
        None
        if spec is None
        else JobAsked(
            exclusive=spec.exclusive,
            confidence=spec.confidence,
            turn_confidence=spec.turn_confidence,
            model=spec.model,
            webhook=spec.webhook,
        )
    )
    return Job(
        job_id=row.job_id,
        tenant_id=row.tenant_id,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        created_at_s=row.created_at_s,
        updated_at_s=row.updated_at_s,
        processed_ms=int(row.processed_ms),
        duration_ms=int(row.duration_ms),
        error=row.error,
        warning=row.warning,
        asked=asked,
        expires_at_s=row.expires_at_s,
    )


def as_cursor(at_s: float, job_id: str) -> str:
    """The cursor of what comes after a job in a list."""
    return base64.urlsafe_b64encode(f"{at_s.hex()} {job_id}".encode()).rstrip(b"=").decode()


def read_cursor(cursor: str) -> tuple[float, str]:
    """Where a cursor points. Raises InvalidRequest."""
    try:
        said = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode()
        at_s, _, job_id = said.partition(" ")
        return float.fromhex(at_s), job_id
    except (ValueError, UnicodeError, OverflowError, binascii.Error):
        raise InvalidRequest("cursor: send the one that the page before came with") from None
