"""JSON bodies whose texts can be written down again.

In: a request. Out: its JSON, or InvalidFields with where a text is broken. JSON can say half of a character (an
unpaired surrogate), which no encoding has and no database takes: unless it is refused here it is a fault wherever it
ends up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeAlias

from starlette.requests import Request

from edge.failures import FIELDS_MAX, FieldError, InvalidFields

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
NAME_CHARS_MAX = 64
LOOKED_MAX = 10_000
_Chain: TypeAlias = "tuple[_Chain, str | int] | None"


class WholeTextRequest(Request):
    """A request whose JSON holds whole characters alone."""

    async def json(self) -> Any:
        """The body as JSON. Raises InvalidFields where a text of it could not be written down again."""
        said = await super().json()
        if _HALF.search(await self.body()):
            try:
                json.dumps(said, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                paths = list(islice(_broken(said), FIELDS_MAX)) or [""]
                wrong = [FieldError(path, "holds half a character: an unpaired surrogate") for path in paths]
                raise InvalidFields(*wrong) from None
        return said


def _broken(said: object) -> Iterator[str]:
    """Where texts are that no encoding has, as paths with dots; of a name that is one, where the object lies.

    Of a large body the first LOOKED_MAX values alone are looked at.
    """
    # Each with what leads to it, as a chain: paths are written for what is wrong alone, however large the rest is.
    waiting: list[tuple[_Chain, object]] = [(None, said)]
    for _ in range(LOOKED_MAX):
        if not waiting:
            return
        chain, one = waiting.pop()
        if isinstance(one, str):
            if not _is_whole(one):
                yield _path(chain)
        elif isinstance(one, list):
            waiting += [((chain, number), each) for number, each in enumerate(one[:LOOKED_MAX])]
        elif isinstance(one, dict):
            few = list(islice(one.items(), LOOKED_MAX))
            if not all(_is_whole(name) for name, _ in few):
                yield _path(chain)
            waiting += [((chain, name), each) for name, each in few if _is_whole(name)]


def _path(chain: _Chain) -> str:
    parts: list[str] = []
    while chain is not None:
        chain, part = chain
        parts.append(str(part)[:NAME_CHARS_MAX])
    return ".".join(reversed(parts))


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
