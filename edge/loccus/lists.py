"""The parameters that this dialect's lists take, and the pages that they answer with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from controlplane.listings import PAGE_SIZE, Listing, Page
from edge.loccus.bodies import BODY

Item = TypeVar("Item")
View = TypeVar("View")


class PageBody(BaseModel, Generic[Item]):
    """A page of a list."""

    model_config = BODY

    items: list[Item]
    page: int
    page_size: int
    total_items: int
    total_pages: int


def page_body(page: Page[View], listing: Listing, made: Callable[[View], Item]) -> PageBody[Item]:
    """A page as it leaves."""
    return PageBody(
        items=[made(view) for view in page.items],
        page=listing.page,
        page_size=listing.page_size,
        total_items=page.total,
        total_pages=-(-page.total // listing.page_size),
    )


def _listing(
    *,
    page: Annotated[int, Query(ge=1, description="Counts from 1.")] = 1,
    page_size: Annotated[int, Query(alias="page-size", ge=1, le=100)] = PAGE_SIZE,
    sort: Annotated[str, Query(max_length=40, description="A field; - before it: the last first.")] = "",
    search: Annotated[str, Query(max_length=100, description="Part of a handle or alias.")] = "",
    after: Annotated[datetime | None, Query(description="Made later than this.")] = None,
    before: Annotated[datetime | None, Query(description="Made earlier than this.")] = None,
) -> Listing:
    return Listing(page, page_size, _sort(sort), search, _unix(after), _unix(before))


Listed = Annotated[Listing, Depends(_listing)]
"""The parameters of a list, in an endpoint's signature."""


def _sort(said: str) -> str:
    """field, -field, field:asc, field:desc."""
    field, _, order = said.partition(":")
    return f"-{field}" if order.lower() == "desc" else field if order.lower() in ("", "asc") else said


def _unix(instant: datetime | None) -> float | None:
    if instant is None:
        return None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
