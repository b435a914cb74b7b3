"""What a dialect is: a prefix, an error envelope, and routes.

A dialect is a package `edge/NAME` with a `DIALECT` that `edge.app` lists. Its `install` adds routes to an application
of its own, with their full paths; the frame gives that application request ids, body limits, authentication, rate
limits, Idempotency-Key and the dialect's envelope for every error, those of unknown paths and of faults included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from controlplane.app import ControlPlane, Core
from controlplane.config import ControlPlaneSettings
from controlplane.rate_limits import RateLimit
from edge.failures import Failure
from edge.uploads import UploadBudget


@dataclass(frozen=True, slots=True)
class Edge:
    """What every dialect stands on."""

    plane: ControlPlane
    uploads: UploadBudget
    rates: Mapping[str, RateLimit | None]

    @property
    def core(self) -> Core:
        """The use cases."""
        return self.plane.core

    @property
    def settings(self) -> ControlPlaneSettings:
        """The control plane's settings."""
        return self.plane.settings


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API that is spoken here.

    prefixes: the longest that a path begins with decides which dialect answers it.
    render: a failure as status and body, total over causes.
    error_model: the body's shape, for OpenAPI; errors: the statuses that any of its calls may answer with.
    rates: the kinds of calls that are counted, "NAME.KIND"; the setting http_rate_limits changes them.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    render: Callable[[Failure], tuple[int, dict[str, Any]]]
    error_model: type[BaseModel]
    errors: Mapping[int, str]
    install: Callable[[FastAPI, Edge], None]
    rates: tuple[RateLimit, ...] = field(default=())
