"""What MkDocs does besides building the site (`hooks` of mkdocs.yml).

The nav may name several pages by a pattern, adr/0*.md: they come in the order of their names. A block of lines that a
test runs has a name behind its language, ```bash enrol. Markdown allows that, and the extension that draws blocks does
not know it: the name is for the test, and goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMED = re.compile(r"^(```\w+)[ \t]+[\w-]+$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """The configuration with its nav written out."""
    config.nav = list(_pages(config.nav, Path(config.docs_dir)))
    return config


def _pages(nav: list[Any], docs: Path) -> Iterator[Any]:
    for entry in nav:
        if isinstance(entry, dict):
            yield {
                title: list(_pages(inner, docs)) if isinstance(inner, list) else inner for title, inner in entry.items()
            }
        elif "*" in entry:
            yield from sorted(str(page.relative_to(docs)) for page in docs.glob(entry))
        else:
            yield entry


def on_page_markdown(markdown: str, **_page: Any) -> str:
    """The page as it is to be read."""
    return _NAMED.sub(r"\1", markdown)
