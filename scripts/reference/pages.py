"""Which pages of the documentation are generated, and of what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from scripts.reference.command_line import command_line_page
from scripts.reference.configuration import configuration_page
from scripts.reference.contract import contract_page
from scripts.reference.errors import errors_page
from scripts.reference.http import Document, http_page, published

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"


def offline_pages() -> Iterator[tuple[str, str]]:
    """The pages that need no daemon: where each lies in docs/, and its text."""
    yield "reference/grpc.md", contract_page(ROOT)
    yield "reference/settings.md", configuration_page()
    yield "reference/command-line.md", command_line_page()
    yield "reference/errors.md", errors_page()


def http_pages(documents: Mapping[str, Document]) -> Iterator[tuple[str, str]]:
    """The pages of published documents."""
    for name, document in documents.items():
        yield f"reference/http-{name}.md", http_page(name, document)


def every_page() -> dict[str, str]:
    """All of them. A control plane is started for those of HTTP."""
    return {**dict(offline_pages()), **dict(http_pages(published()))}
