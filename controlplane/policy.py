"""Who may see, use, change, share, erase and export which voice. One place, pure; everything asks here.

In: who calls and what a voice is. Out: a verdict. What always holds: a voice of another tenant is hidden, whoever asks,
unless it is global; what is hidden reads exactly as what is absent; a voice of one user is used for nobody else.
`controlplane.voice_lookup` says the same in SQL, and a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from controlplane.scopes import ADMIN, PLATFORM
from runtime.errors import Denied

GLOBAL_TENANT = "global"
"""The tenant that global voices lie under. It has no keys, and no tenant of that name can be made."""


class VoiceScope(Enum):
    """For whom a voice is."""

    USER = "user"  # for its owner alone
    TENANT = "tenant"  # for everybody of its tenant
    GLOBAL = "global"  # for everybody, by licence


class Right(Enum):
    """What may be done with a voice."""

    SEE = "see"  # read and list it
    USE = "use"  # match against it
    CHANGE = "change"  # enrol anew, add to it, rename it, take consent back
    SHARE = "share"  # give it to the tenant
    ERASE = "erase"
    EXPORT = "export"  # all that is held on the person


class Verdict(Enum):
    """What the policy says."""

    ALLOWED = "allowed"
    DENIED = "denied"  # it may be seen, and not this
    HIDDEN = "hidden"  # it is not there


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. scopes: with all that they include. user_id None: a service of the tenant."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    user_id: str | None = None

    @property
    def is_admin(self) -> bool:
        """Whether it administers its tenant."""
        return ADMIN in self.scopes

    @property
    def is_super(self) -> bool:
        """Whether it administers the platform: tenants, and global voices."""
        return PLATFORM in self.scopes

    def require(self, scope: str) -> None:
        """Raises Denied when the key does not carry the scope."""
        # What an administrator has of their own tenant is among the scopes already; the platform's is not.
        if scope not in self.scopes:
            raise Denied(f"this API key lacks the scope {scope}")


@dataclass(frozen=True, slots=True)
class VoiceFacts:
    """What the policy asks of a voice. owner_user_id None: it belongs to the tenant."""

    tenant_id: str
    scope: VoiceScope
    owner_user_id: str | None = None


def decide(principal: Principal, voice: VoiceFacts, right: Right) -> Verdict:
    """Whether a caller has a right on a voice; the scopes of its key are asked for beside this."""
    if voice.scope is VoiceScope.GLOBAL:
        if right in (Right.SEE, Right.USE) or principal.is_super:
            return Verdict.ALLOWED
        return Verdict.DENIED
    if voice.tenant_id != principal.tenant_id:
        return Verdict.HIDDEN
    is_owner = principal.user_id is not None and principal.user_id == voice.owner_user_id
    if voice.scope is VoiceScope.USER and not is_owner and not principal.is_admin:
        return Verdict.HIDDEN
    if right is Right.SEE:
        return Verdict.ALLOWED
    if right is Right.USE:
        # An administrator may look after another's voice, not match against it.
        return Verdict.ALLOWED if voice.scope is VoiceScope.TENANT or is_owner else Verdict.DENIED
    if right is Right.EXPORT:
        return Verdict.ALLOWED if principal.is_admin else Verdict.DENIED
    is_nobodys = voice.owner_user_id is None
    return Verdict.ALLOWED if is_owner or is_nobodys or principal.is_admin else Verdict.DENIED


def audience_of(voice: VoiceFacts) -> str:
    """The one audience that a voice is for, as nodes are told: they match it for streams that carry this word."""
    if voice.scope is VoiceScope.GLOBAL:
        return GLOBAL_TENANT
    if voice.scope is VoiceScope.USER:
        return f"{voice.tenant_id}/{voice.owner_user_id}"
    return voice.tenant_id


def audiences_of(principal: Principal) -> tuple[str, ...]:
    """The audiences whose voices a caller's streams and files are matched against.

    Neither tenant ids nor user ids hold a slash, so that no two audiences are one word.
    """
    own = () if principal.user_id is None else (f"{principal.tenant_id}/{principal.user_id}",)
    return (principal.tenant_id, *own, GLOBAL_TENANT)


def scope_of_new(principal: Principal, asked: VoiceScope) -> VoiceFacts:
    """What a new voice of a caller is. Raises Denied."""
    if asked is VoiceScope.GLOBAL:
        if not principal.is_super:
            raise Denied("scope: a global voice is enrolled by an administrator of the platform, under a licence")
        return VoiceFacts(GLOBAL_TENANT, asked)
    if asked is VoiceScope.USER and principal.user_id is None:
        raise Denied("scope: this API key stands for no user, so it has no voices of its own; use a user's key")
    return VoiceFacts(principal.tenant_id, asked, principal.user_id)


def may_grant(principal: Principal, scopes: Collection[str]) -> bool:
    """Whether a caller may give a key these scopes: an administrator, all but what is more than its own."""
    return principal.is_super or (principal.is_admin and PLATFORM not in scopes)
