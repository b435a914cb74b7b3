"""Daemons that are started otherwise than `python -m speakerd`: by another module, or in another environment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence

from tests.faults.processes import ROOT, START_S, Daemon, Processes, environment

LONG_LEASES = {"SPEAKERD_NODE_LEASE_S": "20", "SPEAKERD_LEASE_S": "22"}
"""Settings of a control plane whose leases a machine that stalls for a while does not end."""
OVER_A_LEASE_S = 24.0


async def start_altered(
    daemons: Processes,
    name: str,
    *arguments: str,
    module: str = "speakerd",
    before: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Daemon:
    """Run `[before…] python -m MODULE ARGUMENTS…` until it says that it is ready; it ends with the others."""
    log = daemons.folder / f"{name}.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *before,
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env={**environment(), **(env or {})},
        )
    assert process.stdout is not None
    daemon = Daemon(process, {}, log)
    daemons.daemons.append(daemon)
    line = (await asyncio.wait_for(process.stdout.readline(), 3 * START_S)).decode().split()
    assert line[:1] == ["ready"], log.read_text()[-3000:]
    daemon.ready.update(part.split("=", 1) for part in line[1:])
    return daemon
