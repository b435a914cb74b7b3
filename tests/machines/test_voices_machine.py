"""Voices, through a whole control plane with SQL and a node: enrolled, shared, withdrawn, erased, restored, at random.

Each caller sees what is theirs and nothing else; the node holds exactly the voices that may be used; what was erased or
withdrawn stays so, through restarts and through a database put back from before; and the audit is whole at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, precondition, rule, run_state_machine_as_test
from sqlalchemy import select

from controlplane.app import ControlPlane
from controlplane.database.schema import data_keys, voiceprints
from runtime.errors import Cause, SpeakerdError, Unavailable
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import HASTY, World, until
from tests.controlplane.fake_node import FakeNode
from tests.controlplane.people import Library, make_key, make_tenant
from tests.controlplane.test_audit import verdict
from tests.machines.looping import LoopingMachine, bounded

SCOPES = ("voices:read", "voices:write", "voices:share", "voices:erase")
CALLERS = (("a", None), ("a", "u1"), ("a", "u2"), ("b", None))
CONSENT = people_pb2.Consent(full_name="N", purpose="p", text="t")
SETTLE_S = 60.0
STATE = people_pb2.Voice.State


@dataclass
class Known:
    """What must be true of a voice. state: live, frozen or erased."""

    tenant: str
    owner: str | None
    shared: bool
    label: str
    state: str = "live"
    generation: int = 1

    def is_seen_by(self, tenant: str, user: str | None) -> bool:
        return self.tenant == tenant and (self.shared or (user is not None and user == self.owner))


class Voices(LoopingMachine):
    enrolled = Bundle("enrolled")
    caller = st.sampled_from(range(len(CALLERS)))

    async def open(self) -> None:
        self.world = World(self.folder / "data", self.stack, None)
        self.known: dict[str, Known] = {}
        self.kept: dict[str, Known] | None = None
        self.node: FakeNode | None = None
        self.count = 0
        await self._start()
        for tenant in ("a", "b"):
            await make_tenant(self.plane, tenant, "u1", "u2")
        self.keys = [await make_key(self.plane, tenant, *SCOPES, user_id=user) for tenant, user in CALLERS]
        self.admins = {tenant: await make_key(self.plane, tenant, "admin") for tenant in ("a", "b")}

    async def _start(self, **settings: Any) -> None:
        self.running = self.world.running(chore_s=3_600.0, **HASTY, **settings)
        self.plane: ControlPlane = await self.running.__aenter__()
        self.library = Library(self.plane)
        key = (self.world.data / "fleet.key").read_text().strip()
        self.node = await FakeNode("node-1", self.plane.grpc_address, key).start()
        await until(self._serves, SETTLE_S)

    async def _serves(self) -> bool:
        return bool(await self.plane.core.fleet.serving())

    async def _stop(self) -> None:
        if self.node is not None:
            await self.node.stop()
        await self.running.__aexit__(None, None, None)

    async def close(self) -> None:
        try:
            await self._everything_is_as_known()
            client = await self.world.client(self.plane)

            async def is_whole() -> bool:
                found = await verdict(client)
                # The lease of a node that was stopped without a word lasts for a while, and nobody answers for it.
                is_early = all("could not be asked" in problem for problem in found.problems)
                assert found.ok or is_early, list(found.problems)
                return bool(found.ok)

            await until(is_whole, SETTLE_S)
        finally:
            await self._stop()

    @rule(target=enrolled, who=caller, own=st.booleans())
    def enrol(self, who: int, own: bool) -> str:
        tenant, user = CALLERS[who]
        own = own and user is not None
        self.count += 1
        scope = people_pb2.VOICE_SCOPE_USER if own else people_pb2.VOICE_SCOPE_TENANT
        label = f"Person {self.count}"
        fields = {"label": label, "seed": self.count, "scope": scope, "subject": f"s{self.count}"}
        answer = self.run(self._again_if_away(lambda: self.library.enrol(self.keys[who], **fields)))
        self.known[answer.voice.voice_id] = Known(tenant, user, not own, label)
        return str(answer.voice.voice_id)

    def _try(self, who: int, voice_id: str, allowed: set[str], doing: str, **fields: Any) -> bool:
        """Do it; whether it was done. Who may not see the voice is told that it is not there, and nothing changes."""
        token, known = self.keys[who], self.known.get(voice_id)
        is_seen = known is not None and known.is_seen_by(*CALLERS[who])
        asked = self.library.enrol if doing == "enrol" else getattr(self.library, doing)
        try:
            self.run(self._again_if_away(lambda: asked(token, voice_id=voice_id, **fields)))
        except SpeakerdError as error:
            assert error.cause in (Cause.NOT_FOUND, Cause.DENIED, Cause.CONFLICT), (doing, error)
            if not is_seen:
                assert error.cause is Cause.NOT_FOUND, (doing, error)
            else:
                assert known is not None
                is_refused = known.state not in allowed or error.cause is Cause.DENIED
                assert is_refused, (doing, known, error)
            return False
        assert is_seen, (doing, CALLERS[who], known)
        return True

    async def _again_if_away(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """As callers do: a lease of a second is lost where the machine stalls for one, and is soon there again."""
        for _ in range(5):
            try:
                return await ask()
            except Unavailable:
                await until(self._serves, SETTLE_S)
        return await ask()

    @rule(who=caller, voice_id=enrolled)
    def enrol_anew(self, who: int, voice_id: str) -> None:
        self.count += 1
        if self._try(who, voice_id, {"live", "frozen"}, "enrol", seed=self.count, consent=CONSENT):
            assert self.known[voice_id].state != "erased"
            self.known[voice_id].state = "live"

    @rule(who=caller, voice_id=enrolled)
    def rename(self, who: int, voice_id: str) -> None:
        self.count += 1
        if self._try(who, voice_id, {"live", "frozen"}, "UpdateVoice", label=f"Person {self.count}"):
            self.known[voice_id].label = f"Person {self.count}"

    @rule(who=caller, voice_id=enrolled)
    def share(self, who: int, voice_id: str) -> None:
        if self._try(who, voice_id, {"live", "frozen"}, "ShareVoice"):
            self.known[voice_id].shared = True

    @rule(who=caller, voice_id=enrolled)
    def withdraw(self, who: int, voice_id: str) -> None:
        if self._try(who, voice_id, {"live", "frozen"}, "WithdrawConsent"):
            self.known[voice_id].state = "frozen"

    @rule(who=caller, voice_id=enrolled)
    def give_consent(self, who: int, voice_id: str) -> None:
        if self._try(who, voice_id, {"live", "frozen"}, "GiveConsent", consent=CONSENT):
            self.known[voice_id].state = "live"

    @rule(who=caller, voice_id=enrolled)
    def erase(self, who: int, voice_id: str) -> None:
        if self._try(who, voice_id, {"live", "frozen", "erased"}, "EraseVoice", wait_ms=25_000):
            self.known[voice_id].state = "erased"

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        """A database with its log, which a connection that ends late leaves behind."""
        for ending in ("", "-wal"):
            one = source.with_name(source.name + ending)
            target.with_name(target.name + ending).unlink(missing_ok=True)
            if one.exists():
                shutil.copy(one, target.with_name(target.name + ending))

    @staticmethod
    def _copy_recordings(source: Path, target: Path) -> None:
        """Recordings with the database, as in a backup: one that was replaced since is nowhere else."""
        if source.exists():
            shutil.copytree(source, target, dirs_exist_ok=True)

    @rule(keep=st.booleans())
    def restart(self, keep: bool) -> None:
        """And perhaps keep the database and its recordings as they are now."""

        async def again() -> None:
            await self._stop()
            if keep:
                self._copy(self.world.data / "speakerd.db", self.folder / "kept.db")
                shutil.rmtree(self.folder / "kept-blobs", ignore_errors=True)
                self._copy_recordings(self.world.data / "blobs", self.folder / "kept-blobs")
                self.kept = deepcopy(self.known)
            await self._start()

        self.run(again())

    @precondition(lambda self: self.kept is not None)
    @rule()
    def put_the_database_back(self) -> None:
        """What was erased or withdrawn after the backup stays so; what was enrolled after it is lost."""

        async def again() -> None:
            await self._stop()
            # A file of its own: SQLite tells files by what they are, and this process had the other one open.
            for path in self.world.data.glob("speakerd.db*"):
                path.unlink()
            self._copy(self.folder / "kept.db", self.world.data / "speakerd.db")
            self._copy_recordings(self.folder / "kept-blobs", self.world.data / "blobs")
            await self._start(restored=True)

        assert self.kept is not None
        now, self.known = self.known, deepcopy(self.kept)
        for voice_id, known in self.known.items():
            if now[voice_id].state == "erased" or known.state == "erased":
                known.state = "erased"
            elif voice_id in self.withdrawn_since(now):
                known.state = "frozen"
        self.run(again())

    def withdrawn_since(self, now: dict[str, Known]) -> set[str]:
        return {voice_id for voice_id, known in now.items() if known.state == "frozen"}

    @rule()
    def look(self) -> None:
        self.run(self._everything_is_as_known())

    async def _listed(self, key: str) -> dict[str, Any]:
        """What a caller is shown, once nothing of it is being erased: after a restore that takes as long as a lease."""
        listed: dict[str, Any] = {}

        async def is_settled() -> bool:
            listed.clear()
            listed.update((one.voice_id, one) for one in (await self.library.ListVoices(key, page_size=200)).voices)
            gone = [one for voice_id, one in listed.items() if self.known[voice_id].state == "erased"]
            assert all(one.state == STATE.Value("STATE_ERASING") for one in gone), gone
            return not gone

        await until(is_settled, SETTLE_S)
        return listed

    async def _everything_is_as_known(self) -> None:
        for who, (tenant, user) in enumerate(CALLERS):
            listed = await self._listed(self.keys[who])
            wanted = {
                voice_id
                for voice_id, known in self.known.items()
                if known.state != "erased" and known.is_seen_by(tenant, user)
            }
            assert set(listed) == wanted, (tenant, user)
            for voice_id in wanted:
                assert listed[voice_id].label == self.known[voice_id].label
                frozen = listed[voice_id].state == STATE.Value("STATE_FROZEN")
                assert frozen == (self.known[voice_id].state == "frozen"), voice_id
        live = {(known.tenant, voice_id) for voice_id, known in self.known.items() if known.state == "live"}
        node = self.node
        assert node is not None
        try:
            await until(lambda: set(node.voices) == live, SETTLE_S)
        except TimeoutError:
            raise AssertionError((set(node.voices), live)) from None
        async with self.plane.core.database.read() as connection:
            for table in (data_keys, voiceprints):
                kept = set((await connection.execute(select(table.c.voice_id))).scalars().all())
                assert not kept & {one for one, known in self.known.items() if known.state == "erased"}, table.name


def test_a_backup_that_is_restored_twice_brings_a_voice_that_waited_back_to_the_nodes_each_time() -> None:
    """A walk that was found: what waits for a node when the backup is made has another recording by the restore."""
    machine = Voices()
    try:
        assert machine.node is not None
        machine.run(machine.node.stop())
        waiting = machine.enrol(own=True, who=1)
        machine.restart(keep=True)
        machine.enrol_anew(voice_id=waiting, who=1)
        machine.look()
        incarnations = [machine.node.incarnation]
        for _ in range(2):
            machine.put_the_database_back()
            machine.enrol(own=True, who=2)
            machine.look()
            incarnations.append(machine.node.incarnation)
        assert incarnations == sorted(set(incarnations)), incarnations
    finally:
        machine.teardown()


def test_voices_are_whose_they_are_and_what_ended_stays_ended() -> None:
    run_state_machine_as_test(Voices, settings=bounded(2, 8))


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_voices_are_whose_they_are_and_what_ended_stays_ended_however_long_one_looks() -> None:
    run_state_machine_as_test(Voices, settings=bounded(50, 30))
