"""`python -m controlplane`: the daemon without the command line around it; same flags as `speakerd controlplane`."""

from __future__ import annotations

import os

import typer


def main() -> None:
    """Run the daemon."""
    # As speakerd.cli does, and for its reason: before gRPC is imported.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from controlplane.commands import register

    # typer's own tracebacks would show the locals of every frame, and so the keys.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    register(app)
    app()


if __name__ == "__main__":
    main()
