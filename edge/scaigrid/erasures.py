"""An erasure as these dialects tell it."""

from __future__ import annotations

from pydantic import BaseModel, Field

from controlplane.erasure_rows import Asking, Erasure
from controlplane.policy import Principal, VoiceScope
from edge.dialect import Edge
from edge.scaigrid.times import instant, maybe_instant
from runtime.errors import Denied

ERASE_WAIT_S = 4.0
"""How long a deletion waits for its proof. Clients give up after five seconds where nobody told them otherwise."""


class Erased(BaseModel):
    """What became of a deletion. state `erasing`: it holds already, and its proof is still awaited."""

    audit_id: str
    state: str = Field(description="erasing, until it is proven of every node; then erased.")
    blob_bytes_deleted: int
    warm_replicas_evicted: int
    error_summary: dict[str, str] = Field(description="By node: why it was not heard from. Empty when all went well.")


class ErasureBody(Erased):
    """A row of the erasure audit."""

    voice_id: str
    trigger: str
    trigger_user: str
    source: str
    requested_at: str
    completed_at: str | None
    residual_node_ids: list[str] = Field(description="Nodes that may hold it in memory until they wake.")


def asking_of(principal: Principal, trigger: str | None = None) -> Asking:
    """Who asks for a deletion over HTTP."""
    asking = Asking(trigger_user=principal.user_id or f"key:{principal.key_id}")
    return asking if trigger is None else Asking(trigger=trigger, trigger_user=asking.trigger_user)


async def erase(edge: Edge, principal: Principal, voice_id: str) -> Erasure:
    """Erase a voice of a user's or a tenant's. Raises NotFound, Denied also for a global one."""
    voice = await edge.core.library.seen(principal, voice_id)
    if voice.scope is VoiceScope.GLOBAL:
        raise Denied("a global voice ends with its licence: an administrator of the platform says which way")
    return await edge.core.erasures.erase(principal, voice_id, asking=asking_of(principal), wait_s_max=ERASE_WAIT_S)


def erased(erasure: Erasure) -> Erased:
    """What became of a deletion."""
    return Erased(
        audit_id=erasure.audit_id,
        state=erasure.state,
        blob_bytes_deleted=erasure.blob_bytes_deleted,
        warm_replicas_evicted=erasure.replicas_evicted,
        error_summary=_errors(erasure),
    )


def erasure_body(erasure: Erasure) -> ErasureBody:
    """A row of the audit."""
    return ErasureBody(
        **erased(erasure).model_dump(),
        voice_id=erasure.voice.voice_id,
        trigger=erasure.asking.trigger,
        trigger_user=erasure.asking.trigger_user,
        source=erasure.asking.source,
        requested_at=instant(erasure.requested_at_s),
        completed_at=maybe_instant(erasure.erased_at_s),
        residual_node_ids=list(erasure.residual_node_ids),
    )


def _errors(erasure: Erasure) -> dict[str, str]:
    return {node.node_id: node.error or "not evicted" for node in erasure.nodes if not node.ok}
