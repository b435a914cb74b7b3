"""What an API key may be allowed, by name: the core's own scopes, and the dialects' permissions in terms of them.

In: the names that a key carries. Out: all that they include. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from runtime.errors import InvalidRequest

ADMIN = "admin"
PLATFORM = "platform:admin"
VOICES_READ = "voices:read"
VOICES_WRITE = "voices:write"
VOICES_SHARE = "voices:share"
VOICES_ERASE = "voices:erase"
STREAMS_OPEN = "streams:open"
JOBS_WRITE = "jobs:write"
USAGE_WRITE = "usage:write"
AUDIT_READ = "audit:read"

_OF_A_TENANT = frozenset(
    {VOICES_READ, VOICES_WRITE, VOICES_SHARE, VOICES_ERASE, STREAMS_OPEN, JOBS_WRITE, USAGE_WRITE, AUDIT_READ}
)
_DIALECTS: Mapping[str, frozenset[str]] = {
    "voice.read": frozenset({VOICES_READ}),
    "voice.write": frozenset({VOICES_READ, VOICES_WRITE, VOICES_ERASE}),
    "voice.share": frozenset({VOICES_READ, VOICES_SHARE}),
    "scaiecho:transcribe": frozenset({STREAMS_OPEN}),
    # Asked for on top of transcribe when a stream wants speakers; opens nothing by itself.
    "scaiecho:diarize": frozenset(),
    "scaiecho:enroll": frozenset({VOICES_READ, VOICES_WRITE, VOICES_ERASE}),
    "scaiecho:admin": frozenset({VOICES_READ, AUDIT_READ}),
}
_INCLUDED: Mapping[str, frozenset[str]] = {
    **{scope: frozenset() for scope in _OF_A_TENANT},
    **_DIALECTS,
    ADMIN: _OF_A_TENANT | frozenset(_DIALECTS),
    PLATFORM: frozenset({ADMIN}) | _OF_A_TENANT | frozenset(_DIALECTS),
}

SCOPES = tuple(sorted(_INCLUDED))
"""Every name that a key may carry."""


def expand(scopes: Collection[str]) -> frozenset[str]:
    """The scopes, and what they include. A name that is not known (any more) includes itself alone."""
    return frozenset(scopes).union(*(_INCLUDED.get(scope, frozenset()) for scope in scopes))


def validate(scopes: Collection[str]) -> frozenset[str]:
    """The scopes of a new key. Raises InvalidRequest, naming the wrong one."""
    if not scopes:
        raise InvalidRequest(f"scopes: name at least one of {', '.join(SCOPES)}")
    for scope in scopes:
        if scope not in _INCLUDED:
            raise InvalidRequest(f"scopes: {scope[:64]!r} is none of {', '.join(SCOPES)}")
    return frozenset(scopes)
