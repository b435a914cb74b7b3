"""`python -m node`: the node's command alone."""

from __future__ import annotations

import typer

from node.commands import register

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    register(app)
    app()
