"""What spaces owe to the rest of the control plane: restores, exports, quotas and the sweep of the store."""

from __future__ import annotations

import io
import json
import sqlite3
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import pytest
from sqlalchemy import select, update

from controlplane.agreements import Consent
from controlplane.app import ControlPlane
from controlplane.backup import back_up
from controlplane.database.schema import tenants, voices
from controlplane.database.spaces_schema import space_audios, space_identities, space_keys, voice_profiles
from controlplane.orphans import sweep_orphans
from controlplane.policy import Principal
from controlplane.restore import restore
from controlplane.space_audios import NewAudio
from controlplane.space_verifications import NewVerification
from controlplane.space_voiceprint_rows import Path
from controlplane.space_voiceprints import NewVoiceprint
from runtime.clock import SystemClock
from runtime.errors import NotFound, Overloaded
from tests.controlplane.conftest import World, collected, speech, until, wav, world
from tests.controlplane.people import Library
from tests.controlplane.test_audit import verdict
from tests.controlplane.test_erasure_journal import Backup

__all__ = ["collected", "world"]  # fixtures

CALLS = ("default", "calls")


@dataclass
class Owner:
    """Somebody with a space, calling the use cases."""

    plane: ControlPlane
    principal: Principal
    token: str

    @property
    def cases(self) -> Any:
        return self.plane.core.spaces

    async def audio(self, identity: str | None, seed: int = 0) -> Any:
        new = NewAudio(alias="a call", identity=identity, data=wav(speech(seed, 6)))
        return await self.cases.audios.create(self.principal, *CALLS, new)

    async def identity(self, handle: str, alias: str = "Ada Example") -> Any:
        consent = Consent("Ada Example", "calls", "I agree")
        return await self.cases.identities.create(self.principal, *CALLS, handle=handle, alias=alias, consent=consent)

    async def computed(self, handle: str, seed: int = 0) -> Any:
        await self.identity(handle)
        audio = await self.audio(handle, seed)
        await self.cases.voiceprints.create(self.principal, *CALLS, NewVoiceprint(handle, "default", "v1", "main"))
        path = Path(*CALLS, handle, "main")
        await self.cases.voiceprints.add(self.principal, path, audio.audio_id)
        return await self.cases.voiceprints.compute(self.principal, path)

    async def erase(self, handle: str) -> Any:
        return await self.cases.identities.erase(self.principal, *CALLS, handle)


async def owner_of(plane: ControlPlane, world: World, *, is_new: bool = True) -> Owner:
    token = (world.data / "admin.key").read_text().strip()
    owner = Owner(plane, await plane.core.identity.principal(token, "admin"), token)
    if is_new:
        await owner.cases.spaces.create(owner.principal, "default", "calls", "Calls")
    return owner


async def test_identities_that_were_erased_after_a_backup_are_erased_again(world: World) -> None:
    async with world.running() as plane:
        node = await world.node(plane)
        owner = await owner_of(plane, world)
        await owner.computed("ada")
        await owner.identity("bob")  # of whom nothing is computed
        await owner.audio("bob", seed=1)
        await owner.identity("eve")
        backup = Backup(world.data)
        for handle in ("ada", "bob"):
            erased = await owner.erase(handle)
            await until(lambda erased=erased: _is_erased(plane, erased.audit_id))
        await node.stop()
    backup.restore()
    plane = await world.plane()
    owner = await owner_of(plane, world, is_new=False)
    for handle in ("ada", "bob"):
        with pytest.raises(NotFound):
            await owner.cases.identities.get(owner.principal, *CALLS, handle)
    async with plane.core.database.read() as connection:
        left = (await connection.execute(select(space_identities.c.identity_id))).scalars().all()
        things = (await connection.execute(select(space_keys.c.thing_id))).scalars().all()
        assert (await connection.execute(select(space_audios))).all() == []
        assert len((await connection.execute(select(voices))).all()) == 2
    assert len(left) == 1
    assert len(things) == 2  # the space's, and that of the one identity that is left
    assert (await owner.cases.identities.get(owner.principal, *CALLS, "eve")).handle == "eve"


async def _is_erased(plane: ControlPlane, audit_id: str) -> bool:
    token = await plane.core.identity.principal((plane.settings.data / "admin.key").read_text().strip(), "admin")
    return (await plane.core.erasures.get(token, audit_id)).state == "erased"


