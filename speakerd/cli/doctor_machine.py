"""What the doctor looks at on this machine: Python, packages, memory, disk, files, clock, and the engine's weights.

Nothing is loaded in this process: versions are read from package metadata, and the engine is asked in a process of its
own (`speakerd models verify`), so that a broken installation is reported rather than hit.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from speakerd.cli.findings import GIB, MIB, Check, note, ok, problem, write_probe

ENGINE_BOUND_S = 120.0
FREE_BYTES_MIN = 256 * MIB
FREE_BYTES_GOOD = 2 * GIB
MEMORY_BYTES_MIN = GIB
MEMORY_BYTES_GOOD = 3 * GIB
DEVICE_BYTES_MIN = 2 * GIB
FILES_MIN = 4_096
CLOCK_MIN_S = 1_735_689_600  # 2025-01-01: whatever says less has not been set
TESTED = {"torch": "2.11.", "torchaudio": "2.11.", "pyannote.audio": "4.0."}
BUILTIN = "builtin"


def python() -> Iterator[Check]:
    """The interpreter."""
    yield ok("Python", ".".join(map(str, sys.version_info[:3])))


def packages() -> Iterator[Check]:
    """What the engine is tested with, and what everything stands on."""
    for name, tested in TESTED.items():
        version = _version(name)
        if version is None:
            yield note(name, "not installed", "pip install 'speakerd[node]' to run the engine on this machine")
        elif version.startswith(tested):
            yield ok(name, version)
        else:
            yield note(name, version, f"tested with {tested}x: pip install 'speakerd[node]'")
    torch, torchaudio = _version("torch"), _version("torchaudio")
    if torch and torchaudio and torch.split("+")[0].split(".")[:2] != torchaudio.split("+")[0].split(".")[:2]:
        yield problem(
            "torch set",
            f"torch {torch} and torchaudio {torchaudio} do not belong together",
            "install both from one index and in one version: pip install 'speakerd[node]'",
        )
    for name in ("grpcio", "protobuf"):
        yield ok(name, _version(name) or "?")


def memory() -> Iterator[Check]:
    """What is left of the machine's memory, or of this container's."""
    free = _available_memory()
    if free is None:
        yield note("memory", "cannot be told on this system", "see that the node has 3 GiB for itself")
        return
    found = f"{free / GIB:.1f} GiB available"
    if free < MEMORY_BYTES_MIN:
        yield problem("memory", found, "an engine takes 1 GiB and more: stop something, or give the machine more")
    elif free < MEMORY_BYTES_GOOD:
        yield note("memory", found, "enough for the engine and a few streams: give it 3 GiB for long recordings")
    else:
        yield ok("memory", found)


def disk(folder: Path) -> Iterator[Check]:
    """Room for the data folder, and whether it can be written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize
    found = f"{_size(free)} free for {folder}"
    mend = f"make room on the file system of {there} (df -h {there}), or name another folder with --data"
    if not os.access(there, os.W_OK | os.X_OK):
        yield problem("disk", f"{there} cannot be written to", "name another folder with --data or SPEAKERD_DATA")
    elif why := write_probe(there):
        yield problem("disk", f"nothing can be written to {there} ({why}); {found}", mend)
    elif room.f_files and room.f_favail < 1_000:
        yield problem("disk", f"{room.f_favail} files can still be made for {folder}", "delete files, or " + mend)
    elif free < FREE_BYTES_MIN:
        yield problem("disk", f"{found}: it is about to be full", mend)
    elif free < FREE_BYTES_GOOD:
        yield note("disk", found, mend)
    else:
        yield ok("disk", found)


def open_files() -> Iterator[Check]:
    """How many connections a process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} a process"
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        yield note("open files", found, f"for many streams at once: ulimit -n {min(hard, 65_536)}")
    else:
        yield ok("open files", found)


def clock() -> Iterator[Check]:
    """This machine's own clock."""
    now_s = time.time()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < CLOCK_MIN_S:
        yield problem("clock", found, "set the clock: tickets and records carry its time")
    elif not hasattr(time, "CLOCK_BOOTTIME"):
        yield note("clock", found, "leases do not count sleep on this system: do not let a node's machine sleep")
    else:
        yield ok("clock", found)


def engine(bundle: str | None, device: str | None) -> Iterator[Check]:
    """Bundles and devices, as the engine itself sees them. bundle, device: what is run here; None: what there is."""
    if device == "null":
        yield ok("engine", "this fleet runs without one (--device null)")
        return
    command = [sys.executable, "-P", "-m", "speakerd", "models", "verify", *([bundle] if bundle else []), "--json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=ENGINE_BOUND_S, check=False)
        report: dict[str, Any] = json.loads(ran.stdout)
    except subprocess.TimeoutExpired:
        yield problem("engine", f"no answer in {ENGINE_BOUND_S:.0f} s", "run `speakerd models verify` and see")
        return
    except ValueError:
        words = ran.stderr.strip().splitlines()[-1:] or ["no answer"]
        yield problem("engine", words[0].removeprefix("error: "), "run `speakerd models verify` and see")
        return
    if "error" in report:
        said = report["error"]["message"]
        if bundle:
            yield problem(f"bundle {bundle}", said, _bundle_back(bundle))
        else:
            yield note("engine", said, "pip install 'speakerd[node]' to run it on this machine")
        return
    if not bundle and BUILTIN not in {found["id"] for found in report["bundles"]}:
        yield problem(f"bundle {BUILTIN}", "is gone", _bundle_back(BUILTIN))
    for found in report["bundles"]:
        for weights in found["weights"]:
            name = f"{found['id']}: {weights['name']}"
            if weights["ok"]:
                yield ok(name, f"sha256 {weights['sha256'][:12]}… as pinned")
            else:
                yield problem(name, weights["problem"], _bundle_back(found["id"]))
    yield from _devices(report["devices"], report.get("device_memory", {}), device)


def _devices(devices: list[str], room: dict[str, Any], wanted: str | None) -> Iterator[Check]:
    cards = [device for device in devices if device.startswith("cuda")]
    if cards:
        yield ok("device", ", ".join(devices))
    elif wanted and wanted.startswith("cuda"):
        yield problem(
            "device", f"{wanted} is wanted, torch sees {', '.join(devices)}", "see nvidia-smi; or --device cpu"
        )
    elif shutil.which("nvidia-smi"):
        yield note("device", ", ".join(devices), "a GPU is here, torch does not see it: install torch for CUDA")
    else:
        yield ok("device", f"{', '.join(devices)} ({os.cpu_count()} cores)")
    for card, (free, whole) in room.items():
        found = f"{free / GIB:.1f} of {whole / GIB:.1f} GiB free"
        if free < DEVICE_BYTES_MIN:
            yield problem(
                f"memory of {card}", found, "see nvidia-smi for who else uses it; a node wants 2 GiB and more"
            )
        else:
            yield ok(f"memory of {card}", found)


def _bundle_back(bundle: str) -> str:
    if bundle == BUILTIN:
        return (
            "install the packages that bring it again: `make setup`, or pip install --force-reinstall 'speakerd[node]'"
        )
    return f"bring it back with `speakerd models pull {bundle}` or `speakerd models import`, or run another --bundle"


def _available_memory() -> int | None:
    found = []
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        return None
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):  # most machines have no limit of a container's
        found.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(found))


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
