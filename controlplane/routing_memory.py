"""What this process knows of nodes and placements by itself: routing goes on from it while Redis is away or empty.

In: heartbeats heard here, what Redis said last, leases that live. Out: nodes, and reservations that count among this
process's own alone. No I/O; what is remembered has a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from controlplane.node_view import NodeView
from controlplane.registry_schema import NODE_TTL_S, SLOTS_MAX

NODES_MAX = 10_000
PLACED_MAX = 200_000


class RoutingMemory:
    """Nodes and placements, in memory."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeView] = {}
        self._heard_s: dict[str, float] = {}
        self._here_s: dict[str, float] = {}
        self._placed: OrderedDict[str, str] = OrderedDict()
        # By node, oldest first: stream -> when its reservation lapses.
        self._reserved: dict[str, dict[str, float]] = {}

    def __repr__(self) -> str:
        return f"RoutingMemory({len(self._nodes)} nodes, {len(self._placed)} placements)"

    def hear(self, node: NodeView, now_s: float) -> None:
        """A node's heartbeat came to this process."""
        before = self._nodes.get(node.node_id)
        if before is not None and before.incarnation > node.incarnation:
            return
        if before is None and len(self._nodes) >= NODES_MAX:
            return
        if before is not None and before.incarnation == node.incarnation:
            self._count_opened(node.node_id, node.streams - before.streams)
            node = replace(node, doubted=before.doubted and node.state == "serving")
        self._nodes[node.node_id] = node
        self._heard_s[node.node_id] = self._here_s[node.node_id] = now_s

    def see(self, nodes: Iterable[NodeView], now_s: float) -> None:
        """What Redis says: of nodes that other processes hear."""
        for node in nodes:
            heard_s = now_s - node.age_s
            if heard_s > self._heard_s.get(node.node_id, heard_s - 1) and len(self._nodes) < NODES_MAX:
                self._nodes[node.node_id] = node
                self._heard_s[node.node_id] = heard_s

    def vouch(self, incarnations: Collection[int], now_s: float) -> None:
        """These incarnations hold a lease: they live, whoever hears their heartbeats."""
        for node_id, node in self._nodes.items():
            if node.incarnation in incarnations:
                self._heard_s[node_id] = max(self._heard_s[node_id], now_s)

    def doubt(self, node_id: str, incarnation: int, *, doubted: bool) -> None:
        """A node was found to hold something else than it should, or no longer."""
        node = self._nodes.get(node_id)
        if node is not None and node.incarnation == incarnation:
            self._nodes[node_id] = replace(node, doubted=doubted)

    def is_doubted(self, node_id: str) -> bool:
        """Whether a node is under doubt, as far as is known here."""
        node = self._nodes.get(node_id)
        return node is not None and node.doubted

    def advance(self, node_id: str, incarnation: int, cursor: int) -> None:
        """A node acknowledged a revision."""
        node = self._nodes.get(node_id)
        if node is not None and node.incarnation == incarnation and node.cursor < cursor:
            self._nodes[node_id] = replace(node, cursor=cursor)

    def forget(self, node_id: str, incarnation: int) -> None:
        """A node left, and holds nothing."""
        node = self._nodes.get(node_id)
        if node is not None and node.incarnation <= incarnation:
            del self._nodes[node_id], self._heard_s[node_id]
            self._here_s.pop(node_id, None)
            self._reserved.pop(node_id, None)

    def talk(self, node_id: str, now_s: float) -> None:
        """A node renewed its lease at this process."""
        if node_id in self._here_s or len(self._here_s) < NODES_MAX:
            self._here_s[node_id] = now_s

    def hears(self, node_id: str, now_s: float) -> bool:
        """Whether this process is the one that a node talks to."""
        return now_s - self._here_s.get(node_id, float("-inf")) <= NODE_TTL_S

    def heard_here(self, now_s: float) -> list[NodeView]:
        """The nodes that talk to this process."""
        return [node for node in self.nodes(now_s) if self.hears(node.node_id, now_s)]

    def nodes(self, now_s: float) -> list[NodeView]:
        """All nodes that are known, with the reservations made here."""
        return [
            replace(node, age_s=max(0.0, now_s - self._heard_s[node_id]), reserved=self._num_reserved(node_id, now_s))
            for node_id, node in self._nodes.items()
        ]

    def remember(self, stream: str, node_id: str, until_s: float, slots: int = 1) -> None:
        """A stream was placed, and takes so many slots."""
        self.release(stream)
        self._placed.pop(stream, None)
        self._placed[stream] = node_id
        for slot in slots_of(stream, slots):
            self._reserved.setdefault(node_id, {})[slot] = until_s
        while len(self._placed) > PLACED_MAX:
            self.release(next(iter(self._placed)))
            self._placed.popitem(last=False)

    def release(self, stream: str) -> None:
        """A stream that was placed will not open."""
        reserved = self._reserved.get(self._placed.get(stream, ""), {})
        for slot in slots_of(stream, SLOTS_MAX):
            reserved.pop(slot, None)

    def placements(self, now_s: float) -> list[tuple[str, str, float]]:
        """Stream, node, and how long its slot is held still (0: it opened, or will not)."""
        return [
            (stream, node_id, max(0.0, self._reserved.get(node_id, {}).get(stream, 0.0) - now_s))
            for stream, node_id in self._placed.items()
        ]

    def place(
        self, stream: str, candidates: Sequence[str], hold_s: float, now_s: float, slots: int = 1
    ) -> NodeView | None:
        """Reserve slots on the first candidate with room, the stream's last node before others. None: all are full."""
        nodes = {node.node_id: node for node in self.nodes(now_s)}
        before = self._placed.get(stream)
        order = [before, *candidates] if before is not None and before in candidates else candidates
        for node_id in order:
            node = nodes.get(node_id)
            if node is None or not node.is_candidate:
                continue
            reserved = self._reserved.get(node_id, {})
            num_own = sum(reserved.get(slot, 0.0) > now_s for slot in slots_of(stream, slots))
            if node.streams + node.reserved - num_own + slots <= node.streams_max:
                self.remember(stream, node_id, now_s + hold_s, slots)
                return node
        return None

    def _num_reserved(self, node_id: str, now_s: float) -> int:
        reserved = self._reserved.get(node_id)
        if not reserved:
            return 0
        for stream in [stream for stream, until_s in reserved.items() if until_s <= now_s]:
            del reserved[stream]
        return len(reserved)

    def _count_opened(self, node_id: str, grown: int) -> None:
        # A stream that has opened is counted by the node, so as many of the oldest reservations go.
        reserved = self._reserved.get(node_id, {})
        for stream in list(reserved)[: max(0, grown)]:
            del reserved[stream]


def slots_of(stream: str, slots: int) -> list[str]:
    """The names under which a stream's slots are reserved; the first is its own."""
    return [stream, *(f"{stream}#{number}" for number in range(2, slots + 1))]
