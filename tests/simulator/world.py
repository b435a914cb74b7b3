"""A fleet, what is asked of it and what befalls it, all drawn from one seed; and what has to hold after every step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from random import Random

from controlplane.erasure_rules import ErasureRules
from controlplane.fleet_log import Change
from controlplane.keys import VoiceAddress
from controlplane.lease_rules import Lease as LeaseRow
from controlplane.lease_rules import LeaseRules, LeaseTimes, LeaseWatch
from controlplane.relay_guard import RelayGuard, Relaying
from runtime.lease import Lease, LeaseState
from tests.simulator.holders import SimulatedNode
from tests.simulator.loop import Process, SimulatedLoop
from tests.simulator.network import KEEPALIVE_S, LATE_S, STALL_S, Network
from tests.simulator.planes import Plane, Redis
from tests.simulator.relays import SimulatedRelay
from tests.simulator.tables import Entry, ErasureRow, MemoryTables, Reached

TIMES = LeaseTimes(node_lease_s=9.0, lease_s=10.0, renew_s=2.0, hold_s=4.0)
FAULTS_S = 30.0
END_S = 68.0
# By then the latest message has come, the stream that waited in vain for the one after it has broken off, and the next
# has been read. Few runs need to go on for so long.
LAST_S = FAULTS_S + LATE_S + KEEPALIVE_S + STALL_S + 5.0
BOUND_S = 15.0
LOOK_S = 0.5
VOICES = 6
NODES = 3


@dataclass(frozen=True, slots=True)
class Rules:
    """The decisions that a run is made of. A mutant is this with one of them broken."""

    lease: Callable[[Process], Lease] = Lease
    guard: type[RelayGuard] = RelayGuard
    leases: Callable[[LeaseTimes], LeaseRules] = LeaseRules
    erasures: Callable[[Redis], ErasureRules] = lambda _redis: ErasureRules()
    watch: Callable[[Process, Callable[[], float], LeaseTimes], LeaseWatch] = lambda process, _database_s, times: (
        LeaseWatch(process, times)
    )


SOUND = Rules()


@dataclass(frozen=True, slots=True)
class Violation:
    """What did not hold, when (seconds from the start), and where."""

    promise: str
    at_s: float
    where: str


@dataclass
class Outcome:
    """What a run showed. proven_s: how long each erasure took that nothing on the control planes' side held up."""

    seed: int
    violations: list[Violation] = field(default_factory=list)
    proven_s: list[float] = field(default_factory=list)
    num_erasures: int = 0
    trace: list[str] = field(default_factory=list)


