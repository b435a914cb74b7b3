"""Target: every unary method of the clients' services against a whole control plane, SQL, Redis and all."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from controlplane.recent_callers import RecentCallers
from controlplane.rpc_admin import AdminServicer
from controlplane.rpc_audit import AuditServicer
from controlplane.rpc_jobs import JobsServicer
from controlplane.rpc_people import PeopleServicer
from controlplane.rpc_streams import StreamsServicer
from runtime.clock import SystemClock
from runtime.errors import SpeakerdError
from speakerd.v1 import admin_pb2, audit_pb2, jobs_pb2, people_pb2, streams_pb2
from tests.controlplane.conftest import World
from tests.controlplane.people import Call
from tests.fuzz.target import Target, refused

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    module.DESCRIPTOR.services_by_name[name]
    for module, name in (
        (people_pb2, "People"), (admin_pb2, "Admin"), (audit_pb2, "Audit"), (jobs_pb2, "Jobs"),
        (streams_pb2, "Streams"),
    )
)  # fmt: skip
# They write the whole database to a path, exchange its key, or never end.
LEFT_OUT = {"RotateKek", "WatchJob"}
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for service in SERVICES
    for method in service.methods
    if not method.client_streaming and method.name not in LEFT_OUT
)
CALL_S = 60.0
KNOWN = ("default", "a", "v_1", "k", "j_1", "e_1", "u")


@contextmanager
def plane() -> Iterator[Callable[[bytes], None]]:
    """The first byte says which method the message goes to."""
    with tempfile.TemporaryDirectory(prefix="speakerd-fuzz-") as folder, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        world = World(Path(folder) / "data", stack, None)

        async def open_all() -> tuple[dict[str, Any], Call]:
            core = (started := await world.plane()).core
            callers = RecentCallers(core.identity, SystemClock())
            people = core.people
            return {
                "People": PeopleServicer(core.identity, people),
                "Admin": AdminServicer(core.identity, people.administration, people.rotation),
                "Audit": AuditServicer(core.identity, core.auditing, core.erasures),
                "Jobs": JobsServicer(core.identity, core.relay, core.jobs, core.media),
                "Streams": StreamsServicer(callers, core.placing, core.fan_out, core.registry),
            }, Call((started.settings.data / "admin.key").read_text().strip())

        async def call(data: bytes) -> None:
            method = METHODS[data[0] % len(METHODS)]
            try:
                request = GetMessageClass(method.input_type).FromString(data[1:])
            except DecodeError:
                return
            if "wait_ms" in method.input_type.fields_by_name:
                request.wait_ms = 0
            try:
                async with asyncio.timeout(CALL_S):
                    answer = getattr(servicers[method.containing_service.name], method.name)(request, who)
                    if method.server_streaming:
                        async for _ in answer:
                            pass
                    else:
                        (await answer).SerializeToString()
            except SpeakerdError as error:
                refused(error)

        servicers, who = runner.run(open_all())
        try:
            yield lambda data: runner.run(call(data)) if data else None
        finally:
            runner.run(stack.aclose())


def _requests() -> Iterable[bytes]:
    """Each method with nothing said, and with something in each of its fields."""
    for index, method in enumerate(METHODS):
        yield bytes((index,))
        request = GetMessageClass(method.input_type)()
        for number, field in enumerate(method.input_type.fields):
            if field.is_repeated or field.message_type is not None:
                continue
            if field.type == field.TYPE_STRING:
                setattr(request, field.name, KNOWN[number % len(KNOWN)])
            elif field.type == field.TYPE_BYTES:
                setattr(request, field.name, b"sealed")
            elif field.type not in (field.TYPE_BOOL, field.TYPE_FLOAT, field.TYPE_DOUBLE):
                setattr(request, field.name, 1)
        yield bytes((index,)) + request.SerializeToString()


TARGETS = (Target("rpc", plane, _requests, replays=250, is_fast=False),)
