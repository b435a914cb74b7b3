"""What the doctor asks of servers: that of the data folder, the ports that are wanted, and whose clock says what.

In: endpoints, plans, addresses. Out: checks. A port that somebody else has taken is told with who that is, where the
system lets us see.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from speakerd.cli.connection import Endpoints, own_connection, trusted
from speakerd.cli.findings import Check, note, ok, problem
from speakerd.cli.probes import Answer, ask_grpc, ask_http
from speakerd.errors import SpeakerdError
from speakerd.v1 import node_pb2, streams_pb2

ASK_S = 5.0
SKEW_S_GOOD = 1.0
SKEW_S_MAX = 5.0
LISTENING = "0A"
LOG_BYTES = 2 << 20
HOUR_S = 3600.0


def running(folder: Path, endpoints: Endpoints) -> Iterator[Check]:
    """The server of the data folder: whether it lives and is ready, its nodes, its Redis, its clock."""
    again = f"see {folder / 'logs'}; stop `speakerd up` and start it again"
    ahead_s: list[float] = []
    for name, address, asked in (
        ("server (gRPC)", endpoints.grpc, _by_grpc),
        ("server (HTTP)", endpoints.http, _by_http),
    ):
        try:
            live, ready = asked(address, "live"), asked(address, "ready")
        except SpeakerdError as error:
            owner = holder_of(address)
            why = f"; the port belongs to {owner}" if owner and not owner.endswith("(speakerd)") else ""
            yield problem(name, f"{error.message}{why}", f"stop {owner}, and {again}" if why else again)
            continue
        ahead_s += [] if live.ahead_s is None else [live.ahead_s]
        if not live.holds:
            yield problem(name, f"{address} says that it is not alive", again)
        elif not ready.holds:
            yield problem(name, f"{address} is not ready", f"the lines below may say why; else see {folder / 'logs'}")
        else:
            yield ok(name, f"{address} is live and ready")
    if ahead_s:
        yield skew("clock of the server", min(ahead_s, key=abs))
    yield from _fleet(folder, endpoints)


def skew(name: str, ahead_s: float) -> Check:
    """How far another clock is from ours."""
    found = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    mend = "let both machines follow one time service (chrony, systemd-timesyncd): tickets are good for a minute"
    if abs(ahead_s) <= SKEW_S_GOOD:
        return ok(name, f"within {max(abs(ahead_s), 0.1):.1f} s of this machine's")
    return problem(name, found, mend) if abs(ahead_s) > SKEW_S_MAX else note(name, found, mend)


def port(what: str, address: str) -> Check:
    """A port that something of ours wants to listen on, or listens on. what: one of PORTS."""
    name, flag, ask = PORTS[what]
    host, _, number = address.rpartition(":")
    if number == "0":
        return ok(name, f"{address}: any free one")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(number), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
    except (OSError, ValueError) as error:
        owner = holder_of(address)
        if owner:
            with contextlib.suppress(SpeakerdError):
                ask(address, "live")
                return ok(name, f"a daemon of ours serves at {address}")
            return problem(name, f"{address} is taken by {owner}", f"stop {owner}, or choose another port with {flag}")
        why = (getattr(error, "strerror", None) or "no address").lower()
        return problem(name, f"{address} cannot be listened on ({why})", f"choose another address with {flag}")
    return ok(name, f"{address} is free")


def deaths_of_redis(folder: Path) -> Iterator[Check]:
    """What the control plane's log says of a Redis that died lately, though it runs again."""
    log = folder / "logs" / "controlplane.log"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - HOUR_S))
    died = []
    for line in lines:
        if b"redis.died" in line:
            try:
                said = json.loads(line)
                died += [str(said["timestamp"])] if str(said["timestamp"]) > since else []
            except (ValueError, KeyError):
                continue
    if died:
        yield note(
            "Redis of late",
            f"died {len(died)} times in the last hour, last at {died[-1][11:19]} UTC, and was started again",
            "nothing is lost; unless you ended it yourself, see dmesg for an end by want of memory, and the disk",
        )


def holder_of(address: str) -> str:
    """Who listens on a port of this machine: "NAME (pid N)", with "(speakerd)" behind it for ours; "" if unknown."""
    number = address.rstrip("/").rpartition(":")[2]
    if not number.isdigit():
        return ""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = [line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        except OSError:
            continue
        wanted = f":{int(number):04X}"
        inodes |= {f"socket:[{row[9]}]" for row in rows if row[1].endswith(wanted) and row[3] == LISTENING}
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        try:
            if any(str(handle.readlink()) in inodes for handle in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().split(b"\0")
                ours = " (speakerd)" if b"speakerd" in command or b"speakerd.cli.tethered" in command else ""
                return f"{(process / 'comm').read_text().strip()} (pid {process.name}){ours}"
        except OSError:
            continue
    return "a process of another user" if inodes else ""


def _fleet(folder: Path, endpoints: Endpoints) -> Iterator[Check]:
    try:
        fleet = asyncio.run(_nodes(folder, endpoints))
    except SpeakerdError as error:
        yield problem("fleet", error.message, f"see {folder / 'logs'}")
        return
    if fleet.redis_up:
        yield ok("Redis, says the server", "answers")
    else:
        yield problem(
            "Redis, says the server",
            "does not answer; streams are placed from memory",
            "start it again, or mend REDIS_URL; one of our own is started again by itself within seconds",
        )
    serving = [node for node in fleet.nodes if _serves(node)]
    found = f"{len(serving)} of {len(fleet.nodes)} serve"
    if not serving:
        yield problem("nodes", found, f"no stream can be placed: see {folder / 'logs'}, `speakerd fleet --once`")
    elif len(serving) < len(fleet.nodes):
        yield note("nodes", found, "see `speakerd fleet --once` for which do not")
    else:
        yield ok("nodes", found)


def _serves(node: streams_pb2.NodeStatus) -> bool:
    return node.state == node_pb2.NODE_STATE_SERVING and node.health != streams_pb2.NodeStatus.HEALTH_STALE


async def _nodes(folder: Path, endpoints: Endpoints) -> streams_pb2.ListNodesResponse:
    async with own_connection(endpoints.grpc, folder).open() as client:
        return await client.nodes()


def _by_grpc(address: str, word: str) -> Answer:
    return asyncio.run(ask_grpc(address, word, ASK_S, trusted()))


def _by_http(address: str, word: str) -> Answer:
    return ask_http(address, word, ASK_S)


PORTS: dict[str, tuple[str, str, Callable[[str, str], Answer]]] = {
    "http": ("port of HTTP", "--http", _by_http),
    "grpc": ("port of gRPC", "--grpc", _by_grpc),
    "fleet_grpc": ("port of gRPC for nodes", "--fleet-grpc", _by_grpc),
    "metrics": ("port of metrics", "--metrics", _by_http),
    "node": ("port of the node", "--listen", _by_grpc),
    "node_streams": ("port of the node's streams", "--stream-listen", _by_grpc),
    "node_metrics": ("port of the node's metrics", "--metrics", _by_http),
}
"""Every port there may be: what it is called here, the flag that moves it, and how a daemon of ours answers there."""
