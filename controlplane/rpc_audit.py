"""speakerd.v1.Audit on the wire: translates, makes one call, translates back."""

from __future__ import annotations

import time
from typing import Any

from grpc import aio

from controlplane.auditing import Auditing
from controlplane.erasure import Erasures
from controlplane.identity import Identity
from controlplane.people_wire import erasure_on_the_wire, timestamp
from controlplane.scopes import AUDIT_READ
from runtime.errors import InvalidRequest
from runtime.grpc_server import bearer
from speakerd.v1 import audit_pb2, audit_pb2_grpc, people_pb2

CHECKPOINTS_MAX = 10_000

Context = aio.ServicerContext[Any, Any]


class AuditServicer(audit_pb2_grpc.AuditServicer):
    """The wire side of the audit."""

    def __init__(self, identity: Identity, auditing: Auditing, erasures: Erasures) -> None:
        self._identity = identity
        self._auditing = auditing
        self._erasures = erasures

    async def VerifyAudit(self, request: audit_pb2.VerifyAuditRequest, context: Context) -> audit_pb2.AuditVerdict:  # noqa: N802
        """Check everything."""
        principal = await self._identity.principal(bearer(context), AUDIT_READ)
        if len(request.checkpoints) > CHECKPOINTS_MAX:
            raise InvalidRequest(f"checkpoints: at most {CHECKPOINTS_MAX} at a time")
        found = await self._auditing.verify(
            principal, given=list(request.checkpoints), skip_inventory=request.skip_inventory
        )
        return audit_pb2.AuditVerdict(
            ok=found.ok,
            num_rows=found.num_rows,
            head=found.head,
            num_checkpoints=found.num_checkpoints,
            num_erasures=found.num_erasures,
            problems=found.problems,
            nodes=[people_pb2.NodeOutcome(node_id=node.node_id, ok=node.ok, error=node.error) for node in found.nodes],
            notes=found.notes,
        )

    async def ListErasures(  # noqa: N802
        self, request: audit_pb2.ListErasuresRequest, context: Context
    ) -> audit_pb2.ListErasuresResponse:
        """A page of erasures."""
        principal = await self._identity.principal(bearer(context), AUDIT_READ)
        page = await self._erasures.list(principal, page_size=request.page_size, page_token=request.page_token)
        return audit_pb2.ListErasuresResponse(
            erasures=[erasure_on_the_wire(erasure) for erasure in page.erasures], next_page_token=page.token
        )

    async def AssertDestroyed(  # noqa: N802
        self, request: audit_pb2.AssertDestroyedRequest, context: Context
    ) -> audit_pb2.AssertDestroyedResponse:
        """Take an operator's word."""
        principal = await self._identity.principal(bearer(context), AUDIT_READ)
        count = await self._auditing.assert_destroyed(principal, request.node_id, request.trigger_user)
        return audit_pb2.AssertDestroyedResponse(num_erasures=count, asserted_at=timestamp(time.time()))
