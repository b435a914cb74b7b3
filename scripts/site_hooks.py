"""What MkDocs does to a page before it reads it (`hooks` of mkdocs.yml).

A block of lines that a test runs has a name behind its language, ```bash enrol. Markdown allows that, and the extension
that draws blocks does not know it: the name is for the test, and goes.
"""

from __future__ import annotations

import re
from typing import Any

_NAMED = re.compile(r"^(```\w+)[ \t]+[\w-]+$", re.MULTILINE)


def on_page_markdown(markdown: str, **_page: Any) -> str:
    """The page as it is to be read."""
    return _NAMED.sub(r"\1", markdown)
