"""Whether a node serves, names and accepts: its lease and its draining, seen as one.

What always holds: names are given only while the guard allows it; a node that drains never stops draining.
"""

from __future__ import annotations

from runtime.errors import Unavailable
from runtime.lease import HolderState, Lease, LeaseState

NodeState = HolderState


class Standing:
    """lease: None on a standalone node, which always may name."""

    def __init__(self, lease: Lease | None) -> None:
        self.lease = lease
        self.draining = False

    def __repr__(self) -> str:
        return f"Standing({self.state.name}, {self.lease!r})"

    @property
    def state(self) -> NodeState:
        """What the node is now."""
        if self.draining:
            return NodeState.DRAINING
        if self.lease is None or self.lease.allows():
            return NodeState.SERVING
        return NodeState.JOINING if self.lease.state is LeaseState.JOINING else NodeState.FENCED

    def allows(self) -> bool:
        """Whether anybody may be named at this moment. The guard of every result."""
        return self.lease is None or self.lease.allows()

    def require_serving(self) -> None:
        """Raises Unavailable unless new streams and files are accepted."""
        match self.state:
            case NodeState.SERVING:
                return
            case NodeState.DRAINING:
                raise Unavailable("this node is stopping: place the stream on another", retry_after_s=1.0)
            case NodeState.JOINING | NodeState.FENCED:
                raise Unavailable("this node has no lease of the fleet yet: try another", retry_after_s=2.0)