async def test_a_backup_holds_no_key_of_spaces_and_a_restore_none_of_who_was_erased(
    world: World, tmp_path: FilePath
) -> None:
    out = tmp_path / "out"
    async with world.running() as plane:
        await world.node(plane)
        owner = await owner_of(plane, world)
        await owner.computed("ada")
        await owner.computed("bob", seed=1)
        await owner.identity("eve")
        async with plane.core.database.read() as connection:
            wrapped = {bytes(row.wrapped) for row in await connection.execute(select(space_keys.c.wrapped))}
        settings = world.settings()
        made = await back_up(settings, out, keys_days=30, now_s=time.time())
        assert made.num_blobs == 4  # of each of two voices the recording, and the audio that it came from
        for handle in ("ada", "eve"):
            erased = await owner.erase(handle)
            await until(lambda erased=erased: _is_erased(plane, erased.audit_id))
    held = b"".join(path.read_bytes() for path in (out / "data").rglob("*") if path.is_file())
    assert wrapped
    assert not [key for key in wrapped if key in held]
    for path in [*world.data.glob("speakerd.db*"), *world.data.glob("blobs/samples/*")]:
        path.unlink()
    await restore(settings, out, keys_file=None, accept_expired_keys=False, now_s=time.time())
    with sqlite3.connect(world.data / "speakerd.db") as database:
        # The space, and Bob with a voiceprint and an audio.
        assert database.execute("SELECT count(*) FROM space_keys").fetchone() == (4,)
    plane = await world.plane()
    await world.node(plane, "node-2")
    owner = await owner_of(plane, world, is_new=False)
    for handle in ("ada", "eve"):
        with pytest.raises(NotFound):
            await owner.cases.identities.get(owner.principal, *CALLS, handle)
    asked = await owner.audio(None, seed=5)
    new = NewVerification(asked.audio_id, "bob", "main")
    assert 0 < (await owner.cases.verifications.verify(owner.principal, *CALLS, new)).score < 1


async def test_a_profile_that_comes_back_after_its_voice_was_erased_is_told_of(world: World) -> None:
    plane = await world.plane()
    await world.node(plane)
    owner = await owner_of(plane, world)
    await owner.computed("ada")
    erased = await owner.erase("ada")
    await until(lambda: _is_erased(plane, erased.audit_id))
    client = await world.client(plane)
    assert list((await verdict(client)).problems) == []
    async with plane.core.database.write() as connection:
        await connection.execute(
            voice_profiles.insert().values(
                tenant_id="default",
                user_id="ada",
                voice_id=erased.voice.voice_id,
                consent_version="v1",
                created_at_s=1.0,
            )
        )
    (problem,) = (await verdict(client)).problems
    assert "the profile of the voice of erasure" in problem


async def test_an_export_holds_what_spaces_hold_of_the_person(world: World) -> None:
    plane = await world.plane()
    await world.node(plane)
    owner = await owner_of(plane, world)
    await owner.computed("ada")
    more = await owner.audio("ada", seed=1)
    shown = await owner.cases.identities.get(owner.principal, *CALLS, "ada")
    archive = zipfile.ZipFile(io.BytesIO(await Library(plane).export(owner.token, shown.voice_id)))
    (identity,) = json.loads(archive.read("spaces/identity.json"))
    assert identity["said"]["alias"] == "Ada Example"
    assert identity["said"]["consent"]["full_name"] == "Ada Example"
    (voiceprint,) = json.loads(archive.read("spaces/voiceprints_in_spaces.json"))
    assert len(bytes.fromhex(voiceprint["float32_little_endian_hex"])) == 4 * 16
    audios = json.loads(archive.read("spaces/audios.json"))
    assert {audio["alias"] for audio in audios} == {"a call"}
    assert archive.read(f"spaces/{more.audio_id}.audio") == wav(speech(1, 6))
    assert json.loads(archive.read("consents.json"))[0]["agreed"]["full_name"] == "Ada Example"
    assert not [name for name in archive.namelist() if b"ciphertext" in archive.read(name)]


async def test_audios_of_spaces_count_towards_a_tenant_s_storage(world: World) -> None:
    plane = await world.plane()
    await world.node(plane)
    owner = await owner_of(plane, world)
    async with plane.core.database.write() as connection:
        await connection.execute(
            update(tenants).where(tenants.c.tenant_id == "default").values(storage_bytes_max=250_000)
        )
    await owner.audio(None)
    with pytest.raises(Overloaded, match="250000 bytes"):
        await owner.audio(None, seed=1)
    assert len(list((world.data / "blobs").rglob("samples/*"))) == 1
    async with plane.core.database.read() as connection:
        assert len((await connection.execute(select(space_audios))).all()) == 1


async def test_the_sweep_of_the_store_leaves_audios_of_spaces(world: World) -> None:
    plane = await world.plane()
    owner = await owner_of(plane, world)
    audio = await owner.audio(None)

    class Later(SystemClock):
        def wall_s(self) -> float:
            return super().wall_s() + 2 * 3600.0

    stray = await plane.core.blobs.put(b"nobody's")
    assert await sweep_orphans(plane.core.database, plane.core.blobs, Later()) == 1
    assert await plane.core.blobs.get(stray) is None
    assert (await owner.cases.audios.get(owner.principal, *CALLS, audio.audio_id)).state == "available"
    async with plane.core.database.read() as connection:
        row = (await connection.execute(select(space_audios))).one()
    assert (await owner.cases.audios.clip(row)).data == wav(speech(0, 6))
