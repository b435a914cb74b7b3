"""A small fleet on this machine: one control plane and its nodes, as children that are started again when they die.

In: a data folder and where to listen. Out: endpoints, once a node serves. What always holds: one fleet a data folder;
nodes stop before the control plane; a child that keeps dying ends the fleet rather than being started for ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from speakerd.channel import open_channel
from speakerd.cli.child import Child
from speakerd.cli.connection import ENDPOINTS_FILE, LOCK_FILE, Endpoints, write_endpoints, write_plan
from speakerd.errors import SpeakerdError

CONTROLPLANE_READY_S = 60.0
NODE_READY_S = 180.0  # loading an engine from a cold disk takes its time
NODE_SERVING_S = 60.0
STOP_BEYOND_DRAIN_S = 10.0
RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0
BACKOFF_FIRST_S = 0.5
LOCK_TRIES = 10
LOCK_PAUSE_S = 0.02  # whoever asks whether we run holds the lock for a moment, too
UNSPECIFIED = ("", "0.0.0.0", "[::]", "*")  # noqa: S104 - refused, not bound


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What to run. Addresses are "host:port", port 0 a free one; verbose sends the children's logs to our stderr."""

    data: Path
    http: str = "127.0.0.1:0"
    grpc: str = "127.0.0.1:0"
    nodes: int = 1
    bundle: str | None = None
    calibration: Path | None = None
    device: str | None = None
    streams_max: int | None = None
    drain_s: float = 10.0
    insecure: bool = False
    verbose: bool = False