class World:
    """One run."""

    def __init__(self, seed: int, rules: Rules = SOUND, *, traced: bool = False) -> None:
        self.random, self.asking, self.carried = (Random(f"{seed} {what}") for what in ("faults", "asks", "work"))
        self.rules = rules
        self.outcome = Outcome(seed)
        self.traced = traced
        self.loop = SimulatedLoop()
        self.began_s = self.loop.now_s
        self.network = Network(self.loop, seed)
        self.database_offset_s = 0.0
        self.tables = MemoryTables(lambda: self.loop.now_s + self.database_offset_s)
        self.redis = Redis(lambda: self.loop.now_s)
        self.planes: list[Plane] = []
        self.nodes: dict[str, SimulatedNode] = {}
        self.relay: SimulatedRelay | None = None
        self.processes: list[Process] = []
        self.erased: dict[str, ErasureRow] = {}
        self.enrolled: dict[VoiceAddress, int] = {}
        self.requested_s: dict[int, float] = {}
        self.counted_s: dict[int, float] = {}
        self.cursors: dict[tuple[str, int], int] = {}
        self.told: dict[str, str] = {}
        self.looked_at: dict[str, tuple[object, ...]] = {}
        self.born = 0
        self.over = False
        self.sets_clock = self.random.random() < 0.1
        self.voices = [VoiceAddress("t", f"v{index}") for index in range(VOICES)]

    # running

    def run(self) -> Outcome:
        random, loop = self.random, self.loop
        self.network.loss = random.choice((0.0, 0.02, 0.1))
        self.network.doubled = random.choice((0.0, 0.1))
        self.network.late = random.choice((0.0, 0.05, 0.15))
        for index in range(random.choice((1, 2))):
            self._start_plane(index)
        for index in range(NODES):
            self._start_node(f"n{index}")
        self._start_relay()
        loop.after_step = self._after_step
        self._after(random.uniform(1.0, 4.0), self._ask)
        self._after(random.uniform(3.0, 8.0), self._befall)
        self._after(2.0, self._stream)
        self._after(LOOK_S, self._look)
        self._after(FAULTS_S, self._heal)
        try:
            loop.run_until(self.began_s + END_S)
            if any(self._unkept()):
                loop.run_until(self.began_s + LAST_S)
                for promise, where in self._unkept():
                    self._violated(promise, where)
        except _Stopped:
            pass
        finally:
            self.over = True
            loop.tear_down(self.processes)
        return self.outcome

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self.loop.call_later(seconds, act, context=Context())

    def _process(self, name: str) -> Process:
        process = Process(
            name,
            self.loop,
            drift=1.0 + self.random.uniform(-0.005, 0.005),
            offset_s=self.random.uniform(-500.0, 500.0),
        )
        self.processes.append(process)
        return process

    def _start_plane(self, index: int) -> None:
        process = self._process(f"cp{index}")
        plane = Plane(
            process,
            tables=self._reached(process),
            redis=self.redis,
            network=self.network,
            random=self.carried,
            at=self._node_at,
            lease_rules=self.rules.leases(TIMES),
            erasure_rules=self.rules.erasures(self.redis),
            watch=self.rules.watch(process, self.tables.now_s, TIMES),
            on_erased=self._on_erased,
            on_enrolled=self._on_enrolled,
        )
        if index < len(self.planes):
            self.planes[index] = plane
        else:
            self.planes.append(plane)
        plane.start()

    def _start_node(self, node_id: str, name: str = "") -> None:
        self.born += 1
        process = self._process(name or node_id)
        node = SimulatedNode(
            process,
            node_id=node_id,
            process_id=f"p{self.born}",
            network=self.network,
            planes=self.planes,
            random=self.carried,
            make_lease=self.rules.lease,
        )
        self.nodes[process.name] = node
        node.start()

    def _reached(self, process: Process) -> Reached:
        """The database, as one process reaches it."""
        return Reached(self.tables, lambda: not self.network.passes(process, process, "sql"))

    def _start_relay(self) -> None:
        self.born += 1
        process = self._process("relay")
        self.relay = SimulatedRelay(
            process,
            tables=self._reached(process),
            redis=self.redis,
            rules=self.rules.leases(TIMES),
            guard=self.rules.guard,
            random=self.carried,
        )
        self.relay.start()

    def _node_at(self, address: str) -> SimulatedNode | None:
        node = self.nodes.get(address)
        return None if node is None or node.process.dead else node

    # what tenants ask

    def _ask(self) -> None:
        if self.loop.now_s >= self.began_s + FAULTS_S + 3.0:
            return
        plane = self.asking.choice(self.planes)
        voice = self.asking.choice(self.voices)
        if plane.process.runs:
            kind = self.asking.random()
            if kind < 0.55:
                self.say("ask", "enrol", voice.voice_id)
                plane.ask(plane.enrol, voice)
            elif kind < 0.65:
                plane.ask(plane.warm, voice)
            elif kind < 0.75:
                self.say("ask", "withdraw", voice.voice_id)
                plane.ask(plane.withdraw, voice)
            else:
                self.say("ask", "erase", voice.voice_id)
                plane.ask(partial(self._erase, plane), voice)
        self._after(self.asking.expovariate(1 / 0.9), self._ask)

    async def _erase(self, plane: Plane, voice: VoiceAddress) -> None:
        await plane.erase(voice)
        row = self.tables.state.voices.get(voice)
        if row is not None and row.state == "erasing" and row.revision not in self.requested_s:
            self.requested_s[row.revision] = self.loop.now_s
            self.outcome.num_erasures += 1
            # A voice that is gone makes room for another.
            self.voices.remove(voice)
            self.voices.append(VoiceAddress("t", f"v{VOICES + self.outcome.num_erasures}"))

    def _stream(self) -> None:
        """Nodes send results through the relay, some of which arrive long after they were sent."""
        relay = self.relay
        assert relay is not None
        if relay.opened and not relay.process.dead:
            for node in self.nodes.values():
                if node.process.runs:
                    self._send_results(relay, self.asking.choice(relay.opened), node)
        self._after(self.asking.uniform(0.3, 0.9), self._stream)

    def _send_results(self, relay: SimulatedRelay, stream: Relaying, node: SimulatedNode) -> None:
        for voice in node.sayable():

            def arrive(voice_id: str = voice.voice_id) -> None:
                if stream.may_name(voice_id) and voice_id in self.erased:
                    self._violated("nobody erased is named", f"{voice_id} through the relay")

            self.network.send(node.process, relay.process, "result", arrive)

    # what befalls it

    def _befall(self) -> None:
        if not self.network.faulty:
            return
        random, now_s = self.random, self.loop.now_s
        lasts_s = random.choice((random.uniform(0.3, 3.0), random.uniform(3.0, 30.0)))
        kind = random.random()
        node = random.choice(list(self.nodes.values()))
        assert self.relay is not None
        if kind < 0.25:
            self.say("fault", "partition", node.process.name, f"{lasts_s:.1f}")
            self.network.block(node.process.name, "*", now_s + lasts_s)
        elif kind < 0.35:
            what = random.choice((("push",), ("push", "sync"), ("sync",), ("renew",), ("heartbeat",)))
            for one in what:
                self.say("fault", "deaf to", one, node.process.name, f"{lasts_s:.1f}")
                self.network.block(node.process.name, one, now_s + lasts_s)
        elif kind < 0.55:
            self._freeze(node.process, lasts_s)
            if random.random() < 0.2 and not node.process.dead:
                # Somebody starts another process under the same id, elsewhere, while this one sleeps.
                self.say("fault", "double", node.node_id)
                self._start_node(node.node_id, f"{node.node_id}/{self.born}")
        elif kind < 0.68:
            self._crash_node(node)
        elif kind < 0.76:
            if random.random() < 0.6:
                self._freeze(self.relay.process, lasts_s)
            elif not self.relay.process.dead:
                self.say("fault", "crash", "relay")
                self.relay.process.crash()
                self._after(random.uniform(0.2, 4.0), self._start_relay)
        elif kind < 0.79:
            self.network.block("relay", "*", now_s + lasts_s)
        elif kind < 0.82:
            process = random.choice([plane.process for plane in self.planes] + [self.relay.process])
            self.say("fault", "no database for", process.name, f"{lasts_s:.1f}")
            self.network.block(process.name, "sql", now_s + lasts_s)
            process.undisturbed_since_s = now_s + lasts_s
        elif kind < 0.88:
            plane = random.choice(self.planes)
            self._freeze(plane.process, lasts_s)
        elif kind < 0.94:
            self._crash_plane(random.randrange(len(self.planes)))
        elif kind < 0.97:
            self.say("fault", "flush", "redis")
            self.redis.flush()
        elif self.sets_clock:
            self._set_clock(random.uniform(-20.0, 20.0))
        else:
            self._trim()
        self._after(random.expovariate(1 / 2.5), self._befall)

    def _set_clock(self, by_s: float) -> None:
        """Set the database's clock. Set back, it makes evictions young again for whoever was not held over them yet."""
        self.database_offset_s += by_s
        self.say("fault", "database clock", f"{self.database_offset_s:+.1f}")
        renewing = [row for row in self.tables.state.leases.values() if not row.fenced and not row.superseded]
        for revision in self.requested_s:
            if by_s < 0 and any(not row.has_applied(revision) and row.held_revision < revision for row in renewing):
                self.counted_s[revision] = self.loop.now_s

    def _freeze(self, process: Process, lasts_s: float) -> None:
        if process.runs:
            self.say("fault", "freeze", process.name, f"{lasts_s:.1f}")
            process.freeze()
            self._after(lasts_s, lambda: self._thaw(process))

    def _thaw(self, process: Process) -> None:
        if process.frozen and not process.dead:
            self.say("fault", "thaw", process.name)
            process.thaw(self.random)

    def _crash_node(self, node: SimulatedNode) -> None:
        if node.process.dead:
            return
        self.say("fault", "crash", node.process.name)
        node.process.crash()
        if node.process.name == node.node_id:
            self._after(self.random.uniform(0.2, 8.0), lambda: self._start_node(node.node_id))

    def _crash_plane(self, index: int) -> None:
        process = self.planes[index].process
        if not process.dead:
            self.say("fault", "crash", process.name)
            process.crash()
            self._after(self.random.uniform(0.2, 6.0), lambda: self._start_plane(index))

    def _trim(self) -> None:
        state = self.tables.state.copy()
        unproven = min((row.revision for row in state.erasures.values() if row.state == "erasing"), default=None)
        floor = state.revision - self.random.randrange(4)
        floor = floor if unproven is None else min(floor, unproven - 1)
        if floor > state.floor:
            self.say("fault", "trim", f"{floor}")
            state.log = [entry for entry in state.log if entry.revision > floor]
            state.floor = floor
            self.tables.state = state

    def _heal(self) -> None:
        self.say("fault", "heal")
        self.network.heal()
        for process in self.processes:
            if process.frozen and not process.dead:
                process.thaw(self.random)
            # What was to last for longer is over now.
            process.undisturbed_since_s = min(process.undisturbed_since_s, self.loop.now_s)
        # A second process under a node's id goes away, and the first one has the name for itself.
        for node in list(self.nodes.values()):
            if node.process.name != node.node_id:
                node.process.crash()

    # what has to hold

    def say(self, *words: str) -> None:
        if self.traced:
            self.outcome.trace.append(f"{self.loop.now_s - self.began_s:8.3f} " + " ".join(words))

    def _violated(self, promise: str, where: str) -> None:
        if self.over:
            return  # what the dead had still to do is run only so that it ends
        self.outcome.violations.append(Violation(promise, self.loop.now_s - self.began_s, where))
        self.say("VIOLATED", promise, where)

    def _on_enrolled(self, voice: VoiceAddress, revision: int) -> None:
        self.enrolled[voice] = revision

    def _on_erased(self, erasure: ErasureRow, applied: tuple[LeaseRow, ...]) -> None:
        took_s = self.loop.now_s - self.requested_s.get(erasure.revision, self.loop.now_s)
        self.say("erased", erasure.voice.voice_id, f"in {took_s:.2f}")
        self.erased[erasure.voice.voice_id] = erasure
        requested_s = self.requested_s.get(erasure.revision, self.loop.now_s)
        was_held_up = erasure.revision in self.counted_s or not any(
            plane.process.runs and plane.process.undisturbed_since_s <= requested_s for plane in self.planes
        )
        if not was_held_up:
            self.outcome.proven_s.append(took_s)
        holders = {node.lease.incarnation: node for node in self.nodes.values() if not node.process.dead}
        for lease in applied:
            node = holders.get(lease.incarnation)
            if node is not None:
                self._check_gone(node, erasure.voice.voice_id)
        for node in self.nodes.values():
            if node.process.runs:
                self._check_node(node)

    def _after_step(self, process: Process | None) -> None:
        if self.loop.errors:
            error = self.loop.errors[0]
            raise AssertionError(error.get("message")) from error.get("exception")
        if self.outcome.violations:
            raise _Stopped
        if process is None:
            return
        node = self.nodes.get(process.name)
        if node is not None and node.process is process:
            self._check_node(node)

    def _check_node(self, node: SimulatedNode) -> None:
        lease = node.lease
        if self.traced:
            self._trace_lease(node)
        key = (node.process.name, lease.incarnation)
        if lease.incarnation and lease.state is LeaseState.SERVING:
            before = self.cursors.get(key, 0)
            if lease.cursor < before:
                self._violated("a cursor never goes back while it serves", f"{key} {before} to {lease.cursor}")
            self.cursors[key] = lease.cursor
        if not node.standing.allows():
            return
        looked_at = (lease.incarnation, lease.cursor, node.store.digest(), len(self.erased))
        if self.looked_at.get(node.process.name) == looked_at:
            return
        self.looked_at[node.process.name] = looked_at
        held = {voice.voice_id: voice.generation for voice in node.store.voices()}
        for voice_id in held:
            if voice_id in self.erased:
                self._violated("nobody erased is named", f"{voice_id} at {node.process.name}")
        self._check_order(node, held)

    def _check_order(self, node: SimulatedNode, held: dict[str, int]) -> None:
        """What a serving node holds is what the log says up to its cursor, or up to the entry that it is applying."""
        cursor, state = node.lease.cursor, self.tables.state
        for voice, row in state.voices.items():
            now = held.get(voice.voice_id, 0)
            said, next_said = _said(self.tables.history[voice], cursor)
            if now in (said, next_said):
                continue
            if now == 0 and row.revision > cursor:
                continue  # an entry that something newer has overtaken comes without its content
            self._violated(
                "each entry takes effect once and in order",
                f"{voice.voice_id} generation {now} at {node.process.name}, cursor {cursor} says {said}",
            )

    def _check_gone(self, node: SimulatedNode, voice_id: str) -> None:
        if node.store.find("t", voice_id) is not None or node.device.holds(voice_id):
            self._violated(
                "nobody erased is resident", f"{voice_id} at {node.process.name}, which said that it is gone"
            )

    def _look(self) -> None:
        """Twice a second: erasures are proven in time, and nothing lies in memory that has no business there."""
        now_s = self.loop.now_s
        for plane in self.planes:
            if not self.network.passes(plane.process, plane.process, "sql"):
                plane.process.undisturbed_since_s = now_s + LOOK_S  # it may end at any moment until the next look
        for revision, requested_s in self.requested_s.items():
            if self.tables.state.erasures[revision].state != "erasing":
                continue
            for plane in self.planes:
                if plane.process.runs:
                    counted_s = self.counted_s.get(revision, requested_s)
                    since_s = max(counted_s, plane.process.undisturbed_since_s)
                    if now_s - since_s > BOUND_S:
                        self._violated("an erasure is proven in time", f"revision {revision}: {now_s - since_s:.1f} s")
        for node in self.nodes.values():
            if node.process.runs and now_s - node.process.undisturbed_since_s > 2.0:
                for voice_id in self.erased:
                    if node.store.find("t", voice_id) is not None or node.device.holds(voice_id):
                        self._violated("nobody erased is resident", f"{voice_id} at {node.process.name}")
        self._after(LOOK_S, self._look)

    def _unkept(self) -> Iterator[tuple[str, str]]:
        """Long after the last fault everything is as it should be: which promise is not kept, and where."""
        state = self.tables.state
        for erasure in state.erasures.values():
            if erasure.state != "erased":
                yield "erasures end", f"revision {erasure.revision} is {erasure.state}"
        living = {row.voice.voice_id: row.generation for row in state.voices.values() if row.state == "live"}
        for voice, revision in self.enrolled.items():
            if state.voices[voice].revision < revision:
                yield "an acknowledged enrolment is durable", voice.voice_id
        for node in self.nodes.values():
            if node.process.name != node.node_id:
                continue
            held = {voice.voice_id: voice.generation for voice in node.store.voices()}
            if not node.standing.allows():
                yield "nodes come back", f"{node.process.name}: {node.lease!r}"
            if held != living:
                yield "nodes hold what they should", f"{node.process.name}: {held}, not {living}"

    def _trace_lease(self, node: SimulatedNode) -> None:
        lease = node.lease
        held = " ".join(f"{voice.voice_id}:{voice.generation}" for voice in node.store.voices())
        now = f"{lease.state.name} incarnation {lease.incarnation} cursor {lease.cursor} [{held}]"
        if self.told.get(node.process.name) != now:
            self.told[node.process.name] = now
            self.say(node.process.name, now)


class _Stopped(Exception):
    """The run ends here: something did not hold."""


def _said(history: list[Entry], cursor: int) -> tuple[int, int]:
    """The generation of a voice that the log says is held at a revision, and at the next one; 0: none."""
    said = 0
    for entry in history:
        if entry.revision > cursor + 1:
            break
        generation = entry.generation if entry.change is Change.ENROLL else 0
        if entry.revision == cursor + 1:
            return said, generation
        said = generation
    return said, said


def run(seed: int, rules: Rules = SOUND, *, traced: bool = False) -> Outcome:
    """One run of a seed."""
    outcome = World(seed, rules, traced=traced).run()
    if not seed % 10:
        gc.collect()
    return outcome
