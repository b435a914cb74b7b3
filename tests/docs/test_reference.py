"""The generated pages of the documentation are those that would be generated now."""

from __future__ import annotations

import difflib

from google.protobuf.descriptor import FileDescriptor

from edge.app import DIALECTS
from scripts.reference.http import METHODS, published
from scripts.reference.pages import DOCS, http_pages, offline_pages
from speakerd.v1 import admin_pb2, audit_pb2, fleet_pb2, jobs_pb2, node_pb2, people_pb2, streams_pb2

CONTRACT: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR for module in (admin_pb2, audit_pb2, fleet_pb2, jobs_pb2, node_pb2, people_pb2, streams_pb2)
)


def assert_up_to_date(name: str, text: str) -> None:
    there = (DOCS / name).read_text()
    difference = "\n".join(list(difflib.unified_diff(there.splitlines(), text.splitlines(), lineterm="", n=0))[:40])
    assert there == text, f"docs/{name} is out of date: run `make reference` and commit it\n{difference}"


def test_the_pages_of_contract_settings_commands_and_errors_are_up_to_date() -> None:
    for name, text in offline_pages():
        assert_up_to_date(name, text)


def test_the_pages_of_the_dialects_are_what_a_running_control_plane_publishes() -> None:
    documents = published()
    assert set(documents) == {dialect.name for dialect in DIALECTS}
    for name, text in http_pages(documents):
        assert_up_to_date(name, text)
    for name, document in documents.items():
        page = (DOCS / f"reference/http-{name}.md").read_text()
        for path, methods in document["paths"].items():
            for method in methods:
                assert method in METHODS
                assert f"\n### {method.upper()} {path}\n" in page


def test_every_method_and_message_of_the_contract_is_on_its_page() -> None:
    page = (DOCS / "reference/grpc.md").read_text()
    for file in CONTRACT:
        for service in file.services_by_name.values():
            assert f"\n### {service.name}\n" in page
            for method in service.methods:
                assert f"\n| `{method.name}` |" in page, method.full_name
        for message in file.message_types_by_name.values():
            assert f"\n### {message.name}\n" in page
            for field in message.fields:
                assert f"| `{field.name}` | {field.number} |" in page, field.full_name