class Fleet:
    """A running fleet, as an asynchronous context. Raises SpeakerdError when it cannot be brought up."""

    def __init__(self, plan: FleetPlan, *, say: Callable[[str], None] = lambda text: None) -> None:
        self._plan = plan
        self._say = say
        self._lock: IO[str] | None = None
        self._controlplane = self._child("control plane", "controlplane.log")
        self._nodes = [self._child(f"node {number}", f"node-{number}.log") for number in range(plan.nodes)]
        self._watching: list[asyncio.Task[None]] = []
        self._endpoints: Endpoints | None = None
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"Fleet({self._plan.data}, {self._controlplane!r}, {self._nodes!r})"

    @property
    def endpoints(self) -> Endpoints:
        """Where it serves."""
        assert self._endpoints is not None, "a fleet that was entered"
        return self._endpoints

    async def __aenter__(self) -> Self:
        if self._plan.grpc.rpartition(":")[0] in UNSPECIFIED:
            raise SpeakerdError(
                "invalid", f"--grpc {self._plan.grpc}: name an address of this machine that clients can dial"
            )
        self._lock = _lock_data(self._plan.data)
        # One that was killed left them; in a container the next one has its process id.
        (self._plan.data / ENDPOINTS_FILE).unlink(missing_ok=True)
        try:
            write_plan(self._plan.data, self._said())
            self._say("starting the control plane")
            await self._start_controlplane()
            self._say("loading the engine")
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._plan.nodes):
                    tasks.create_task(self._start_node(number))
        except BaseException as error:
            await self._stop()
            if isinstance(error, BaseExceptionGroup):
                raise error.exceptions[0] from None
            raise
        self._watching = [asyncio.create_task(self._keep(self._controlplane, self._start_controlplane))]
        for number, node in enumerate(self._nodes):
            self._watching.append(asyncio.create_task(self._keep(node, partial(self._start_node, number))))
        write_endpoints(self._plan.data, self.endpoints)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def failed(self) -> str:
        """Wait until a child has died once too often; says which and why."""
        return await asyncio.shield(self._failed)

    def hurry(self) -> None:
        """Stop waiting for streams to end: a second signal tells the nodes not to drain."""
        for child in (*self._nodes, self._controlplane):
            child.signal(signal.SIGTERM)

    def _said(self) -> dict[str, str]:
        plan = self._plan
        said = {"http": plan.http, "grpc": plan.grpc, "bundle": plan.bundle, "device": plan.device}
        return {name: value for name, value in said.items() if value is not None}

    def _child(self, name: str, log: str) -> Child:
        return Child(name, None if self._plan.verbose else self._plan.data / "logs" / log)

    async def _start_controlplane(self) -> None:
        # Started again, it takes the addresses that it had: nodes and clients know those.
        http = self._endpoints.http.removeprefix("http://") if self._endpoints else self._plan.http
        grpc = self._endpoints.grpc if self._endpoints else self._plan.grpc
        arguments = ["controlplane", "--data", str(self._plan.data), "--http", http, "--grpc", grpc]
        arguments += ["--insecure"] if self._plan.insecure else []
        ready = await self._controlplane.start(arguments, bound_s=CONTROLPLANE_READY_S)
        self._endpoints = Endpoints(http=ready["http"], grpc=ready["grpc"], pid=os.getpid())

    async def _start_node(self, number: int) -> None:
        # Clients dial nodes where they dial the control plane: streams go straight to them.
        host = self.endpoints.grpc.rpartition(":")[0]
        arguments = ["node", "--listen", f"{host}:0", "--metrics", "127.0.0.1:0", "--node-id", f"node-{number}"]
        arguments += ["--insecure"] if self._plan.insecure else []
        arguments += ["--controlplane", self.endpoints.grpc, "--fleet-key-file", str(self._plan.data / "fleet.key")]
        arguments += ["--drain-s", str(self._plan.drain_s)]
        for flag, value in (
            ("--bundle", self._plan.bundle),
            ("--calibration", self._plan.calibration),
            ("--device", self._plan.device),
            ("--streams-max", self._plan.streams_max),
        ):
            arguments += [flag, str(value)] if value is not None else []
        ready = await self._nodes[number].start(arguments, bound_s=NODE_READY_S)
        await wait_serving(ready["grpc"], bound_s=NODE_SERVING_S)

    async def _keep(self, child: Child, start: Callable[[], Awaitable[None]]) -> None:
        """Start a child again whenever it ends, with growing pauses, up to a bound."""
        deaths: deque[float] = deque(maxlen=RESTARTS_MAX)
        while True:
            code = await child.wait()
            now_s = time.monotonic()
            if len(deaths) == RESTARTS_MAX and now_s - deaths[0] < RESTARTS_WINDOW_S:
                self._fail(f"the {child.name} ended {RESTARTS_MAX + 1} times within {RESTARTS_WINDOW_S:.0f} s")
                return
            recent = sum(now_s - death < RESTARTS_WINDOW_S for death in deaths)
            deaths.append(now_s)
            self._say(f"the {child.name} ended (exit code {code}): starting it again")
            await asyncio.sleep(BACKOFF_FIRST_S * 2**recent)
            try:
                await start()
            except SpeakerdError as error:
                self._say(str(error))

    def _fail(self, reason: str) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)

    async def _stop(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        bound_s = self._plan.drain_s + STOP_BEYOND_DRAIN_S
        await asyncio.gather(*(node.stop(bound_s=bound_s) for node in self._nodes))
        await self._controlplane.stop(bound_s=bound_s)
        (self._plan.data / ENDPOINTS_FILE).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


async def wait_serving(address: str, *, bound_s: float) -> None:
    """Wait until a daemon's health says "ready". Raises SpeakerdError after the bound."""
    from grpc import aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    channel = open_channel(address)
    try:
        async with asyncio.timeout(bound_s):
            health: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs know nothing of Watch
            async for answer in health.Watch(health_pb2.HealthCheckRequest(service="ready")):
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
    except (TimeoutError, aio.AioRpcError):
        pass
    finally:
        await channel.close()
    raise SpeakerdError("timeout", f"the node at {address} did not begin to serve within {bound_s:.0f} s: see its log")


def _lock_data(data: Path) -> IO[str]:
    """Hold the data folder for ourselves for as long as the file is open."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (data / LOCK_FILE).open("w")
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return lock
    lock.close()
    raise SpeakerdError("conflict", f"`speakerd up` is running for {data} already: stop it, or say --data")
