"""What in a contract breaks those who were built with an earlier one.

In come two descriptor sets, the earlier and the later. Out come sentences, one a breach: a number that means something
else, a field, method, service or value that went without being reserved, another type or name. Additions are none.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)


def breaches(before: FileDescriptorSet, after: FileDescriptorSet) -> list[str]:
    """Every breach, in the order of the earlier contract."""
    now = {name: one for file in after.file for name, one in _messages(file)}
    enums = {name: one for file in after.file for name, one in _enums(file)}
    services = {f"{file.package}.{one.name}": one for file in after.file for one in file.service}
    found: list[str] = []
    for file in before.file:
        for name, message in _messages(file):
            found += _of_message(name, message, now.get(name))
        for name, enum in _enums(file):
            found += _of_enum(name, enum, enums.get(name))
        for service in file.service:
            name = f"{file.package}.{service.name}"
            found += _of_service(name, service, services.get(name))
    return found


def _of_message(name: str, before: DescriptorProto, after: DescriptorProto | None) -> Iterator[str]:
    if after is None:
        yield f"message {name} is gone"
        return
    numbers = {field.number: field for field in after.field}
    reserved = {number for span in after.reserved_range for number in range(span.start, span.end)}
    for field in before.field:
        later = numbers.get(field.number)
        if later is None:
            if field.number not in reserved:
                yield f"{name}.{field.name}: its number {field.number} is neither used nor reserved"
            continue
        if later.name != field.name:
            yield f"{name}: number {field.number} was {field.name}, and is {later.name}"
        if _kind(later) != _kind(field):
            yield f"{name}.{field.name} was {_kind(field)}, and is {_kind(later)}"
        if _oneof(before, field) != _oneof(after, later):
            yield f"{name}.{field.name} was in {_oneof(before, field)}, and is in {_oneof(after, later)}"
    for span in before.reserved_range:
        for number in range(span.start, span.end):
            if number in numbers:
                yield f"{name}.{numbers[number].name} uses the number {number}, which is reserved"
            elif number not in reserved:
                yield f"{name}: the number {number} is no longer reserved"
    for taken in set(before.reserved_name) & {field.name for field in after.field}:
        yield f"{name}.{taken} uses a name that is reserved"
    earlier = {field.number for field in before.field}
    for field in after.field:
        if field.label == FieldDescriptorProto.LABEL_REQUIRED and field.number not in earlier:
            yield f"{name}.{field.name} is new, and required"


def _of_enum(name: str, before: EnumDescriptorProto, after: EnumDescriptorProto | None) -> Iterator[str]:
    if after is None:
        yield f"enum {name} is gone"
        return
    numbers = {value.number: value.name for value in after.value}
    reserved = {number for span in after.reserved_range for number in range(span.start, span.end + 1)}
    for value in before.value:
        if value.number not in numbers:
            if value.number not in reserved:
                yield f"{name}.{value.name}: its number {value.number} is neither used nor reserved"
        elif numbers[value.number] != value.name:
            yield f"{name}: number {value.number} was {value.name}, and is {numbers[value.number]}"


def _of_service(name: str, before: ServiceDescriptorProto, after: ServiceDescriptorProto | None) -> Iterator[str]:
    if after is None:
        yield f"service {name} is gone"
        return
    methods = {method.name: method for method in after.method}
    for method in before.method:
        later = methods.get(method.name)
        if later is None:
            yield f"method {name}.{method.name} is gone"
        elif (later.input_type, later.output_type) != (method.input_type, method.output_type):
            yield f"method {name}.{method.name} takes or gives another message"
        elif (later.client_streaming, later.server_streaming) != (method.client_streaming, method.server_streaming):
            yield f"method {name}.{method.name} streams otherwise"


def _messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    waiting = [(f"{file.package}.{message.name}", message) for message in file.message_type]
    while waiting:
        name, message = waiting.pop(0)
        yield name, message
        waiting += [(f"{name}.{inner.name}", inner) for inner in message.nested_type]


def _enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _messages(file):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def _kind(field: FieldDescriptorProto) -> str:
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    many = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    presence = "optional " if field.proto3_optional else ""
    return f"{many}{presence}{kind}{field.type_name}"


def _oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    if not field.HasField("oneof_index") or field.proto3_optional:
        return "no oneof"
    return message.oneof_decl[field.oneof_index].name
