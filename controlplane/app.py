"""Builds the control plane: every object is made here and handed on.

`ControlPlane` opens the data folder, the database and Redis as the daemon starts, serves gRPC, runs the workers, and
closes everything in reverse. The HTTP edge is a part of its own, found by the shell, that is given `ControlPlane`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from grpc_health.v1 import health

from controlplane.audit_checkpoints import AuditCheckpoints
from controlplane.auditing import Auditing
from controlplane.blobs import Blobs
from controlplane.completion import Completion
from controlplane.config import ControlPlaneSettings
from controlplane.database.engine import Database, open_database
from controlplane.embedded_redis import EmbeddedRedis
from controlplane.enrolment import Enrolment
from controlplane.erasure import Erasures
from controlplane.erasure_journal import Journal
from controlplane.erasure_work import ErasureWork
from controlplane.fan_out import FanOut
from controlplane.fleet import Fleet
from controlplane.identity import Identity, ensure_admin, new_fleet_key
from controlplane.intake import Intake
from controlplane.journal_replay import open_and_replay
from controlplane.key_check import require_matching_key
from controlplane.keys import KeyRing
from controlplane.lease_rules import LeaseRules, LeaseTimes
from controlplane.leases import SqlTables
from controlplane.metrics import Metrics, declare
from controlplane.nodes import Nodes
from controlplane.orphans import sweep_orphans
from controlplane.outside import Outside, open_outside
from controlplane.placement import Placing
from controlplane.pulse import Pulse
from controlplane.registry import Registry
from controlplane.relay import Relay
from controlplane.rpc_audit import AuditServicer
from controlplane.rpc_fleet import FleetServicer
from controlplane.rpc_jobs import JobsServicer
from controlplane.rpc_people import PeopleServicer
from controlplane.rpc_streams import StreamsServicer
from controlplane.secret_files import prepare_data_folder, read_or_make_bytes, read_or_make_text
from controlplane.voices import Voices
from controlplane.wakes import listen
from controlplane.wanted import Wanting
from controlplane.warmth import Warming
from runtime.clock import Clock
from runtime.grpc_server import add_health_and_reflection, bind, new_server, set_ready
from runtime.lifecycle import Part, Tasks
from runtime.metrics import registry as metrics_registry
from speakerd.v1 import audit_pb2_grpc, fleet_pb2_grpc, jobs_pb2_grpc, people_pb2_grpc, streams_pb2_grpc

SERVICES = ("speakerd.v1.People", "speakerd.v1.Streams", "speakerd.v1.Jobs", "speakerd.v1.Audit", "speakerd.v1.Fleet")


class HttpPart(Part, Protocol):
    """The edge, as the shell sees it."""

    @property
    def url(self) -> str:
        """Where it listens, once it has started: http://HOST:PORT."""
        ...


HttpBuilder = Callable[["ControlPlane"], HttpPart]
"""What an entry point of the group `speakerd.http` is: makes the HTTP part over a control plane."""


@dataclass(frozen=True, slots=True)
class Core:
    """The use cases, once the control plane has started."""

    database: Database
    identity: Identity
    registry: Registry
    nodes: Nodes
    fleet: Fleet
    fan_out: FanOut
    library: Voices
    enrolment: Enrolment
    erasures: Erasures
    checkpoints: AuditCheckpoints
    auditing: Auditing
    completion: Completion
    placing: Placing
    relay: Relay
    blobs: Blobs


