"""How long an erasure takes until it is proven, with healthy nodes: real processes on this machine alone.

    python benchmarks/erasure.py [--erasures 200] [--nodes 3] [--planes 1] [--at-once 1] [--relaying]

Enrols a person for each erasure, then erases one after the other (or --at-once of them) and waits for the proof.
--relaying keeps a recording under way through a control plane, so that a relay's lease is waited for too. Prints one
JSON object; asserts that every erasure was proven, no node was left out, and the audit is whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from benchmarks.fleet import callers, chord, spread_ms
from benchmarks.fleet_processes import running_fleet
from runtime.grpc_server import open_channel
from speakerd.v1 import audit_pb2, audit_pb2_grpc, common_pb2, jobs_pb2_grpc, node_pb2, people_pb2


async def keep_relaying(address: str, token: str, ended: asyncio.Event) -> None:
    """A recording that trickles through a control plane for as long as the measurement takes."""
    opening = node_pb2.FileOpen(format=common_pb2.AudioFormat(encoding=common_pb2.ENCODING_PCM_S16LE))
    sound = chord(1.0, 0)

    async def requests() -> AsyncIterator[node_pb2.DiarizeFileRequest]:
        yield node_pb2.DiarizeFileRequest(open=opening)
        while not ended.is_set():
            yield node_pb2.DiarizeFileRequest(audio=sound[:3200])
            await asyncio.sleep(0.1)

    async with open_channel(address) as channel:
        call = jobs_pb2_grpc.JobsStub(channel).DiarizeFile(requests(), metadata=(("authorization", f"Bearer {token}"),))
        async for _ in call:
            pass


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Enrol, erase, check."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(running_fleet(planes=options.planes, nodes=options.nodes))
        to = await callers(fleet, stack)
        voices = [
            (await to.planes[index % len(to.planes)].enrol(index)).voice.voice_id for index in range(options.erasures)
        ]
        ended = asyncio.Event()
        relaying = None
        if options.relaying:
            relaying = asyncio.create_task(keep_relaying(fleet.planes[0].grpc, fleet.token, ended))
            await asyncio.sleep(2.0)
        free = asyncio.Semaphore(options.at_once)
        took_s: list[float] = []

        async def erase(index: int, voice_id: str) -> None:
            async with free:
                began_s = time.perf_counter()
                erasure = await to.planes[index % len(to.planes)].erase(voice_id)
                took_s.append(time.perf_counter() - began_s)
            assert erasure.state == people_pb2.Erasure.STATE_ERASED, erasure
            assert len(erasure.nodes) == options.nodes, erasure.nodes
            assert all(node.ok for node in erasure.nodes), erasure.nodes

        await asyncio.gather(*(erase(index, voice_id) for index, voice_id in enumerate(voices)))
        ended.set()
        if relaying is not None:
            await relaying
        channel = await stack.enter_async_context(open_channel(fleet.planes[0].grpc))
        stub = audit_pb2_grpc.AuditStub(channel)
        began_s = time.perf_counter()
        verdict = await stub.VerifyAudit(audit_pb2.VerifyAuditRequest(), metadata=to.planes[0].metadata)
        assert verdict.ok, list(verdict.problems)
        return {
            "erasures": len(took_s),
            "nodes": options.nodes,
            "control_planes": options.planes,
            "at_once": options.at_once,
            "relaying": options.relaying,
            "proven_ms": spread_ms(took_s),
            "verify_ms": round(1000 * (time.perf_counter() - began_s), 1),
        }


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--erasures", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--planes", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--relaying", action="store_true")
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
