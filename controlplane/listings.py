"""Pages of what lies in a space: which of it, in which order, from where on.

In: a listing as it was asked for, and all that there is. Out: one page of it. Pure. What is listed is bounded where it
is made, and its aliases are ciphertext, so that it is sought through here and not by the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from runtime.errors import InvalidRequest

PAGE_SIZE = 20
PAGE_SIZE_MAX = 100
PAGE_MAX = 1_000_000
SEARCH_CHARS_MAX = 100
Item = TypeVar("Item")
Key = Callable[[Item], float | str]


@dataclass(frozen=True, slots=True)
class Listing:
    """What is asked for. page counts from 1; sort: a field, with - before it for the last first.

    search: part of a handle or alias, whatever its case. after, before: Unix times that bound when a thing was made;
    neither is among what is listed.
    """

    page: int = 1
    page_size: int = PAGE_SIZE
    sort: str = ""
    search: str = ""
    after_s: float | None = None
    before_s: float | None = None

    def require_valid(self, fields: Sequence[str]) -> None:
        """Raises InvalidRequest, naming what is wrong. fields: what may be sorted by."""
        if not 1 <= self.page <= PAGE_MAX:
            raise InvalidRequest(f"page: 1 to {PAGE_MAX}")
        if not 1 <= self.page_size <= PAGE_SIZE_MAX:
            raise InvalidRequest(f"page-size: 1 to {PAGE_SIZE_MAX}")
        if self.sort and self.sort.removeprefix("-") not in fields:
            raise InvalidRequest(f"sort: one of {', '.join(fields)}, with - before it for the last first")
        if len(self.search) > SEARCH_CHARS_MAX:
            raise InvalidRequest(f"search: at most {SEARCH_CHARS_MAX} characters")

    @property
    def offset(self) -> int:
        """How many come before the page."""
        return (self.page - 1) * self.page_size

    @property
    def is_descending(self) -> bool:
        """Whether the last come first."""
        return self.sort.startswith("-")

    @property
    def field(self) -> str:
        """What is sorted by."""
        return self.sort.removeprefix("-")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A page, and how many there are in all."""

    items: tuple[Item, ...]
    total: int


def paged(
    items: Sequence[Item],
    listing: Listing,
    *,
    keys: dict[str, Key[Item]],
    created_at_s: Callable[[Item], float],
    words: Callable[[Item], Sequence[str]],
) -> Page[Item]:
    """The page of these. keys: what may be sorted by; the first is the order when nothing is said."""
    listing.require_valid(tuple(keys))
    sought = listing.search.casefold()
    found = [
        item
        for item in items
        if (listing.after_s is None or created_at_s(item) > listing.after_s)
        and (listing.before_s is None or created_at_s(item) < listing.before_s)
        and (not sought or any(sought in word.casefold() for word in words(item)))
    ]
    key = keys[listing.field or next(iter(keys))]
    found.sort(key=key, reverse=listing.is_descending)
    return Page(tuple(found[listing.offset : listing.offset + listing.page_size]), len(found))