class ControlPlane:
    """The daemon without its HTTP side; a part of the lifecycle."""

    def __init__(self, settings: ControlPlaneSettings, clock: Clock) -> None:
        self.settings = settings
        self.metrics: Metrics = declare(metrics_registry())
        self.grpc_address = ""
        self.draining = False
        self._clock = clock
        self._core: Core | None = None
        self._redis: EmbeddedRedis | None = None
        self._server: aio.Server | None = None
        self._health: health.aio.HealthServicer | None = None
        self._workers: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"ControlPlane(grpc={self.grpc_address!r}, started={self._core is not None})"

    @property
    def core(self) -> Core:
        """The use cases."""
        assert self._core is not None, "asked before the control plane has started"
        return self._core

    async def start(self, tasks: Tasks) -> None:
        """Open everything, then the port: what is served is ready."""
        settings = self.settings
        prepare_data_folder(settings.data)
        keys = KeyRing(read_or_make_bytes(settings.data / "kek.key"))
        fleet_key = read_or_make_text(settings.data / "fleet.key", new_fleet_key)
        ticket_key = Ed25519PrivateKey.from_private_bytes(read_or_make_bytes(settings.data / "ticket.key"))
        database = await open_database(settings.resolved_database_url(), self._clock, lease_s=settings.lease_s)
        redis_url = settings.redis_url
        if redis_url is None:
            self._redis = EmbeddedRedis(settings.data / "redis")
            redis_url = self._redis.url
        registry = Registry(redis_url, self._clock, self.metrics)
        try:
            await require_matching_key(database, keys)
            # Before anything else can ask: what was erased since the database was backed up is erased again.
            journal, _ = await open_and_replay(
                database,
                keys,
                settings.resolved_erasure_journal(),
                self._clock,
                accept_loss=settings.accept_journal_loss,
            )
            store = open_outside(settings.resolved_audit_checkpoints())
            checkpoints = AuditCheckpoints(
                database=database,
                store=store,
                key=Ed25519PrivateKey.from_private_bytes(read_or_make_bytes(settings.data / "audit.key")),
                clock=self._clock,
                metrics=self.metrics,
            )
        except BaseException:
            await database.close()
            raise
        self._core = self._build(
            database,
            registry,
            keys,
            fleet_key=fleet_key,
            ticket_key=ticket_key,
            journal=journal,
            store=store,
            checkpoints=checkpoints,
        )
        await ensure_admin(database, settings.data / "admin.key", self._clock)
        if self._redis is not None:
            await self._redis.start(tasks)
        await sweep_orphans(database, self._core.blobs, self._clock)
        self._workers = [
            tasks.spawn("fleet.reconcile", self._core.fleet.reconcile()),
            tasks.spawn("fleet.fan_out", self._core.fan_out.run()),
            tasks.spawn("fleet.wakes", listen(redis_url, self._core.fan_out.hear)),
            tasks.spawn("redis.fill", registry.keep_filled(self._core.fan_out.silent)),
            tasks.spawn("voices.complete", self._core.completion.run()),
            tasks.spawn("erasures.prove", self._core.erasures.run()),
            tasks.spawn("audit.sign", checkpoints.run()),
        ]
        public_key = ticket_key.public_key().public_bytes_raw()
        await self._serve(self._core, public_key)

    async def drain(self, deadline_s: float) -> None:
        """Refuse new calls and let those that run end."""
        self.draining = True
        if self._health is not None:
            await set_ready(self._health, SERVICES, ready=False)
        if self._server is not None:
            await self._server.stop(deadline_s)

    async def stop(self) -> None:
        """Close everything that was opened, and let go of it."""
        server, core, redis = self._server, self._core, self._redis
        self._server = self._core = self._redis = self._health = None
        if server is not None:
            await server.stop(0)
        # The workers go before what they work with: a connection in use is not closed with its pool.
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if core is not None:
            await core.erasures.close()
            await core.checkpoints.close()
            await core.fan_out.close()
            await core.nodes.close()
            await core.registry.close()
        if redis is not None:
            await redis.stop()
        if core is not None:
            await core.database.close()

    def _build(
        self,
        database: Database,
        registry: Registry,
        keys: KeyRing,
        *,
        fleet_key: str,
        ticket_key: Ed25519PrivateKey,
        journal: Journal,
        store: Outside,
        checkpoints: AuditCheckpoints,
    ) -> Core:
        settings, clock, metrics = self.settings, self._clock, self.metrics
        blobs = Blobs(settings.data / "blobs")
        nodes = Nodes(fleet_key, push_timeout_s=settings.push_timeout_s, analyze_timeout_s=settings.analyze_timeout_s)
        times = LeaseTimes(settings.node_lease_s, settings.lease_s, settings.renew_s, settings.hold_s)
        fleet = Fleet(
            rules=LeaseRules(times),
            tables=SqlTables(database),
            keys=keys,
            registry=registry,
            clock=clock,
            metrics=metrics,
            probe=nodes.incarnation_at,
            keep_only=nodes.keep_only,
            reconcile_s=settings.reconcile_s,
        )
        fan_out = FanOut(database=database, keys=keys, fleet=fleet, nodes=nodes, registry=registry, clock=clock)
        warming = Warming(database=database, keys=keys, fleet=fleet, fan_out=fan_out, nodes=nodes, registry=registry)
        library = Voices(database, keys, warming)
        intake = Intake(fleet, nodes, preflight_limits=settings.preflight, speaker_limits=settings.speaker_checks)
        waiting_voices = Pulse()
        return Core(
            database=database,
            identity=Identity(database, fleet_key, clock),
            registry=registry,
            nodes=nodes,
            fleet=fleet,
            fan_out=fan_out,
            library=library,
            enrolment=Enrolment(
                database=database,
                keys=keys,
                blobs=blobs,
                intake=intake,
                library=library,
                clock=clock,
                metrics=metrics,
                waiting_voices=waiting_voices,
            ),
            erasures=Erasures(
                database=database,
                keys=keys,
                work=ErasureWork(
                    database=database,
                    keys=keys,
                    blobs=blobs,
                    journal=journal,
                    fleet=fleet,
                    nodes=nodes,
                    clock=clock,
                    metrics=metrics,
                    on_completed=checkpoints.soon,
                ),
                clock=clock,
                metrics=metrics,
            ),
            checkpoints=checkpoints,
            auditing=Auditing(
                database=database,
                keys=keys,
                journal=journal,
                store=store,
                checkpoints=checkpoints,
                fleet=fleet,
                nodes=nodes,
                clock=clock,
                metrics=metrics,
            ),
            completion=Completion(
                database=database,
                keys=keys,
                blobs=blobs,
                fleet=fleet,
                intake=intake,
                library=library,
                clock=clock,
                waiting_voices=waiting_voices,
            ),
            placing=Placing(
                settings=settings,
                wanting=Wanting(database, clock),
                registry=registry,
                head=fan_out.head,
                ticket_key=ticket_key,
                clock=clock,
                metrics=metrics,
            ),
            relay=Relay(fleet, nodes, library),
            blobs=blobs,
        )

    async def _serve(self, core: Core, ticket_public_key: bytes) -> None:
        server = self._server = new_server()
        people = PeopleServicer(core.identity, core.library, core.enrolment, core.erasures, core.relay)
        people_pb2_grpc.add_PeopleServicer_to_server(people, server)
        audit = AuditServicer(core.identity, core.auditing, core.erasures)
        audit_pb2_grpc.add_AuditServicer_to_server(audit, server)
        streams_pb2_grpc.add_StreamsServicer_to_server(
            StreamsServicer(core.identity, core.placing, core.fan_out, core.registry), server
        )
        jobs_pb2_grpc.add_JobsServicer_to_server(JobsServicer(core.identity, core.relay), server)
        fleet = FleetServicer(core.identity, core.fleet, core.fan_out, core.registry, (ticket_public_key,))
        fleet_pb2_grpc.add_FleetServicer_to_server(fleet, server)
        self._health = add_health_and_reflection(server, SERVICES)
        address = self.settings.grpc
        port = bind(server, address, insecure=self.settings.insecure)
        self.grpc_address = f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        await set_ready(self._health, SERVICES, ready=True)
