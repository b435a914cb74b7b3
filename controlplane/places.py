"""Places for what may run side by side, bounded in all and shared between tenants.

In: a tenant that wants a place. Out: the place for the time of a `with`, or Overloaded with a hint. What always holds:
at most `total` places are taken, and one tenant never takes the last quarter of them: whoever floods a door is refused
while others still get in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import Overloaded


class Places:
    """Who holds places. what: the words of the refusal, as in "recordings"."""

    def __init__(self, what: str, total: int, *, retry_after_s: float) -> None:
        assert total >= 0
        self._what = what
        self._total = total
        self._one_tenant_max = max(1, total - total // 4)
        self._retry_after_s = retry_after_s
        self._taken_by: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Places({self._what}: {self._taken_by.total()} of {self._total})"

    @property
    def num_taken(self) -> int:
        """How many are held in all."""
        return self._taken_by.total()

    def taken_by(self, tenant_id: str) -> int:
        """How many a tenant holds."""
        return self._taken_by[tenant_id]

    @contextmanager
    def taken(self, tenant_id: str) -> Iterator[None]:
        """Hold a place. Raises Overloaded when all are taken, or all that one tenant may have."""
        if self._taken_by.total() >= self._total or self._taken_by[tenant_id] >= self._one_tenant_max:
            raise Overloaded(f"too many {self._what} are under way; try again", retry_after_s=self._retry_after_s)
        self._taken_by[tenant_id] += 1
        try:
            yield
        finally:
            self._taken_by[tenant_id] -= 1
            if not self._taken_by[tenant_id]:
                del self._taken_by[tenant_id]
