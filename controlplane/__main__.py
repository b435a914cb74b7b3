"""`python -m controlplane`: the daemon without the command line around it; same flags as `speakerd controlplane`."""

from __future__ import annotations

import typer

from controlplane.commands import register


def main() -> None:
    """Run the daemon."""
    app = typer.Typer(add_completion=False)
    register(app)
    app()


if __name__ == "__main__":
    main()
