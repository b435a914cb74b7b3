"""What the last release was built with still works with today's contract, message by message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

from tests.contract.changes import breaches
from tests.contract.releases import Contract, descriptors

DEPTH_MAX = 6


@pytest.fixture(scope="module")
def released() -> Contract:
    return Contract(descriptors(released=True))


@pytest.fixture(scope="module")
def today() -> Contract:
    return Contract(descriptors(released=False))


def test_nothing_of_the_contract_was_taken_away_or_given_another_meaning() -> None:
    assert breaches(descriptors(released=True), descriptors(released=False)) == []


def message(found: FileDescriptorSet, name: str) -> Any:
    return next(one for file in found.file for one in file.message_type if one.name == name)


def renumbered(found: FileDescriptorSet) -> None:
    message(found, "RenewRequest").field[1].number = 99


def retyped(found: FileDescriptorSet) -> None:
    message(found, "RenewRequest").field[1].type = FieldDescriptorProto.TYPE_STRING


def renamed(found: FileDescriptorSet) -> None:
    message(found, "RenewRequest").field[1].name = "life"


def taken_away(found: FileDescriptorSet) -> None:
    del message(found, "RenewRequest").field[1]


def made_repeated(found: FileDescriptorSet) -> None:
    message(found, "RenewRequest").field[1].label = FieldDescriptorProto.LABEL_REPEATED


def reserved_number_used(found: FileDescriptorSet) -> None:
    begin = message(found, "SnapshotBegin")
    begin.field.add(
        name="again", number=2, type=FieldDescriptorProto.TYPE_BOOL, label=FieldDescriptorProto.LABEL_OPTIONAL
    )


def moved_out_of_its_oneof(found: FileDescriptorSet) -> None:
    message(found, "SyncResponse").field[0].ClearField("oneof_index")


def required(found: FileDescriptorSet) -> None:
    label = FieldDescriptorProto.LABEL_REQUIRED
    message(found, "RenewRequest").field.add(name="must", number=500, type=FieldDescriptorProto.TYPE_BOOL, label=label)


def value_renumbered(found: FileDescriptorSet) -> None:
    enum = next(one for file in found.file for one in file.enum_type if one.name == "NodeState")
    enum.value[1].number = 77


def method_taken_away(found: FileDescriptorSet) -> None:
    service = next(one for file in found.file for one in file.service if one.name == "Fleet")
    del service.method[0]


def method_streams(found: FileDescriptorSet) -> None:
    service = next(one for file in found.file for one in file.service if one.name == "Fleet")
    service.method[0].server_streaming = True


def message_taken_away(found: FileDescriptorSet) -> None:
    file = next(one for one in found.file if any(inner.name == "RenewRequest" for inner in one.message_type))
    del file.message_type[0]


@pytest.mark.parametrize(
    "change",
    [renumbered, retyped, renamed, taken_away, made_repeated, reserved_number_used, moved_out_of_its_oneof, required,
     value_renumbered, method_taken_away, method_streams, message_taken_away],
)  # fmt: skip
def test_every_kind_of_breach_is_noticed(change: Callable[[FileDescriptorSet], None]) -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(descriptors(released=True))
    change(changed)
    assert breaches(descriptors(released=True), changed)


def test_additions_are_no_breach() -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(descriptors(released=True))
    renew = message(changed, "RenewRequest")
    renew.field.add(
        name="more", number=500, type=FieldDescriptorProto.TYPE_BOOL, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    number = renew.field[0].number
    del renew.field[0]
    renew.reserved_range.add(start=number, end=number + 1)
    assert breaches(descriptors(released=True), changed) == []


def test_what_is_new_in_a_message_survives_whoever_does_not_know_it(released: Contract, today: Contract) -> None:
    for name in released.names:
        later = today.message(name)
        for sent in filled(later):
            passed_on = released.message(name).FromString(sent.SerializeToString()).SerializeToString()
            assert later.FromString(passed_on) == sent, name


def test_what_the_release_says_is_understood_as_it_was_meant(released: Contract, today: Contract) -> None:
    for name in released.names:
        earlier = released.message(name)
        for sent in filled(earlier):
            heard = today.message(name).FromString(sent.SerializeToString())
            assert not unknown(heard), name
            assert earlier.FromString(heard.SerializeToString()) == sent, name
            assert {field.name for field, _ in sent.ListFields()} == {field.name for field, _ in heard.ListFields()}


def unknown(heard: Any) -> bool:
    """Whether anything in a message was not understood."""
    before = heard.SerializeToString(deterministic=True)
    known = type(heard)()
    known.CopyFrom(heard)
    known.DiscardUnknownFields()
    return bool(known.SerializeToString(deterministic=True) != before)


def filled(kind: Any, depth: int = 0) -> Iterator[Any]:
    """Messages with every field set to something that is not its default: one for each case of their oneofs."""
    descriptor = kind.DESCRIPTOR
    cases = max([1, *(len(group.fields) for group in descriptor.oneofs)])
    for case in range(cases if depth == 0 else 1):
        made = kind()
        for field in descriptor.fields:
            group = field.containing_oneof
            if group is not None and group.fields[case % len(group.fields)] is not field:
                continue
            put(made, field, depth)
        yield made


def put(made: Any, field: FieldDescriptor, depth: int) -> None:
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if is_message and depth >= DEPTH_MAX:
        return
    target = getattr(made, field.name)
    if field.is_repeated:
        if is_message and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            key = scalar(field.message_type.fields_by_name["key"])
            if value.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                target[key].SetInParent()
            else:
                target[key] = scalar(value)
        elif is_message:
            target.add().CopyFrom(next(filled(type(target.add()), depth + 1)))
        else:
            target.append(scalar(field))
    elif is_message:
        target.CopyFrom(next(filled(type(target), depth + 1)))
        target.SetInParent()
    else:
        setattr(made, field.name, scalar(field))


def scalar(field: FieldDescriptor) -> Any:
    """A value that is not the default."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"\x07bytes" if field.type == FieldDescriptor.TYPE_BYTES else "words"
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return field.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return 1.5
        case _:
            return 7
