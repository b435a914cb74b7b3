"""Network namespaces: each host a kernel network of its own, two switches between them, and ports that can be pulled.

Every host has a leg in the fleet's network, over which daemons talk to each other, and one in the access network, over
which the test and its clients reach it. A pulled port loses packets silently, as a broken switch does: nobody is told.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

ATTEMPTS = 8


@dataclass
class Network:
    """Hosts by name. `fleet` and `access` give their addresses; `netns` the name of their namespace."""

    prefix: str
    subnet: str
    hosts: tuple[str, ...]

    def netns(self) -> dict[str, str]:
        return {host: f"{self.prefix}{index}" for index, host in enumerate(self.hosts)}

    def fleet(self, host: str) -> str:
        return f"{self.subnet}.{self._number(host)}"

    def access(self, host: str) -> str:
        return f"{self.subnet}.{128 + self._number(host)}"

    def cut(self, host: str, switch: str = "fleet") -> None:
        """Pull the host's port out of a switch."""
        _ip("-n", self._switches, "link", "set", self._port(host, switch), "nomaster")

    def heal(self, host: str, switch: str = "fleet") -> None:
        """Put it back."""
        _ip("-n", self._switches, "link", "set", self._port(host, switch), "master", switch)

    @contextlib.contextmanager
    def dropping(self, host: str, way: str, switch: str = "access") -> Iterator[None]:
        """Lose, without a word, all that comes to a host over a switch ("in") or leaves it ("out"), or "both"."""
        if way == "both":
            self.cut(host, switch)
            try:
                yield
            finally:
                self.heal(host, switch)
            return
        chain = ["INPUT", "-i", switch] if way == "in" else ["OUTPUT", "-o", switch]
        inside = ["netns", "exec", self.netns()[host], "iptables"]
        _ip(*inside, "-I", *chain, "-j", "DROP")
        try:
            yield
        finally:
            _ip(*inside, "-D", *chain, "-j", "DROP")

    def build(self) -> None:
        switches = self._switches
        _ip("netns", "add", switches)
        for switch in ("fleet", "access"):
            _ip("-n", switches, "link", "add", switch, "type", "bridge", "forward_delay", "0")
            _ip("-n", switches, "link", "set", switch, "up")
        for host, netns in self.netns().items():
            _ip("netns", "add", netns)
            _ip("-n", netns, "link", "set", "lo", "up")
            for switch, address in (("fleet", self.fleet(host)), ("access", self.access(host))):
                port = self._port(host, switch)
                _ip("link", "add", port, "netns", switches, "type", "veth", "peer", "name", switch, "netns", netns)
                _ip("-n", switches, "link", "set", port, "master", switch, "up")
                _ip("-n", netns, "address", "add", f"{address}/25", "dev", switch)
                _ip("-n", netns, "link", "set", switch, "up")
        # The test's own leg: its processes stay in the network where they are.
        port = f"{self.prefix}t"
        _ip("link", "add", f"{port}s", "netns", switches, "type", "veth", "peer", "name", port)
        _ip("-n", switches, "link", "set", f"{port}s", "master", "access", "up")
        _ip("address", "add", f"{self.subnet}.254/25", "dev", port)
        _ip("link", "set", port, "up")

    def remove(self) -> None:
        for netns in (self._switches, *self.netns().values()):
            subprocess.run(["ip", "netns", "del", netns], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"{self.prefix}t"], capture_output=True, check=False)

    @property
    def _switches(self) -> str:
        return f"{self.prefix}s"

    def _port(self, host: str, switch: str) -> str:
        return f"{switch[0]}{self._number(host)}"

    def _number(self, host: str) -> int:
        return self.hosts.index(host) + 1


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def network(*hosts: str) -> Iterator[Network]:
    """A network of these hosts, for as long as the context lasts."""
    made: Network | None = None
    for attempt in range(ATTEMPTS):
        made = Network(
            f"spk{secrets.token_hex(3)}", f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}", hosts
        )
        try:
            made.build()
            break
        except OSError:
            made.remove()
            if attempt == ATTEMPTS - 1:
                raise
    assert made is not None
    try:
        yield made
    finally:
        made.remove()


def drops() -> str:
    """Why packets cannot be dropped in one way in namespaces here; empty when they can."""
    reason = works()
    if reason:
        return reason
    if shutil.which("iptables") is None:
        return "no `iptables` on PATH"
    name = f"spk{secrets.token_hex(3)}x"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "iptables", "-I", "INPUT", "-i", "lo", "-j", "DROP")
    except OSError as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


def works() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if shutil.which("ip") is None:
        return "no `ip` on PATH (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"spk{secrets.token_hex(3)}x"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "br0", "type", "bridge")
    except OSError as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""
