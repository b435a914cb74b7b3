"""What the fleet's decisions stand on, as rows of one transaction: the seam between them and where rows are kept.

SQL implements it (`controlplane.leases`), and so does a table in memory, under which the simulator runs the very code
that the daemons run; one suite of tests holds the two to each other. What a write block does is seen by others whole,
when it ends, or never.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from controlplane.holdings import SealedHolding
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import Lease


@dataclass(frozen=True, slots=True)
class Head:
    """What rises by one, and the epoch, which a restored backup changes."""

    revision: int
    incarnation: int
    epoch: str


class LeaseRows(Protocol):
    """Leases. A row is written whole; one that was fenced stays so."""

    async def find(self, incarnation: int) -> Lease | None:
        """An incarnation that is not fenced, locked until the transaction ends if it writes."""
        ...

    async def holders(self) -> list[Lease]:
        """Every incarnation that is not fenced, oldest first, locked until the transaction ends if it writes."""
        ...

    async def of_node(self, node_id: str) -> list[Lease]:
        """Every incarnation of a node id, the fenced ones that are still kept among them."""
        ...

    async def add(self, lease: Lease) -> None:
        """A new incarnation: the next one."""
        ...

    async def put(self, lease: Lease) -> None:
        """Write a row that is there."""
        ...

    async def find_all(self, incarnations: Collection[int]) -> list[Lease]:
        """Those of some incarnations that are not fenced, oldest first, locked as by `find`."""
        ...

    async def put_all(self, leases: Sequence[Lease]) -> None:
        """Write rows that are there."""
        ...


class LogRows(Protocol):
    """The log's ends, and now."""

    async def now_s(self) -> float:
        """Now, on the database's clock."""
        ...

    async def head(self) -> Head:
        """The last of everything."""
        ...

    async def locked_head(self) -> Head:
        """The same, locked until the transaction ends: first of all, wherever something rises by one."""
        ...

    async def floor(self) -> int:
        """The last revision that was trimmed from the log; 0 while it is whole."""
        ...

    async def unapplied_since_s(self, cursor: int) -> float | None:
        """When, on the database's clock, the first eviction after a cursor was asked for; None: there is none."""
        ...


class HeldRows(Protocol):
    """What nodes of a model should hold."""

    async def held_after(self, model: str, after: VoiceAddress | None, limit: int) -> list[SealedHolding]:
        """A page of all of it, by address; after: the last voice of the page before."""
        ...

    async def changes_after(self, cursor: int, model: str, limit: int) -> list[SealedHolding]:
        """The next entries of the log."""
        ...

    async def oldest_unproven(self) -> int | None:
        """The first revision whose erasure is not proven yet; None: there is none."""
        ...

    async def settle_pending(self, model: str, cursor: int, now_wall_s: float) -> int:
        """Voices that a node of this model holds are pending no more. Returns how many."""
        ...


class FleetRows(LeaseRows, LogRows, HeldRows, Protocol):
    """All of them, in one transaction."""


class FleetTables(Protocol):
    """Gives out transactions. Raises Unavailable when the database is away."""

    def read(self) -> AbstractAsyncContextManager[FleetRows]:
        """One consistent state."""
        ...

    def write(self) -> AbstractAsyncContextManager[FleetRows]:
        """A transaction that commits when the block ends, and leaves nothing when it raises."""
        ...
