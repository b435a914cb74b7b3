"""The daemon as a process: control plane, edge where it has one, until a signal.

Prints one line on stdout when it serves, `ready http=http://HOST:PORT grpc=HOST:PORT`; logs go to stderr. The edge
stands above this package and is therefore found by its entry point, not imported.
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import entry_points

from controlplane.app import ControlPlane, HttpBuilder
from controlplane.config import ControlPlaneSettings
from runtime.clock import SystemClock
from runtime.errors import Unavailable
from runtime.lifecycle import Part, run_daemon

HTTP_GROUP = "speakerd.http"


def find_http() -> HttpBuilder:
    """The installed edge. Raises Unavailable when there is none."""
    for point in entry_points(group=HTTP_GROUP):
        builder: HttpBuilder = point.load()
        return builder
    raise Unavailable("no HTTP edge is installed: pip install speakerd[controlplane]")


def run(settings: ControlPlaneSettings, http: HttpBuilder | None) -> int:
    """Run the daemon until a signal; its exit code. http: the edge, None without one."""
    # Database, recordings, Redis: what we and our children write is our user's alone, whatever the folder permits.
    os.umask(0o077)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(settings, http))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings, http))


async def serve(settings: ControlPlaneSettings, http: HttpBuilder | None) -> int:
    """Run the daemon in the loop that runs; its exit code."""
    plane = ControlPlane(settings, SystemClock())
    edge = None if http is None else http(plane)

    def ready() -> None:
        plane.tell_started()
        said = [] if edge is None else [f"http={edge.url}"]
        if "grpc" not in settings.roles:
            said.append(f"health={plane.grpc_address}")
        else:
            said.append(f"grpc={plane.grpc_address}")
            if plane.fleet_address != plane.grpc_address:
                said.append(f"fleet={plane.fleet_address}")
        if plane.metrics_address:
            said.append(f"metrics={plane.metrics_address}")
        print(" ".join(("ready", *said)), flush=True)

    parts: list[Part] = [plane] if edge is None else [plane, edge]
    with plane.health.watchdog(settings.stall_s):
        return await run_daemon(parts, drain_s=settings.drain_s, ready=ready)
