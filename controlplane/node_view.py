"""A node as routing sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from controlplane.registry_schema import NODE_TTL_S

HEALTHY_S = 2.5
"""Two heartbeats and a half: one may be lost."""


class Health(Enum):
    """How lately a node was heard."""

    HEALTHY = "healthy"
    WARNING = "warning"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class NodeView:
    """What a node said of itself in its last heartbeat, and what has become of it since.

    cursor: what it has applied of the fleet log. voices: held. queued: windows that wait for the device. age_s: since
    that heartbeat. reserved: streams placed and not yet opened. faults: streams that left it as failed of late.
    doubted: it was found to hold something else than it should.
    tenants: how many of its streams are whose; of a heartbeat that came here, else empty.
    """

    node_id: str
    incarnation: int
    address: str
    model: str
    state: str
    cursor: int
    streams: int
    streams_max: int
    zone: str = ""
    files: int = 0
    files_max: int = 0
    lag_ms: int = 0
    voices: int = 0
    queued: int = 0
    doubted: bool = False
    reserved: int = 0
    faults: int = 0
    age_s: float = 0.0
    tenants: Mapping[str, int] = field(default_factory=dict)

    @property
    def health(self) -> Health:
        """How lately it was heard."""
        if self.age_s <= HEALTHY_S:
            return Health.HEALTHY
        return Health.WARNING if self.age_s <= NODE_TTL_S else Health.STALE

    @property
    def is_candidate(self) -> bool:
        """Whether streams may be placed on it, if it has room."""
        return self.state == "serving" and self.health is not Health.STALE

    @property
    def load(self) -> float:
        """Streams, opened and placed, for each slot."""
        return (self.streams + self.reserved) / self.streams_max if self.streams_max else 1.0
