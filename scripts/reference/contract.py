"""The reference of the gRPC contract, from proto/speakerd/v1 and its comments.

In: the .proto files. Out: one page: services with their methods, messages with their fields, enums with their values.
What always holds: everything that the contract declares is on the page, and every type that it names is a link.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

from scripts.reference.markdown import code, page, prose, table

PACKAGE = ".speakerd.v1."
WELL_KNOWN = ".google.protobuf."
# Where a declaration's parts lie in a file's source info: the field numbers of descriptor.proto.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM = 2, 3, 4
_PART = 2  # of a service its methods, of an enum its values
_Path = tuple[int, ...]


def contract_page(root: Path) -> str:
    """The page. root: the repository."""
    files = [_File(file) for file in _described(root / "proto")]
    services = [part for file in files for part in file.services()]
    messages = [part for file in files for part in file.messages()]
    intro = (
        "The contract between clients, control planes and nodes: `proto/speakerd/v1`. How it may change: "
        "[versioning](../versioning.md). What a status means: [errors](errors.md). A call carries its API key as "
        "metadata, `authorization: Bearer sk_…`. Python comes with stubs and a client (`speakerd.client`); any other "
        "language generates its own from the `.proto` files. Both daemons answer health checks (`grpc.health.v1`) and "
        "reflection."
    )
    listed = table(
        ("service", "file", "methods"),
        (
            (f"[{service.name}](#{_anchor(service.name)})", code(file.proto.name), str(len(service.method)))
            for file in files
            for service in file.proto.service
        ),
    )
    return page(
        "gRPC: speakerd.v1",
        "proto/speakerd/v1",
        intro,
        listed,
        "## Services",
        *services,
        "## Messages and enums",
        *messages,
    )


def _described(folder: Path) -> list[FileDescriptorProto]:
    protos = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set.pb"
        flags = [f"-I{folder}", f"-I{well_known}", "--include_source_info", f"--descriptor_set_out={out}"]
        status = protoc.main(["protoc", *flags, *protos])
        if status != 0:
            raise SystemExit(f"protoc failed with status {status}")
        described = FileDescriptorSet.FromString(out.read_bytes())
    return sorted(described.file, key=lambda file: file.name)


class _File:
    """One .proto file with its comments by path."""

    def __init__(self, proto: FileDescriptorProto) -> None:
        self.proto = proto
        self._comments = {
            tuple(place.path): prose(f"{place.leading_comments} {place.trailing_comments}")
            for place in proto.source_code_info.location
        }

    def services(self) -> Iterator[str]:
        for at, service in enumerate(self.proto.service):
            yield self._service(service, (_SERVICE, at))

    def messages(self) -> Iterator[str]:
        for at, message in enumerate(self.proto.message_type):
            yield from self._message(message, (_MESSAGE, at), message.name)
        for at, enum in enumerate(self.proto.enum_type):
            yield self._enum(enum, (_ENUM, at), enum.name)

    def _comment(self, path: _Path) -> str:
        return self._comments.get(path, "")

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> str:
        rows = [
            (code(method.name), _sides(method), self._comment((*path, _PART, at)))
            for at, method in enumerate(service.method)
        ]
        said = f"### {service.name}\n\n{self._comment(path)}"
        return f"{said}\n\n{table(('method', 'takes → gives', 'what it does'), rows)}"

    def _message(self, message: DescriptorProto, path: _Path, name: str) -> Iterator[str]:
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        rows = [
            (
                code(field.name),
                str(field.number),
                _type(field, maps),
                " ".join(filter(None, (_choice(message, field), self._comment((*path, _FIELD, at))))),
            )
            for at, field in enumerate(message.field)
        ]
        fields = table(("field", "no.", "type", "meaning"), rows) or "No fields."
        yield f"### {name}\n\n{self._comment(path)}\n\n{fields}"
        for at, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, (*path, _NESTED, at), f"{name}.{nested.name}")
        for at, enum in enumerate(message.enum_type):
            yield self._enum(enum, (*path, _NESTED_ENUM, at), f"{name}.{enum.name}")

    def _enum(self, enum: EnumDescriptorProto, path: _Path, name: str) -> str:
        rows = [
            (code(value.name), str(value.number), self._comment((*path, _PART, at)))
            for at, value in enumerate(enum.value)
        ]
        return f"### {name}\n\n{self._comment(path)}\n\n{table(('value', 'no.', 'meaning'), rows)}"


def _sides(method: MethodDescriptorProto) -> str:
    takes = ("stream of " if method.client_streaming else "") + _link(method.input_type)
    gives = ("stream of " if method.server_streaming else "") + _link(method.output_type)
    return f"{takes} → {gives}"


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    if field.type_name:
        said = _link(field.type_name)
    else:
        said = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"list of {said}" if repeated else said


def _choice(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """Which oneof a field is of. An `optional` field has one of its own, which says only that it may be absent."""
    if field.proto3_optional:
        return "Optional."
    if field.HasField("oneof_index"):
        return f"One of `{message.oneof_decl[field.oneof_index].name}`."
    return ""


def _link(type_name: str) -> str:
    if type_name.startswith(PACKAGE):
        name = type_name.removeprefix(PACKAGE)
        return f"[{name}](#{_anchor(name)})"
    return type_name.removeprefix(WELL_KNOWN)


def _anchor(heading: str) -> str:
    """As the table of contents makes it of a heading."""
    return heading.lower().replace(".", "")
