"""Builds every object of a node and hands it on; starts, drains and stops what it built.

In: settings. Out: a daemon's exit code. What always holds: nothing is served before the engine is loaded and warmed,
and readiness is told only while the node serves; on the way down streams are refused first, then drained, then handed
over with their last turns, and only then is anything closed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry

from node.access import Access
from node.batcher import Batcher
from node.capacity import STREAMS_MAX, measured
from node.checkpoint import CheckpointSeal
from node.config import NodeSettings
from node.decoders import Decoders
from node.device_thread import DeviceThread
from node.engine import Engine, engine_loader
from node.enrolment import ClipAnalysis
from node.files import FileRuns
from node.fleet_client import FleetMembership
from node.fleet_log import FleetLog
from node.fleet_wire import ControlPlane, Identity
from node.gauges import NodeGauges
from node.load import LoadGauge
from node.metrics import PART, NodeMetrics
from node.ports import Ports
from node.rpc_node import NodeService
from node.slots import SlotTable
from node.standing import NodeState, Standing
from node.streams import LiveStreams
from node.voice_store import VoiceStore
from runtime.clock import Clock, SystemClock
from runtime.connection_caps import ConnectionCaps
from runtime.errors import InvalidRequest
from runtime.grpc_server import GrpcHealth
from runtime.health import Health
from runtime.lease import Lease
from runtime.lifecycle import Tasks, run_daemon
from runtime.logs import configure, get_logger
from runtime.loop_watch import LoopWatch
from runtime.metrics import listening_at, registry, serve_metrics
from runtime.tls import NODE, Tls
from speakerd import __version__

STOP_GRACE_S = 2.0
CALL_S_MAX = 30.0
"""A call of the device that takes longer hangs: the longest known takes a few seconds on a slow CPU."""


async def run_node(settings: NodeSettings, *, announce: Callable[[str], None], clock: Clock | None = None) -> int:
    """Run a node until it is told to stop. announce: gets the ready line, once. Returns the exit code."""
    configure(settings.log_level, service="node")
    daemon = NodeDaemon(settings, announce=announce, clock=clock or SystemClock())
    with daemon.health.watchdog(settings.stall_s):
        return await run_daemon([daemon], drain_s=settings.drain_s)


class NodeDaemon:
    """A node, as one part of a process."""

    def __init__(self, settings: NodeSettings, *, announce: Callable[[str], None], clock: Clock) -> None:
        self._settings = settings
        self._announce = announce
        self._clock = clock
        self.health = Health()
        self._tls = settings.tls()
        # Where certificates say who somebody is, a secret that all share says nothing more.
        self._fleet_key = _read_key(settings.fleet_key_file) if settings.fleet_key_file and not self._tls else None
        if self._tls is not None and not settings.standalone:
            _require_own_name(self._tls, settings.node_id)
            settings = self._settings = settings.model_copy(update=_apart(settings))
        self._standing = Standing(None if settings.standalone else Lease(clock))
        self._exits = ExitStack()
        self._device: DeviceThread | None = None
        self._ports: Ports | None = None
        self._membership: FleetMembership | None = None
        self._tasks: Tasks | None = None
        self._told: GrpcHealth | None = None
        self._ready_line = ""  # empty once it was announced

    def __repr__(self) -> str:
        return f"NodeDaemon({self._settings.node_id}, {self._standing!r})"

    async def start(self, tasks: Tasks) -> None:
        """Load the engine, then serve."""
        settings, clock = self._settings, self._clock
        self._tasks = tasks
        calls_max = 4 * ((settings.streams_max or STREAMS_MAX) + settings.files_max) + 64
        metrics_registry = registry()
        self._metrics = NodeMetrics(metrics_registry)
        # Probes are answered from here on; everything else once there is an engine.
        metrics_port = self._serve_metrics(metrics_registry)
        self._ports = Ports(settings, self._tls)
        self._told = await self._ports.open(self.health)
        tasks.spawn("health", self._told.run())
        loader = engine_loader(settings.bundle, settings.device, settings.calibration)
        self._device = DeviceThread(loader, calls_max=calls_max)
        engine = await self._device.start()
        get_logger().info("engine.loaded", bundle=engine.bundle, model=engine.model, device=engine.device_name)
        streams_max = settings.streams_max
        if streams_max is None:
            streams_max = (await self._device.call(lambda engine: measured(engine, settings.capacity_file))).streams
        self._batcher = Batcher(
            self._device,
            engine.device.grid,
            self._metrics,
            clock,
            windows_max=engine.windows_a_batch,
            late_s=settings.late_s or None,
        )
        tasks.spawn("batcher", self._batcher.run())
        self._store = VoiceStore(
            self._device,
            embedding_dim=engine.device.grid.embedding_dim,
            timed=self._metrics.match_seconds.observe,
        )
        self._access = Access(
            node_id=settings.node_id,
            fleet_key=self._fleet_key,
            clock=clock,
            tls=None if settings.standalone else self._tls,
            lease=self._standing.lease,
            streams_apart=settings.stream_listen is not None,
        )
        self._seal = CheckpointSeal(model=engine.model, clock=clock)
        stream_slots = SlotTable(streams_max, what="stream")
        file_slots = SlotTable(settings.files_max, what="file", first_index=streams_max)
        self._load = LoadGauge(stream_slots, file_slots, self._store, self._batcher)
        self._ready_line = f"ready grpc={self._ports.bound} metrics={_host(settings.metrics)}:{metrics_port}"
        if self._ports.streams_bound:
            self._ready_line += f" streams={self._ports.streams_bound}"
        control_plane = self._control_plane(self._ports, engine.model)
        self._log = FleetLog(
            self._store,
            self._standing.lease,
            control_plane,
            evicted=lambda reason, voices: self._metrics.evict.labels(reason).inc(voices),
        )
        decoders = Decoders()
        self._streams = self._live_streams(engine, stream_slots, decoders)
        self._files = FileRuns(
            engine=engine,
            batcher=self._batcher,
            store=self._store,
            standing=self._standing,
            slots=file_slots,
            decoders=decoders,
            metrics=self._metrics,
            clock=clock,
        )
        gauges = NodeGauges(self._metrics, engine=engine, standing=self._standing, load=self._load)
        watch = LoopWatch(metrics_registry, part=PART, version=__version__, clock=clock, tls=self._tls, look=gauges)
        tasks.spawn("metrics", watch.run())
        await ConnectionCaps(self._settings.connection_caps(), watch.connections_cut).start(tasks)
        await self._serve(engine)
        if control_plane is not None:
            membership = self._membership = self._join(control_plane)
            gauges.head = lambda: membership.head
            self._membership.start(tasks)

    async def drain(self, deadline_s: float) -> None:
        """Refuse, wait for the streams, hand over those that remain."""
        self._begin_drain(deadline_s)
        await self._publish_readiness()
        await asyncio.gather(self._streams.drained(deadline_s), self._files.drained(deadline_s))

    async def stop(self) -> None:
        """Close everything."""
        if self._membership is not None:
            await self._membership.leave()
        if self._ports is not None:
            await self._ports.stop(STOP_GRACE_S)
        if self._device is not None:
            await self._device.stop()
        await asyncio.to_thread(self._exits.close)

    def _live_streams(self, engine: Engine, slots: SlotTable, decoders: Decoders) -> LiveStreams:
        steps = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._exits.callback(steps.shutdown, wait=False)
        return LiveStreams(
            node_id=self._settings.node_id,
            engine=engine,
            batcher=self._batcher,
            store=self._store,
            standing=self._standing,
            access=self._access,
            seal=self._seal,
            slots=slots,
            decoders=decoders,
            steps=steps,
            metrics=self._metrics,
            clock=self._clock,
        )

    async def _serve(self, engine: Engine) -> None:
        assert self._ports is not None
        service = NodeService(
            node_id=self._settings.node_id,
            engine=engine,
            access=self._access,
            standing=self._standing,
            store=self._store,
            log=self._log,
            clips=ClipAnalysis(self._device_thread),
            streams=self._streams,
            files=self._files,
            load=self._load,
            drain=self._drain_on_request,
            metrics=self._metrics,
        )
        self._ports.serve(service)
        device = self._device_thread
        self.health.watch("device", lambda: device.busy_s() > CALL_S_MAX)
        self.health.started(self._is_serving)
        await self._publish_readiness()

    def _control_plane(self, ports: Ports, model: str) -> ControlPlane | None:
        settings = self._settings
        if settings.controlplane is None:
            return None
        identity = Identity(
            settings.node_id, secrets.token_hex(8), ports.address, ports.stream_address, model, settings.zone
        )
        return ControlPlane(settings.controlplane, fleet_key=self._fleet_key, identity=identity, tls=self._tls)

    def _join(self, control_plane: ControlPlane) -> FleetMembership:
        assert self._standing.lease is not None
        return FleetMembership(
            control_plane,
            lease=self._standing.lease,
            standing=self._standing,
            log=self._log,
            store=self._store,
            access=self._access,
            seal=self._seal,
            load=self._load,
            clock=self._clock,
            on_change=self._publish_readiness,
        )

    def _serve_metrics(self, metrics_registry: CollectorRegistry) -> int:
        host, port = listening_at(self._settings.metrics)
        serving = serve_metrics(metrics_registry, host=host, port=port, health=self.health)
        return self._exits.enter_context(serving)

    def _is_serving(self) -> bool:
        return self._standing.state is NodeState.SERVING

    @property
    def _device_thread(self) -> DeviceThread:
        assert self._device is not None
        return self._device

    async def _publish_readiness(self) -> None:
        if self._told is not None:
            await self._told.tell()
        if self.health.is_ready() and self._ready_line:
            self._announce(self._ready_line)
            self._ready_line = ""

    def _begin_drain(self, deadline_s: float) -> int:
        self._standing.draining = True
        return self._streams.announce_drain(self._clock.wall_s() + deadline_s)

    def _drain_on_request(self, deadline_s: float | None) -> int:
        """Drain without stopping: the RPC's part."""
        assert self._tasks is not None
        bound_s = self._settings.drain_s if deadline_s is None else deadline_s
        running = self._begin_drain(bound_s)
        self._tasks.spawn("readiness", self._publish_readiness())
        self._tasks.spawn("drain-streams", self._streams.drained(bound_s))
        self._tasks.spawn("drain-files", self._files.drained(bound_s))
        return running


def _require_own_name(tls: Tls, node_id: str) -> None:
    if (tls.name.role, tls.name.id) != (NODE, node_id):
        raise InvalidRequest(
            f"the certificate is for {tls.name.role}/{tls.name.id}, and this is node/{node_id}: give its own "
            "certificate, or its --node-id"
        )


def _apart(settings: NodeSettings) -> dict[str, str]:
    """Clients have no certificates: with TLS they need a port that asks for none."""
    return {"stream_listen": settings.stream_listen or f"{_host(settings.listen)}:0"}


def _read_key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except OSError as error:
        raise InvalidRequest(f"cannot read the fleet key file {path.name}: {error.strerror}") from None
    if len(key) < 16:
        raise InvalidRequest(f"the fleet key file {path.name} holds no key")
    return key


def _host(address: str) -> str:
    return address.rpartition(":")[0]
