"""Where the control plane listens: for those who hold API keys, and for nodes; and who may come in as a node.

In: settings, certificates. Out: servers that run. What always holds: with TLS, nodes have a port of their own that asks
for their certificates, and a node speaks there for nobody but the one that its certificate names; without it, one port
serves all, and nodes show the fleet's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpc import aio

from controlplane.config import ControlPlaneSettings
from controlplane.identity import Identity
from runtime.errors import Denied
from runtime.grpc_server import GrpcHealth, StartGate, bearer, bind, new_server
from runtime.health import Health
from runtime.tls import NODE, Tls, dns_name, named_address


class Doors:
    """The gRPC servers of a control plane. `clients` and `nodes` are one server, or two."""

    def __init__(self, settings: ControlPlaneSettings, tls: Tls | None, *, services: Sequence[str]) -> None:
        self._settings = settings
        self._tls = tls
        self._is_whole = "grpc" in settings.roles
        self._services = tuple(services) if self._is_whole else ()
        self._fleet_listen = settings.fleet_grpc or (f"{_host(settings.grpc)}:0" if tls else None)
        self._gate = StartGate()
        self.clients = new_server([self._gate])
        is_one = self._fleet_listen is None or not self._is_whole
        self.nodes = self.clients if is_one else new_server([self._gate])
        self.address = self.fleet_address = ""

    def __repr__(self) -> str:
        return f"Doors(clients {self.address!r}, nodes {self.fleet_address!r})"

    async def open(self, health: Health) -> GrpcHealth:
        """Listen, and answer for health alone. A process without the role `grpc` answers for nothing else, ever.

        Raises InvalidRequest or Unavailable for an address that cannot be listened on.
        """
        settings = self._settings
        listen = settings.grpc if self._is_whole else settings.health
        told = GrpcHealth(health, self._services)
        told.serve_on(self.clients, with_reflection=self._is_whole)
        # The one port for all takes clients without certificates: it is then plain text, on loopback.
        port = bind(self.clients, listen, insecure=settings.insecure, tls=self._tls, is_public=True)
        self.address = self.fleet_address = f"{_host(listen)}:{port}"
        if self.nodes is not self.clients:
            assert self._fleet_listen is not None
            told.serve_on(self.nodes)
            port = bind(self.nodes, self._fleet_listen, insecure=settings.insecure, tls=self._tls)
            self.fleet_address = f"{_host(self._fleet_listen)}:{port}"
            await self.nodes.start()
        await self.clients.start()
        return told

    def serve(self) -> None:
        """Let calls through to what was added to the servers."""
        self._gate.open()

    async def drain(self, deadline_s: float) -> None:
        """Refuse new calls and let those that run end."""
        await self.close(deadline_s)

    async def close(self, grace_s: float) -> None:
        """Close both servers."""
        for server in {self.clients, self.nodes}:
            await server.stop(grace_s)


class NodeDoor:
    """Who may speak for a node."""

    def __init__(self, identity: Identity, tls: Tls | None) -> None:
        self._identity = identity
        self._tls = tls

    def __repr__(self) -> str:
        return f"NodeDoor(certificates={self._tls is not None})"

    def require(self, context: aio.ServicerContext[Any, Any], node_id: str) -> None:
        """Raises Unauthenticated or Denied unless the caller is that node."""
        if self._tls is None:
            self._identity.require_fleet(bearer(context))
            return
        peer = self._tls.require_role(context, NODE)
        if peer.id != node_id:
            raise Denied(f"the certificate is for node/{peer.id}, which cannot speak for node/{node_id[:64]}")

    def named(self, node_id: str, address: str) -> str:
        """A node's address with the name that its certificate has to show there."""
        return named_address(dns_name(self._tls.name.domain, NODE, node_id) if self._tls else "", address)


def _host(address: str) -> str:
    return address.rpartition(":")[0]
