"""What a voice library asks of the core: search, agreements read back, intake taken up again, drives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from controlplane.agreements import LicenceKind
from controlplane.database.schema import samples, voices
from controlplane.failures import RecordingMissing, failure_code
from controlplane.media_sources import (
    KINDS,
    DriveReference,
    FileMissing,
    FolderDrive,
    NoDrive,
    open_drive,
)
from controlplane.speaker_checks import SpeakerChecksFailed
from controlplane.voices import Filter
from runtime.errors import BadAudio, Conflict, Denied, InvalidRequest, NotFound, SpeakerdError, TooLarge
from runtime.media import Finding, PreflightFailed, SignalPreflight
from speakerd.v1 import people_pb2
from tests.controlplane.conftest import World, until
from tests.controlplane.people import Library, make_key, make_tenant


async def principal_of(plane: Any, token: str) -> Any:
    return await plane.core.identity.principal(token, "voices:read")


async def test_a_search_finds_words_in_what_is_sealed_and_languages_with_their_regions(any_world: World) -> None:
    plane = await any_world.plane()
    library = Library(plane)
    key = (any_world.data / "admin.key").read_text().strip()
    for label, language, tags in (("Ada", "de-AT", ["Warm"]), ("Bob", "de", []), ("Warmund", "den", [])):
        details = people_pb2.VoiceDetails(language=language, style_tags=tags)
        await library.enrol(key, label=label, details=details)
    caller = await principal_of(plane, key)

    async def labels(**wanted: Any) -> list[str | None]:
        found, _ = await plane.core.library.list(caller, page_size=200, page_token="", wanted=Filter(**wanted))
        return sorted(voice.label for voice in found)

    assert await labels(language="DE") == ["Ada", "Bob"]
    assert await labels(language="de_") == []
    assert await labels(text="warm") == ["Ada", "Warmund"]
    assert await labels(text="b", language="de") == ["Bob"]
    assert await labels(states=("pending",), heard=False) == ["Ada", "Bob", "Warmund"]
    assert await labels(heard=True) == []
    seen, token = [], ""
    while True:
        page, token = await plane.core.library.list(caller, page_size=1, page_token=token, wanted=Filter(text="a"))
        seen += [voice.label for voice in page]
        if not token:
            break
    assert sorted(seen) == ["Ada", "Warmund"]


async def test_agreements_are_read_by_whom_they_concern_and_by_nobody_once_the_voice_is_erased(
    any_world: World,
) -> None:
    plane = await any_world.plane()
    await make_tenant(plane, "acme", "ada", "bob")
    library = Library(plane)
    ada, bob = [await make_key(plane, "acme", "voices:read", "voices:write", user_id=user) for user in ("ada", "bob")]
    consent = people_pb2.Consent(full_name="Ada L", purpose="tests", text="I agree", version="2")
    voice_id = (await library.enrol(ada, label="Ada", consent=consent)).voice.voice_id
    reading = plane.core.people.agreements
    record = await reading.consent(await principal_of(plane, ada), voice_id)
    assert (record.full_name, record.purpose, record.text, record.version) == ("Ada L", "tests", "I agree", "2")
    assert record.text_sha256 == hashlib.sha256(b"I agree").hexdigest()
    with pytest.raises(Denied):
        await reading.consent(await principal_of(plane, bob), voice_id)
    with pytest.raises(NotFound):
        await reading.consent(await principal_of(plane, ada), "v_0")
    admin = (any_world.data / "admin.key").read_text().strip()
    licence = people_pb2.Licence(licensor="L", terms="T", kind=people_pb2.Licence.KIND_PERPETUAL)
    answer = await library.enrol(admin, label="G", scope=people_pb2.VOICE_SCOPE_GLOBAL, licence=licence)
    everybodys = answer.voice.voice_id
    found = await reading.licences([everybodys, voice_id])
    assert list(found) == [everybodys]
    kept = found[everybodys]
    assert (kept.licensor, kept.terms, kept.kind, kept.usage_max) == ("L", "T", LicenceKind.PERPETUAL, None)
    assert await reading.consent(await principal_of(plane, admin), everybodys) is None
    await library.EraseVoice(admin, voice_id=everybodys, trigger="license_revoked")
    assert await reading.licences([everybodys]) == {}


async def test_a_failed_voice_is_taken_up_again_where_its_recordings_are_kept(any_world: World) -> None:
    plane = await any_world.plane()
    library = Library(plane)
    key = (any_world.data / "admin.key").read_text().strip()
    voice_id = (await library.enrol(key, label="Ada")).voice.voice_id
    caller = await principal_of(plane, key)
    async with plane.core.database.write() as connection:
        await connection.execute(update(voices).values(state="failed", state_code="reference_unavailable"))
    again = plane.core.people.repromotion.repromote
    voice = await again(caller, voice_id)
    assert (voice.state, voice.state_code) == ("pending", "")
    await any_world.node(plane)

    async def ready() -> bool:
        return (await library.GetVoice(key, voice_id=voice_id)).state == people_pb2.Voice.STATE_READY

    await until(ready)
    before = await library.GetVoice(key, voice_id=voice_id)
    await again(caller, voice_id)
    assert await library.GetVoice(key, voice_id=voice_id) == before
    async with plane.core.database.write() as connection:
        await connection.execute(update(voices).values(state="failed"))
        await connection.execute(samples.delete())
    with pytest.raises(Conflict):
        await again(caller, voice_id)
    await library.EraseVoice(key, voice_id=voice_id)
    with pytest.raises(NotFound):
        await again(caller, voice_id)
    async with plane.core.database.read() as connection:
        assert (await connection.execute(select(voices.c.state_code))).scalar_one() == ""


def test_each_failure_has_its_word() -> None:
    def finding(code: str) -> Finding:
        return Finding(code, 0.0, 1.0, "text")

    def preflight(code: str) -> SpeakerdError:
        return PreflightFailed(SignalPreflight(1, 1, 1, 0.0, 0.0, 0.0, 0.0, fail_reasons=(finding(code),)))

    assert failure_code(RecordingMissing("x")) == "reference_unavailable"
    assert failure_code(BadAudio("x")) == "reference_unreadable"
    assert failure_code(preflight("duration_below_minimum")) == "reference_too_short"
    assert failure_code(preflight("duration_above_maximum")) == "reference_too_long"
    assert failure_code(preflight("snr_below_threshold")) == "snr_below_threshold"
    assert failure_code(SpeakerChecksFailed([finding("net_speech_below_minimum")], [])) == "reference_too_short"
    assert failure_code(SpeakerChecksFailed([finding("several_speakers")], [])) == "several_speakers"


async def test_a_folder_is_a_drive_and_gives_nothing_outside_of_itself(tmp_path: Path) -> None:
    (tmp_path / "drive" / "clips").mkdir(parents=True)
    (tmp_path / "drive" / "clips" / "a b.wav").write_bytes(b"sound")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "drive" / "link").symlink_to(tmp_path / "secret")
    drive = FolderDrive(tmp_path / "drive")
    for kind, value in zip(
        KINDS, ("clips/a b.wav", "x://d/clips/a%20b.wav", "https://d/clips/a%20b.wav?t=1#f"), strict=True
    ):
        assert await drive.read(DriveReference(kind, value), bytes_max=10) == b"sound"
        with pytest.raises(TooLarge):
            await drive.read(DriveReference(kind, value), bytes_max=4)
    outside = ("../secret", "link", "/etc/passwd", "clips", "", "nothing", "x://d/../secret", "x://d/%2e%2e/secret")
    for value in outside:
        for kind in KINDS:
            with pytest.raises((FileMissing, InvalidRequest)):
                await drive.read(DriveReference(kind, value), bytes_max=1 << 20)
    for wrong in (
        DriveReference("path", "x"),
        DriveReference("file_id", "a\0b"),
        DriveReference("share_url", "http://["),
    ):
        with pytest.raises(InvalidRequest):
            await drive.read(wrong, bytes_max=10)


async def test_a_drive_is_a_folder_an_installed_adapter_or_none(world: World, tmp_path: Path) -> None:
    assert isinstance(open_drive(world.settings()), NoDrive)
    assert isinstance(open_drive(world.settings(drive_folder=tmp_path)), FolderDrive)
    with pytest.raises(InvalidRequest, match=r"speakerd\.drives"):
        open_drive(world.settings(drive="nothing-installed"))
