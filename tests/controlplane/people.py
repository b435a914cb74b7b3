"""Tenants, users and keys for tests, and the servicers called in the test's own task."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event, insert

from controlplane.app import ControlPlane
from controlplane.database.schema import tenants, users
from controlplane.identity import add_key, new_key
from controlplane.rpc_people import PeopleServicer
from runtime.clock import SystemClock
from speakerd.v1 import common_pb2, people_pb2
from tests.controlplane.conftest import speech

_counting: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("counting", default=None)


@dataclass(frozen=True)
class Call:
    """What a servicer sees of a call."""

    token: str

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return (("authorization", f"Bearer {self.token}"),)


async def make_tenant(plane: ControlPlane, tenant_id: str, *user_ids: str) -> None:
    async with plane.core.database.write() as connection:
        await connection.execute(insert(tenants).values(tenant_id=tenant_id, created_at_s=1.0))
        for user_id in user_ids:
            await connection.execute(insert(users).values(tenant_id=tenant_id, user_id=user_id, created_at_s=1.0))


async def make_key(plane: ControlPlane, tenant_id: str, *scopes: str, user_id: str | None = None) -> str:
    key = new_key()
    async with plane.core.database.write() as connection:
        await add_key(connection, key, tenant_id, frozenset(scopes), SystemClock(), user_id=user_id)
    return key


@dataclass
class Library:
    """The People service, called without a wire in between."""

    plane: ControlPlane
    servicer: PeopleServicer = field(init=False)

    def __post_init__(self) -> None:
        self.servicer = PeopleServicer(self.plane.core.identity, self.plane.core.people)

    async def enrol(self, token: str, **spec: Any) -> people_pb2.EnrollVoiceResponse:
        sound = spec.pop("sound", None)
        if sound is None:
            sound = (speech(spec.pop("seed", 0)) * 32767).astype("<i2").tobytes()

        async def requests() -> AsyncIterator[people_pb2.EnrollVoiceRequest]:
            yield people_pb2.EnrollVoiceRequest(spec=people_pb2.VoiceSpec(**spec))
            form = common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE)
            for start in range(0, len(sound), 1 << 20):
                yield people_pb2.EnrollVoiceRequest(
                    chunk=people_pb2.ClipChunk(clip=0, format=form, data=sound[start : start + (1 << 20)])
                )

        return await self.servicer.EnrollVoice(requests(), Call(token))

    async def export(self, token: str, voice_id: str) -> bytes:
        request = people_pb2.ExportVoiceRequest(voice_id=voice_id)
        return b"".join([piece.data async for piece in self.servicer.ExportVoice(request, Call(token))])

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.servicer, name)
        request_of = people_pb2.DESCRIPTOR.services_by_name["People"].methods_by_name[name].input_type.name

        async def call(token: str, /, **fields: Any) -> Any:
            return await method(getattr(people_pb2, request_of)(**fields), Call(token))

        return call


@contextmanager
def statements(plane: ControlPlane) -> Iterator[list[str]]:
    """The SQL statements of what the block awaits, and of nothing else that runs meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if (counting := _counting.get()) is not None:
            counting.append(statement)

    engine = plane.core.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    token = _counting.set(seen)
    try:
        yield seen
    finally:
        _counting.reset(token)
        event.remove(engine, "before_cursor_execute", note)
