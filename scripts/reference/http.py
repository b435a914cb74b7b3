"""The reference of the HTTP dialects, from the documents that a running control plane publishes.

In: /openapi/NAME.json of each dialect. Out: one page a dialect. What always holds: every operation of the document is
on its page, with its parameters, its body, and every status that it answers with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from edge.app import DIALECTS
from scripts.reference.markdown import code, page, prose, table

Document = Mapping[str, Any]

METHODS = ("get", "post", "put", "patch", "delete")
STOP_S = 30.0
FETCH_S = 30.0


def published() -> dict[str, Document]:
    """The document of each dialect by its name, as a control plane of our own serves it."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "speakerd", "controlplane", "--data", data]
        command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--log-level", "error"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
            assert daemon.stdout is not None
            try:
                said = daemon.stdout.readline().split()
                if said[:1] != ["ready"]:
                    raise SystemExit("the control plane did not start; its complaint is above")
                url = dict(word.split("=", 1) for word in said[1:])["http"]
                return {dialect.name: _read(f"{url}/openapi/{dialect.name}.json") for dialect in DIALECTS}
            finally:
                daemon.terminate()
                daemon.wait(STOP_S)


def _read(url: str) -> Document:
    with urllib.request.urlopen(url, timeout=FETCH_S) as answer:
        document: Document = json.load(answer)
        return document


def http_page(name: str, document: Document) -> str:
    """The page of a dialect."""
    intro = (
        f"Every call of this dialect, as `GET /openapi/{name}.json` of a running control plane describes it. How it is "
        f"used: [the dialect's page](../{name}.md). WebSockets are not part of OpenAPI: "
        "[live streams](../live-over-websocket.md)."
    )
    shared = _answers_of_all(document)
    parts = [
        part
        for path, methods in document["paths"].items()
        for method in METHODS
        if method in methods
        for part in _operation(path, method, methods[method], shared)
    ]
    return page(
        document["info"]["title"],
        f"/openapi/{name}.json",
        intro,
        table(("call", "what it does"), _contents(document)),
        "## Answers of every call",
        table(("status", "when", "body"), (_answer(status, shared[status]) for status in sorted(shared))),
        "## Calls",
        *parts,
        "## Bodies",
        *(part for one in document["components"]["schemas"].items() for part in _schema(*one)),
    )


def _contents(document: Document) -> Iterator[tuple[str, str]]:
    for path, methods in document["paths"].items():
        for method in METHODS:
            if method in methods:
                yield f"{code(method.upper())} {code(path)}", prose(_what(methods[method]).partition("\n\n")[0])


def _what(operation: Document) -> str:
    return str(operation.get("description") or operation.get("summary") or "")


def _answers_of_all(document: Document) -> dict[str, Any]:
    """Answers that every operation has in the same words: said once."""
    each = [operation["responses"] for methods in document["paths"].values() for operation in methods.values()]
    told = {status: (answer["description"], _body(answer)) for status, answer in each[0].items()}
    return {
        status: each[0][status]
        for status, said in told.items()
        if all((one.get(status, {}).get("description"), _body(one.get(status, {}))) == said for one in each)
    }


def _operation(path: str, method: str, operation: Document, shared: Mapping[str, Any]) -> Iterator[str]:
    key = "" if operation.get("security") else " No API key is asked for."
    yield f"### {method.upper()} {path}"
    yield "\n\n".join(prose(part) for part in _what(operation).split("\n\n")) + key
    rows = (
        (code(one["name"]), one["in"], _kind(one.get("schema", {})), _required(one), prose(one.get("description", "")))
        for one in operation.get("parameters", ())
    )
    yield table(("parameter", "in", "type", "", "meaning"), rows)
    if "requestBody" in operation:
        yield f"Body: {_body(operation['requestBody'])}."
    own = {status: answer for status, answer in operation["responses"].items() if status not in shared}
    yield table(("status", "when", "body"), (_answer(status, own[status]) for status in sorted(own)))


def _answer(status: str, answer: Document) -> tuple[str, str, str]:
    return status, prose(answer.get("description", "")), _body(answer)


def _body(holder: Document) -> str:
    return ", ".join(
        f"{code(kind)} {_kind(said.get('schema', {}))}" for kind, said in holder.get("content", {}).items()
    )


def _required(parameter: Document) -> str:
    return "required" if parameter.get("required") else ""


def _schema(name: str, schema: Document) -> Iterator[str]:
    yield f"### {name}\n\n{prose(schema.get('description', ''))}"
    if "properties" not in schema:
        yield _kind(schema)
        return
    required = schema.get("required", ())
    yield table(
        ("field", "type", "", "meaning"),
        (
            (code(field), _kind(said), "required" if field in required else "", prose(said.get("description", "")))
            for field, said in schema["properties"].items()
        ),
    )


def _kind(schema: Document) -> str:
    """A schema in a few words; another one's name is a link to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(filter(None, map(_kind, schema[choice]))))
    if "enum" in schema:
        return " or ".join(code(json.dumps(value)) for value in schema["enum"])
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    match schema.get("type"):
        case "array":
            return f"list of {_kind(schema.get('items', {}))}"
        case "string" if schema.get("format") or schema.get("contentMediaType"):
            return f"string ({schema.get('format') or schema['contentMediaType']})"
        case str(kind):
            return kind
    return "anything"
