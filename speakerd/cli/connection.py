"""Which server a command talks to, and with what key.

In come flags, variables and what `speakerd up` left in its data folder; out comes an address and a key. A flag wins
over a variable, and both over the data folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from speakerd.channel import TlsTrust
from speakerd.client import Client
from speakerd.errors import SpeakerdError
from speakerd.rttm import write_whole

ENDPOINTS_FILE = "endpoints.json"
PLAN_FILE = "plan.json"
LOCK_FILE = "up.lock"
ADMIN_KEY_FILE = "admin.key"

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="HOST:PORT", help="gRPC address of the control plane. Default: the one of --data."
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="SPEAKERD_KEY",
        help="API key; a file that SPEAKERD_KEY_FILE names keeps it from others. Default: DATA/admin.key.",
        show_default=False,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="SPEAKERD_DATA",
        metavar="DIR",
        help="Data folder of `speakerd up`. Default: ~/.local/share/speakerd.",
        show_default=False,
    ),
]

# For commands that run a server of their own unless they are told to use another: a variable is no such word.
ServersDataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Use the server that runs for this data folder.", show_default=False),
]


# What this invocation of the command line was told with --tls-ca, whichever its command is.
_TRUST: ContextVar[TlsTrust | None] = ContextVar("trust", default=None)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running `speakerd up` serves. http is a URL, grpc is "host:port"."""

    http: str
    grpc: str
    pid: int


@dataclass(frozen=True, slots=True)
class Connection:
    """A control plane and the key to show there. tls: whose certificates to trust; None: plain text."""

    address: str
    key: str | None
    tls: TlsTrust | None = None

    def open(self) -> Client:
        """A client."""
        return Client(self.address, self.key, tls=self.tls)


def trust_servers_of(authority: Path | None) -> None:
    """Speak TLS with servers whose certificates this authority signed; None: plain text. Raises SpeakerdError."""
    _TRUST.set(TlsTrust.from_file(authority) if authority is not None else None)


def trusted() -> TlsTrust | None:
    """Whose certificates servers have to show; None: plain text is spoken."""
    return _TRUST.get()


def data_folder(data: Path | None) -> Path:
    """The data folder that was named, by flag or variable, or the default one."""
    named = data or os.environ.get("SPEAKERD_DATA")
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "speakerd"


def find_connection(server: str | None, key: str | None, data: Path | None) -> Connection:
    """The server that a command means. Raises SpeakerdError, saying how to start or name one, when there is none."""
    folder = data_folder(data)
    if server is None:
        endpoints = read_endpoints(folder)
        if endpoints is None:
            raise SpeakerdError(
                "unavailable",
                f"no server is running for {folder}: start one with `speakerd up`, or name one with --server HOST:PORT",
            )
        server = endpoints.grpc
    else:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise typer.BadParameter(f"--server {server!r}: write HOST:PORT, for example 127.0.0.1:7600")
    return Connection(server, key or _key_of_file() or _admin_key(folder), _TRUST.get())


def own_connection(server: str, data: Path) -> Connection:
    """A server of our own, on this machine's loopback."""
    return Connection(server, _admin_key(data))


def write_endpoints(folder: Path, endpoints: Endpoints) -> None:
    """Leave word of where a server of this data folder is."""
    write_whole(folder / ENDPOINTS_FILE, json.dumps(asdict(endpoints)) + "\n")


def read_endpoints(folder: Path) -> Endpoints | None:
    """Where the server of a data folder is; None when none is running."""
    try:
        endpoints = Endpoints(**json.loads((folder / ENDPOINTS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return endpoints if _lives(endpoints.pid) else None


def is_coming_up(folder: Path) -> bool:
    """Whether a `speakerd up` of this data folder runs and does not serve yet: endpoints are what it leaves last."""
    if read_endpoints(folder) is not None:
        return False
    try:
        with (folder / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def write_plan(folder: Path, plan: dict[str, str]) -> None:
    """Leave word of how a server of this data folder is to be run, for whoever looks why it does not."""
    write_whole(folder / PLAN_FILE, json.dumps(plan) + "\n")


def read_plan(folder: Path) -> dict[str, str]:
    """How a server of a data folder was last run: http, grpc, bundle, device, as far as they were said."""
    try:
        plan = json.loads((folder / PLAN_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in plan.items()} if isinstance(plan, dict) else {}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # as another user
    except OSError:
        return False
    return True


def _key_of_file() -> str | None:
    named = os.environ.get("SPEAKERD_KEY_FILE")
    if not named:
        return None
    try:
        key = Path(named).expanduser().read_text().strip()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise SpeakerdError("invalid", f"SPEAKERD_KEY_FILE: cannot read {named}: {why}") from None
    if not key:
        raise SpeakerdError("invalid", f"SPEAKERD_KEY_FILE: {named} is empty")
    return key


def _admin_key(folder: Path) -> str | None:
    try:
        return (folder / ADMIN_KEY_FILE).read_text().strip() or None
    except OSError:
        return None
