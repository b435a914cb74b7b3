"""`python -m node`: the node's command alone."""

from __future__ import annotations

import os

import typer


def main() -> None:
    """Run the daemon."""
    # As speakerd.cli does, before gRPC is imported: through its fork handlers a decoder that is started hangs or dies
    # now and then while calls are under way, and a good recording is then refused as damaged.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from node.commands import register

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    register(app)
    app()


if __name__ == "__main__":
    main()
