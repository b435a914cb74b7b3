"""The edge as clients meet it: a whole control plane in this process, fake nodes, uvicorn on a port, httpx in front."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlplane.app import ControlPlane
from edge.app import build
from runtime.lifecycle import Tasks
from tests.controlplane.conftest import World, collected
from tests.controlplane.people import make_key, make_tenant

__all__ = ["collected"]  # a fixture

TIMEOUT_S = 60.0
"""A machine that stalls must not make a test fail."""


@dataclass
class Served:
    """A control plane that is served over HTTP, and clients of it."""

    world: World
    plane: ControlPlane
    url: str
    stack: AsyncExitStack

    @property
    def admin_key(self) -> str:
        return (self.world.data / "admin.key").read_text().strip()

    async def key(self, *scopes: str, tenant_id: str = "default", user_id: str | None = None) -> str:
        """A new API key of a tenant that exists."""
        return await make_key(self.plane, tenant_id, *scopes, user_id=user_id)

    async def tenant(self, tenant_id: str, *user_ids: str) -> None:
        await make_tenant(self.plane, tenant_id, *user_ids)

    async def http(self, token: str | None = None, **options: Any) -> httpx.AsyncClient:
        """A client with a key: the administrator's when none is given, none at all for ""."""
        token = self.admin_key if token is None else token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT_S, **options)
        return await self.stack.enter_async_context(client)


class Serving:
    """Serves control planes of a world."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self._stack = stack

    async def __call__(self, *, nodes: int = 0, **settings: Any) -> Served:
        """A control plane with these settings, and so many fake nodes (`served.world.node` adds more)."""
        plane = await self.world.plane(**settings)
        for number in range(nodes):
            await self.world.node(plane, f"node-{number + 1}")
        edge = build(plane)
        tasks = Tasks()
        await edge.start(tasks)
        served = Served(self.world, plane, edge.url, self._stack)

        async def stop() -> None:
            await edge.stop()
            await tasks.cancel()
            assert not tasks.failed.done(), tasks.failed.result()

        self._stack.push_async_callback(stop)
        return served


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    """Makes served control planes: `served = await serving(nodes=1, http_rate_limits={...})`."""
    async with AsyncExitStack() as stack:
        yield Serving(World(tmp_path / "data", stack, None), stack)


@pytest.fixture
async def served(serving: Serving) -> Served:
    """One with a fake node and the settings of tests/controlplane/conftest.py, whose leases are long."""
    return await serving(nodes=1)
