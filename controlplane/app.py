"""Builds the control plane: every object is made here and handed on.

`ControlPlane` opens the data folder, the database and Redis as the daemon starts, serves gRPC, runs the workers, and
closes everything in reverse. The HTTP edge is a part of its own, found by the shell, that is given `ControlPlane`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane.audit_checkpoints import AuditCheckpoints, last_of_epoch, public_key_of
from controlplane.auditing import Auditing
from controlplane.blobs import Blobs
from controlplane.census import Census
from controlplane.chores import Chore, Chores
from controlplane.completion import Completion
from controlplane.config import ControlPlaneSettings
from controlplane.daily_keys import CheckpointKeys, TicketSigner
from controlplane.database.engine import Database, open_database
from controlplane.decisions import Decisions
from controlplane.doors import Doors, NodeDoor
from controlplane.embedded_redis import EmbeddedRedis
from controlplane.enrolment import Enrolment
from controlplane.enrolment_store import EnrolmentStore
from controlplane.erasure import Erasures
from controlplane.erasure_journal import Journal
from controlplane.erasure_work import ErasureWork
from controlplane.fan_out import FanOut
from controlplane.fleet import Fleet
from controlplane.guarded_http import GuardedHttp
from controlplane.identity import Identity, ensure_admin, new_fleet_key
from controlplane.intake import Intake
from controlplane.job_part import JobGround, JobPart
from controlplane.jobs import Jobs
from controlplane.journal_replay import open_and_replay
from controlplane.kek import KekSource, kek_source
from controlplane.kept_answers import KeptAnswers
from controlplane.key_check import require_matching_key
from controlplane.keys import KeyRing
from controlplane.lease_rules import LeaseRules, LeaseTimes
from controlplane.leases import SqlTables
from controlplane.live_relay import LiveRelay
from controlplane.live_sessions import LiveSessions
from controlplane.media_sources import MediaSources, open_drive
from controlplane.media_store import MediaStore
from controlplane.metrics import PART, Metrics, declare
from controlplane.nodes import Nodes
from controlplane.orphans import sweep_orphans
from controlplane.outside import Outside, open_outside
from controlplane.people import Ground, People, build_people
from controlplane.placement import Placing
from controlplane.pulse import Pulse, wait_s
from controlplane.quotas import StreamQuotas, jobs_max, streams_max
from controlplane.rate_limits import RateLimits
from controlplane.readiness import Readiness
from controlplane.recent_callers import RecentCallers
from controlplane.reconciler import Reconciler
from controlplane.registry import Registry
from controlplane.relay import Relay
from controlplane.relay_guard import RelayGuard, fence_relays_of_before
from controlplane.rpc_admin import AdminServicer
from controlplane.rpc_audit import AuditServicer
from controlplane.rpc_fleet import FleetServicer
from controlplane.rpc_jobs import JobsServicer
from controlplane.rpc_people import PeopleServicer
from controlplane.rpc_streams import StreamsServicer
from controlplane.secret_files import prepare_data_folder, read_or_make_bytes, read_or_make_text
from controlplane.space_cases import SpaceCases, build_spaces
from controlplane.space_ground import SpaceGround
from controlplane.tenant_keys import TenantKeys, index_labels, open_audit_key
from controlplane.transcribers import OpenAiTranscriber, Transcriber
from controlplane.voice_profile import VoiceProfiles
from controlplane.voices import Voices
from controlplane.wakes import listen
from controlplane.wanted import Wanting
from controlplane.warmth import Warming
from controlplane.webhook_post import WebhookPost
from controlplane.webhook_secrets import WebhookSecrets
from controlplane.webhooks import BodyOf, Webhooks
from runtime.clock import Clock
from runtime.connection_caps import ConnectionCaps
from runtime.grpc_server import GrpcHealth
from runtime.health import Health
from runtime.lifecycle import Part, Tasks
from runtime.loop_watch import LoopWatch
from runtime.metrics import listening_at, serve_metrics
from runtime.metrics import registry as metrics_registry
from runtime.speaker_token import SpeakerSeal
from runtime.tls import Tls
from speakerd import __version__
from speakerd.v1 import admin_pb2_grpc, audit_pb2_grpc, fleet_pb2_grpc, jobs_pb2_grpc, people_pb2_grpc, streams_pb2_grpc

SERVICES = (
    "speakerd.v1.People",
    "speakerd.v1.Streams",
    "speakerd.v1.Jobs",
    "speakerd.v1.Audit",
    "speakerd.v1.Admin",
    "speakerd.v1.Fleet",
)

RECONCILED_S_MAX = 2.0


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
    tenant_keys: TenantKeys
    people: People
    registry: Registry
    nodes: Nodes
    fleet: Fleet
    fan_out: FanOut
    reconciler: Reconciler
    readiness: Readiness
    library: Voices
    enrolment: Enrolment
    erasures: Erasures
    checkpoints: AuditCheckpoints
    auditing: Auditing
    completion: Completion
    placing: Placing
    relay: Relay
    live_relay: LiveRelay
    live_sessions: LiveSessions
    webhooks: Webhooks
    transcriber: Transcriber | None
    guard: RelayGuard
    blobs: Blobs
    jobs: Jobs
    media: MediaStore
    job_part: JobPart
    rate_limits: RateLimits
    kept_answers: KeptAnswers
    profiles: VoiceProfiles
    spaces: SpaceCases


class ControlPlane:
    """The daemon without its HTTP side; a part of the lifecycle."""

    def __init__(self, settings: ControlPlaneSettings, clock: Clock) -> None:
        self.settings = settings
        self.metrics: Metrics = declare(metrics_registry())
        self.grpc_address = ""
        self.metrics_address = ""  # where they are served apart from HTTP
        self.health = Health()
        # How a job's end is told to whoever asked for it: the edge says, which knows the words.
        self.webhook_body: BodyOf | None = None
        self._clock = clock
        self._core: Core | None = None
        self._redis: EmbeddedRedis | None = None
        self.fleet_address = ""
        self._tls: Tls | None = None
        self._doors: Doors | None = None
        self._exits = ExitStack()
        self._told: GrpcHealth | None = None
        self._workers: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"ControlPlane(grpc={self.grpc_address!r}, started={self._core is not None})"

    @property
    def core(self) -> Core:
        """The use cases."""
        assert self._core is not None, "asked before the control plane has started"
        return self._core

    @property
    def draining(self) -> bool:
        """Whether new work is refused, for this process is about to end."""
        return self._core is not None and self._core.readiness.is_draining

    async def start(self, tasks: Tasks) -> None:
        """Answer for health, open everything, then serve."""
        settings = self.settings
        prepare_data_folder(settings.data)
        kek = kek_source(settings)
        keys = KeyRing(*kek.load())
        fleet_key = read_or_make_text(settings.data / "fleet.key", new_fleet_key)
        self._tls = settings.tls()
        self._serve_metrics()
        self._doors = Doors(settings, self._tls, services=SERVICES)
        self._told = await self._doors.open(self.health)
        tasks.spawn("health", self._told.run())
        self.grpc_address, self.fleet_address = self._doors.address, self._doors.fleet_address
        tickets = TicketSigner(read_or_make_bytes(settings.data / "ticket.key"), self._clock)
        database = await open_database(settings.resolved_database_url(), self._clock, lease_s=settings.lease_s)
        database.failed = self.metrics.database_errors.inc
        database.took = lambda kind, seconds: self.metrics.database_seconds.labels(kind).observe(seconds)
        redis_url = settings.redis_url
        if redis_url is None:
            self._redis = EmbeddedRedis(settings.data / "redis")
            redis_url = self._redis.url
        registry = Registry(redis_url, self._clock, self.metrics)
        try:
            await require_matching_key(database, keys)
            # Before anything names a subject: the key that names them is kept, whatever key wraps now.
            await open_audit_key(database, keys, self._clock)
            # Before anything else can ask: what was erased since the database was backed up is erased again.
            store = open_outside(settings.resolved_audit_checkpoints())
            audit_key = Ed25519PrivateKey.from_private_bytes(read_or_make_bytes(settings.data / "audit.key"))
            journal, _ = await open_and_replay(
                database,
                keys,
                settings.resolved_erasure_journal(),
                self._clock,
                accept_loss=settings.accept_journal_loss,
                is_restored=settings.restored,
                last_signed=partial(last_of_epoch, store, public_key=public_key_of(audit_key)),
            )
            checkpoints = AuditCheckpoints(
                database=database,
                store=store,
                key=audit_key,
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
            kek=kek,
            fleet_key=fleet_key,
            tickets=tickets,
            journal=journal,
            store=store,
            checkpoints=checkpoints,
            redis_url=redis_url,
        )
        await ensure_admin(database, settings.data / "admin.key", self._clock)
        await index_labels(database, keys, self._core.tenant_keys)
        if self._redis is not None:
            await self._redis.start(tasks)
        await fence_relays_of_before(database)
        self._core.guard.start(tasks)
        await sweep_orphans(database, self._core.blobs, self._clock)
        self._workers = [
            tasks.spawn("fleet.reconcile", self._core.fleet.reconcile()),
            tasks.spawn("fleet.drift", self._core.reconciler.run()),
            tasks.spawn("readiness", self._core.readiness.run()),
            tasks.spawn("fleet.fan_out", self._core.fan_out.run()),
            tasks.spawn("fleet.wakes", listen(redis_url, self._core.fan_out.hear)),
            tasks.spawn("redis.fill", registry.keep_filled(self._core.fan_out.silent)),
            tasks.spawn("voices.complete", self._core.completion.run()),
            tasks.spawn("erasures.prove", self._core.erasures.run()),
            tasks.spawn("audit.sign", checkpoints.run()),
            tasks.spawn("people.chores", self._core.people.chores.run()),
        ]
        self._workers += [
            tasks.spawn("webhooks.tell", self._core.webhooks.run()),
            tasks.spawn("told.chores", self._told_chores(self._core).run()),
            tasks.spawn("census", Census(database, self._clock, self.metrics, every_s=settings.reconcile_s).run()),
        ]
        watch = self._watch()
        self._workers.append(tasks.spawn("metrics", watch.run()))
        await ConnectionCaps(settings.connection_caps(), watch.connections_cut).start(tasks)
        await self._core.job_part.start(tasks.spawn)
        # Usually there by now; where millions of voices take longer, readiness tells when.
        await wait_s(self._core.reconciler.read, RECONCILED_S_MAX)
        await self._core.readiness.look()
        if "grpc" in settings.roles:
            self._serve(self._core, tickets, CheckpointKeys(fleet_key.encode(), self._clock))

    def tell_started(self) -> None:
        """Every part of this process serves, HTTP too: from now on health says started, and ready where it is."""
        self.health.started(self.core.readiness.is_ready)

    async def drain(self, deadline_s: float) -> None:
        """Refuse new calls and let those that run end."""
        if self._core is not None:
            self._core.readiness.is_draining = True
        if self._told is not None:
            await self._told.tell()
        jobs = [] if self._core is None else [self._core.job_part.drain(deadline_s)]
        doors = [] if self._doors is None else [self._doors.drain(deadline_s)]
        await asyncio.gather(*doors, *jobs)

    async def stop(self) -> None:
        """Close everything that was opened, and let go of it."""
        doors, core, redis = self._doors, self._core, self._redis
        self._doors = self._core = self._redis = None
        if doors is not None:
            await doors.close(0)
        if core is not None:
            await core.job_part.stop()
        # The workers go before what they work with: a connection in use is not closed with its pool.
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if core is not None:
            await core.webhooks.close()
            if core.transcriber is not None:
                await core.transcriber.close()
            await core.guard.close()
            await core.erasures.close()
            await core.checkpoints.close()
            await core.reconciler.close()
            await core.fan_out.close()
            await core.nodes.close()
            await core.registry.close()
            await core.rate_limits.close()
        if redis is not None:
            await redis.stop()
        if core is not None:
            await core.database.close()
        await asyncio.to_thread(self._exits.close)

    def _serve_metrics(self) -> None:
        """Where they are asked for; and where there is no HTTP that could show them, on this machine."""
        address = self.settings.metrics
        if address is None and "http" not in self.settings.roles:
            address = "127.0.0.1:0"
        if address is not None:
            host, port = listening_at(address)
            serving = serve_metrics(self.metrics.registry, host=host, port=port, health=self.health)
            self.metrics_address = f"{address.rpartition(':')[0]}:{self._exits.enter_context(serving)}"

    def _watch(self) -> LoopWatch:
        return LoopWatch(self.metrics.registry, part=PART, version=__version__, clock=self._clock, tls=self._tls)

    def _told_chores(self, core: Core) -> Chores:
        chores = [core.webhooks.chore(), Chore("live.sessions", self.settings.chore_s, core.live_sessions.forget)]
        if self.settings.audit_verify_s:
            chores.append(Chore("audit", self.settings.audit_verify_s, core.auditing.look))
        return Chores(core.database, self._clock, chores)

    def _build(
        self,
        database: Database,
        registry: Registry,
        keys: KeyRing,
        *,
        kek: KekSource,
        fleet_key: str,
        tickets: TicketSigner,
        journal: Journal,
        store: Outside,
        checkpoints: AuditCheckpoints,
        redis_url: str,
    ) -> Core:
        settings, clock, metrics = self.settings, self._clock, self.metrics
        metrics.relay_streams_limit.set(settings.relay_streams_max)
        blobs = Blobs(settings.data / "blobs")
        nodes = Nodes(
            fleet_key,
            push_timeout_s=settings.push_timeout_s,
            analyze_timeout_s=settings.analyze_timeout_s,
            tls=self._tls,
        )
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
        fan_out = FanOut(
            database=database,
            keys=keys,
            fleet=fleet,
            nodes=nodes,
            registry=registry,
            clock=clock,
            timed=metrics.fan_out_seconds.observe,
        )
        waiting_voices = Pulse()
        warming = Warming(
            database=database,
            keys=keys,
            fleet=fleet,
            fan_out=fan_out,
            nodes=nodes,
            registry=registry,
            incomplete=waiting_voices.beat,
        )
        reconciler = Reconciler(
            database=database,
            fleet=fleet,
            nodes=nodes,
            registry=registry,
            resend=warming.warm,
            clock=clock,
            metrics=metrics,
            reconcile_s=settings.reconcile_s,
            entries_kept=settings.log_entries_kept,
        )
        fleet.drift = reconciler
        tenant_keys = TenantKeys(keys, clock)
        library = Voices(database, keys, tenant_keys, warming)
        intake = Intake(
            fleet,
            nodes,
            sources=MediaSources(GuardedHttp(settings.url_policy()), blobs, open_drive(settings)),
            preflight_limits=settings.preflight,
            speaker_limits=settings.speaker_checks,
            metrics=metrics,
        )
        identity = Identity(database, fleet_key, clock)
        enrolment = Enrolment(
            database=database,
            keys=keys,
            blobs=blobs,
            intake=intake,
            library=library,
            metrics=metrics,
            waiting_voices=waiting_voices,
            store=EnrolmentStore(database=database, keys=keys, tenant_keys=tenant_keys, blobs=blobs, clock=clock),
            consent_required=settings.require_consent,
        )
        erasures = Erasures(
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
        )
        guard = RelayGuard(fleet=fleet, clock=clock, metrics=metrics)
        job_part = JobPart(
            JobGround(
                settings=settings,
                database=database,
                keys=keys,
                tenant_keys=tenant_keys,
                fleet=fleet,
                nodes=nodes,
                registry=registry,
                guard=guard,
                redis_url=redis_url,
                clock=clock,
                metrics=metrics,
            )
        )
        relay = Relay(
            fleet,
            nodes,
            library,
            guard,
            seal=SpeakerSeal(fleet_key, clock),
            jobs_max=functools.partial(jobs_max, database),
        )
        placing = Placing(
            settings=settings,
            wanting=Wanting(database, clock),
            registry=registry,
            head=fan_out.head,
            streams_max=StreamQuotas(database, clock).of,
            tickets=tickets,
            clock=clock,
            metrics=metrics,
        )
        completion = Completion(
            database=database,
            keys=keys,
            blobs=blobs,
            fleet=fleet,
            intake=intake,
            library=library,
            clock=clock,
            waiting_voices=waiting_voices,
        )
        spaces = build_spaces(
            SpaceGround(
                database=database,
                keys=keys,
                blobs=blobs,
                intake=intake,
                enrolment=enrolment,
                erasures=erasures,
                library=library,
                clock=clock,
                preflight_limits=settings.preflight,
            ),
            chore_s=settings.chore_s,
        )
        ground = Ground(
            settings=settings,
            database=database,
            keys=keys,
            kek=kek,
            tenant_keys=tenant_keys,
            blobs=blobs,
            identity=identity,
            clock=clock,
            fleet_key=fleet_key,
        )
        webhooks = Webhooks(
            database=database,
            tenant_keys=tenant_keys,
            secrets=WebhookSecrets(database, tenant_keys, clock),
            post=WebhookPost(
                GuardedHttp(settings.url_policy()), clock, as_base64=settings.webhook_signature == "base64"
            ),
            as_creator=job_part.jobs.as_creator,
            body_of=lambda: self.webhook_body,
            guard=guard,
            clock=clock,
            metrics=metrics,
        )
        job_part.jobs.on_end.append(webhooks.on_end)
        return Core(
            database=database,
            identity=identity,
            tenant_keys=tenant_keys,
            people=build_people(
                ground,
                library=library,
                enrolment=enrolment,
                erasures=erasures,
                decisions=Decisions(journal, metrics),
                relay=relay,
                completion=completion,
                more_chores=(spaces.chore,),
            ),
            registry=registry,
            nodes=nodes,
            fleet=fleet,
            fan_out=fan_out,
            reconciler=reconciler,
            readiness=Readiness(
                fleet=fleet, reconciled=reconciler, registry=registry, clock=clock, warm_s=settings.lease_s
            ),
            library=library,
            enrolment=enrolment,
            erasures=erasures,
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
            completion=completion,
            placing=placing,
            relay=relay,
            live_relay=LiveRelay(
                placing=placing,
                library=library,
                guard=guard,
                tls=self._tls,
                metrics=metrics,
                streams_max=settings.relay_streams_max,
                tenant_streams_max=functools.partial(streams_max, database),
            ),
            live_sessions=LiveSessions(database, identity, clock),
            webhooks=webhooks,
            transcriber=_transcriber(settings),
            guard=guard,
            blobs=blobs,
            jobs=job_part.jobs,
            media=job_part.media,
            job_part=job_part,
            rate_limits=RateLimits(redis_url, clock),
            kept_answers=KeptAnswers(database, keys, clock),
            profiles=VoiceProfiles(
                database=database,
                intake=intake,
                enrolment=enrolment,
                erasures=erasures,
                relay=relay,
                settings=settings,
                preflight_limits=settings.preflight,
                clock=clock,
            ),
            spaces=spaces,
        )

    def _serve(self, core: Core, tickets: TicketSigner, checkpoints: CheckpointKeys) -> None:
        doors = self._doors
        assert doors is not None
        server = doors.clients
        people_pb2_grpc.add_PeopleServicer_to_server(PeopleServicer(core.identity, core.people), server)
        admin = AdminServicer(core.identity, core.people.administration, core.people.rotation)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
        audit = AuditServicer(core.identity, core.auditing, core.erasures)
        audit_pb2_grpc.add_AuditServicer_to_server(audit, server)
        streams_pb2_grpc.add_StreamsServicer_to_server(
            StreamsServicer(RecentCallers(core.identity, self._clock), core.placing, core.fan_out, core.registry),
            server,
        )
        jobs_pb2_grpc.add_JobsServicer_to_server(JobsServicer(core.identity, core.relay, core.jobs, core.media), server)
        fleet = FleetServicer(
            NodeDoor(core.identity, self._tls),
            core.fleet,
            core.fan_out,
            core.registry,
            tickets=tickets,
            checkpoints=checkpoints,
        )
        fleet_pb2_grpc.add_FleetServicer_to_server(fleet, doors.nodes)
        doors.serve()


def _transcriber(settings: ControlPlaneSettings) -> Transcriber | None:
    if settings.transcriber_url is None:
        return None
    key = "" if settings.transcriber_key is None else settings.transcriber_key.get_secret_value()
    return OpenAiTranscriber(settings.transcriber_url, model=settings.transcriber_model, key=key)
