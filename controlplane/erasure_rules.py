"""When a voice is erased: pure decisions on the leases as they stand in one transaction. No I/O.

What always holds: nothing but a holder's own word (its cursor, or that it joined later, holding nothing) or its silence
beyond its lease ends the wait for it; where a voice was warm, as Redis or anybody remembers it, is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controlplane.lease_rules import NODE, Lease

IsSilent = Callable[[Lease], bool]


@dataclass(frozen=True, slots=True)
class Settlement:
    """Nobody is waited for any more. silent: those to be fenced in the same transaction."""

    applied: tuple[Lease, ...]
    silent: tuple[Lease, ...]


class ErasureRules:
    """The decisions. Each method is one rule."""

    def __repr__(self) -> str:
        return "ErasureRules()"

    def waited_for(self, holders: Sequence[Lease], revision: int) -> list[Lease]:
        """The holders that have not said that they applied a revision."""
        return [lease for lease in holders if not lease.has_applied(revision)]

    def to_push(self, holders: Sequence[Lease], revision: int, is_silent: IsSilent) -> list[Lease]:
        """Whom to send an eviction. The superseded are waited for and not spoken to: another has their address.

        Relays have none: they look into the log themselves.
        """
        return [
            lease
            for lease in self.waited_for(holders, revision)
            if lease.kind == NODE and not lease.superseded and not is_silent(lease)
        ]

    def settlement(self, holders: Sequence[Lease], revision: int, is_silent: IsSilent) -> Settlement | None:
        """The end of an erasure, or None while somebody is waited for. holders: every lease that is not fenced."""
        late = self.waited_for(holders, revision)
        if not all(is_silent(lease) for lease in late):
            return None
        behind = {lease.incarnation for lease in late}
        return Settlement(tuple(lease for lease in holders if lease.incarnation not in behind), tuple(late))
