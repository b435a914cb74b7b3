"""`speakerd node`: from flags to a running node."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import SpeakerdError
from runtime.loading import loading

SWITCH_S = 0.001
GC_THRESHOLDS = (20_000, 20, 50)
"""Streams make little garbage that counting references does not find, and looking for it takes time from all."""


def register(app: typer.Typer) -> None:
    """Add the command `node`."""
    app.command("node", help="Run a node: one device, the voices that it holds, the streams that it carries.")(node)


def node(
    *,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT of gRPC; port 0 takes a free one.")] = None,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT of /metrics.")] = None,
    stream_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT of a port of their own for streams with tickets.")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(help="HOST:PORT at which the control plane reaches this node.")
    ] = None,
    advertise_streams: Annotated[str | None, typer.Option(help="HOST:PORT at which streams reach this node.")] = None,
    node_id: Annotated[str | None, typer.Option(help="Unique in the fleet; default: node-HOSTNAME.")] = None,
    zone: Annotated[str | None, typer.Option(help="Where it runs, for clients that ask for a node nearby.")] = None,
    controlplane: Annotated[str | None, typer.Option(help="HOST:PORT of the control plane's gRPC.")] = None,
    fleet_key_file: Annotated[
        Path | None, typer.Option(help="File with the secret shared with the control plane.")
    ] = None,
    standalone: Annotated[
        bool | None, typer.Option("--standalone", help="Run without lease and control plane.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle of weights, by name or TOML file.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="File of `speakerd calibrate`, for this bundle.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, or null (no model, for tests).")] = None,
    streams_max: Annotated[
        int | None, typer.Option(help="Live streams at once, more are refused; default: measured at the start.")
    ] = None,
    capacity_file: Annotated[Path | None, typer.Option(help="File that remembers what was measured.")] = None,
    late_s: Annotated[
        float | None, typer.Option(help="Seconds after which a live window is skipped for a newer one; 0: never.")
    ] = None,
    files_max: Annotated[int | None, typer.Option(help="Files at once; more are refused.")] = None,
    drain_s: Annotated[float | None, typer.Option(help="Seconds that streams have to end on SIGTERM.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of this node, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="The fleet's authority.")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Serve plain text beyond loopback.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with a table `node`.")] = None,
) -> None:
    """Run a node until SIGTERM. Prints one line when it serves: `ready grpc=HOST:PORT metrics=HOST:PORT`, and
    `streams=HOST:PORT` where streams have a port of their own.
    """
    # Daemon code is imported by the daemon's command alone, so that other commands start fast.
    with loading():
        from node.app import run_node
        from node.config import NodeSettings
        from runtime.config import load

    # The device's thread and the steps' computing may keep the interpreter from the event loop for so long at a time.
    sys.setswitchinterval(SWITCH_S)
    _let_threads_finish()
    flags = {name: value for name, value in locals().items() if name in NodeSettings.model_fields}
    try:
        settings = load(NodeSettings, section="node", file=config, flags=flags)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            code = runner.run(run_node(settings, announce=_announce))
    except SpeakerdError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    sys.exit(code)


def _let_threads_finish() -> None:
    """On a single core, have a thread that is woken wait for its turn: measured at 8 % less CPU, and half the lag.

    Else gRPC's thread takes the core from the event loop for each message, to wake it. Threads made from now on do so.
    With several cores they have one each.
    """
    if not hasattr(os, "SCHED_BATCH") or len(os.sched_getaffinity(0)) > 1:
        return
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed: measured at a fifth more streams a core."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _announce(line: str) -> None:
    # What was loaded stays: looking through it for garbage would hold all streams up, for a tenth of a second and more.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    print(line, flush=True)
