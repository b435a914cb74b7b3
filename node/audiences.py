"""For whom a voice is, and whom a stream may hear of: the words that a control plane gives to both.

A voice has one audience: its tenant ("acme"), one user of it ("acme/u-7"), or everybody ("global"). A stream has a few.
What always holds, whatever a control plane says by mistake: a voice of one tenant is never given the audience of
another, and a stream never hears of another tenant's.
"""

from __future__ import annotations

from runtime.errors import InvalidRequest

GLOBAL = "global"
"""The tenant that global voices lie under, and their audience."""
AUDIENCES_MAX = 16


def is_own_audience(tenant_id: str, audience: str) -> bool:
    """Whether a tenant's voice may be given this audience; "" is the tenant itself."""
    return audience in ("", tenant_id) or audience.startswith(f"{tenant_id}/")


def require_own_audience(tenant_id: str, audience: str) -> None:
    """Raises InvalidRequest where a voice is given the audience of another tenant."""
    if not is_own_audience(tenant_id, audience):
        raise InvalidRequest("audience: a voice is for its own tenant, or a user of it")


def require_heard_audience(tenant_id: str, audience: str) -> None:
    """Raises InvalidRequest where a tenant's stream would hear of another tenant's voices."""
    if audience != GLOBAL and not (audience and is_own_audience(tenant_id, audience)):
        raise InvalidRequest("audiences: those of the tenant, of users of it, and `global`")
