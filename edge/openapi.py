"""The OpenAPI document of a dialect: what its routes say, with its own envelope for every error.

In: the application and its dialect. Out: the document. What always holds: each operation names every status that it can
answer with, and its security when it has any; nothing of the framework's own validation envelope is left.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from edge.dialect import Dialect
from edge.terms import IDEMPOTENCY_HEADER, Terms, terms_of

_FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")
_SCHEME = "apiKey"


def describe(app: FastAPI, dialect: Dialect) -> dict[str, Any]:
    """The document."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _FRAMEWORKS_OWN:
        schemas.pop(name, None)
    envelope = dialect.error_model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(envelope.pop("$defs", {}))
    schemas[dialect.error_model.__name__] = envelope
    components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                operation = document["paths"][route.path_format][method.lower()]
                _complete(operation, terms_of(route.endpoint), dialect)
    return document


def _complete(operation: dict[str, Any], said: Terms, dialect: Dialect) -> None:
    answers: dict[str, Any] = operation["responses"]
    if "HTTPValidationError" in str(answers.get("422")):
        del answers["422"]
    reference = {"$ref": f"#/components/schemas/{dialect.error_model.__name__}"}
    for status, what in dialect.errors.items():
        answer = answers.setdefault(str(status), {"description": what})
        answer.setdefault("content", {"application/json": {"schema": reference}})
    if said.scope is not None:
        operation["security"] = [{_SCHEME: []}]
    if said.rate is not None:
        headers = answers["429"].setdefault("headers", {})
        for name in ("Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"):
            headers[name] = {"schema": {"type": "integer"}}
    if said.idempotent:
        operation.setdefault("parameters", []).append(
            {
                "name": IDEMPOTENCY_HEADER.title(),
                "in": "header",
                "required": False,
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
                "description": "Within 24 hours the same key gives the same answer, and the call is done once.",
            }
        )
