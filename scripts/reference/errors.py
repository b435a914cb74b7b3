"""The reference of errors, from the tables of runtime/errors and of every dialect.

What always holds: each cause has a row with its status in gRPC, and one with its status and code in each dialect.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from edge.app import DIALECTS
from edge.failures import Failure
from runtime import errors
from runtime.errors import GRPC_STATUS, HTTP_STATUS, Cause
from scripts.reference.markdown import code, page, table

INTRO = """
Whatever goes wrong has one of these causes. The text beside it says what happened and what mends it; it never holds a
name, a voice or a key, and is fit to be shown and logged.

Over gRPC the cause travels as the status below, and in the trailer `speakerd-error-bin` in full, with `retry_after_ms`
where waiting helps. The command line prints the text on stderr and exits with 1 (2 where the command itself cannot be
understood). Over HTTP each dialect has its own envelope, for every error, those of unknown paths and of faults of ours
included.
""".strip()

TRY_AGAIN = """
## What to do

`overloaded` and `unavailable` pass: try again, after `retry_after_ms` or `Retry-After` where there is one, else with
growing pauses. `timeout` may have been done all the same: repeat what changes something with an `Idempotency-Key`, or
read first. `stale` means that something newer is in place: read again. `internal` is our fault: the daemon's log has
the details under the request's id. All others stay what they are until the request is another.
""".strip()


def errors_page() -> str:
    """The page."""
    meaning = _meanings()
    causes = table(
        ("cause", "meaning", "gRPC", "HTTP"),
        (
            (code(cause.value), meaning[cause.name], code(GRPC_STATUS[cause].name), str(HTTP_STATUS[cause]))
            for cause in Cause
        ),
    )
    heads = ("cause", *(dialect.title for dialect in DIALECTS))
    spoken = table(
        heads, ((code(cause.value), *(_answer(dialect.render, cause) for dialect in DIALECTS)) for cause in Cause)
    )
    return page(
        "Errors",
        "runtime/errors.py and edge/*",
        INTRO,
        causes,
        TRY_AGAIN,
        "## In the dialects\n\nStatus, and the code where the dialect has one. Where a call has codes of its own, the "
        "dialect's page lists them.",
        spoken,
    )


def _answer(render: Any, cause: Cause) -> str:
    status, body = render(Failure(cause, "", "id"))
    found = _codes(body)
    return f"{status} {code(found)}" if found else str(status)


def _codes(body: Any) -> str:
    if not isinstance(body, dict):
        return ""
    if isinstance(body.get("code"), str):
        return str(body["code"])
    return next(filter(None, map(_codes, body.values())), "")


def _meanings() -> dict[str, str]:
    """The comment behind each cause, which is where its meaning is written down."""
    source = inspect.getsource(errors)
    lines = source.splitlines()
    (declared,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == Cause.__name__
    )
    return {
        node.targets[0].id: lines[node.lineno - 1].partition("# ")[2]
        for node in declared.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
