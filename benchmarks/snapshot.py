"""How long a new node needs for the voices of a fleet: read from SQL, opened, packed, sent, applied.

    python -m benchmarks.snapshot [--voices 100000] [--dim 256] [--threads 1]

Fills a SQLite with sealed voices, then reads it as Fleet.Sync does, and applies the pages to a node's store with the
null gallery, all in this process and one after the other, so that each part's time is its own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sqlalchemy import insert, update

from controlplane.database.engine import Database, open_database
from controlplane.database.schema import data_keys, fleet_head, tenants, voiceprints, voices
from controlplane.desired import Desired
from controlplane.fleet import PAGE_VOICES
from controlplane.holdings import Holding, SealedHolding, desired, held_after
from controlplane.keys import KeyRing, VoiceAddress
from controlplane.rpc_fleet import pack
from node.device_thread import DeviceThread
from node.engine import engine_loader
from node.fleet_wire import unpack
from node.voice_store import Voice, VoiceStore
from runtime.clock import SystemClock
from speakerd.v1 import fleet_pb2

MODEL = "null@1"
FILLED_AT_ONCE = 5_000


async def fill(database: Database, keys: KeyRing, count: int, dim: int) -> None:
    """Voices as enrolments leave them."""
    generator = np.random.default_rng(0)
    async with database.write() as connection:
        await connection.execute(insert(tenants).values(tenant_id="bench", created_at_s=0.0))
    for start in range(0, count, FILLED_AT_ONCE):
        rows: dict[str, list[dict[str, object]]] = {"voices": [], "keys": [], "prints": []}
        vectors = generator.standard_normal((min(FILLED_AT_ONCE, count - start), dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for offset, vector in enumerate(vectors):
            revision = start + offset + 1
            address = VoiceAddress("bench", f"v_{secrets.token_hex(10)}")
            key, wrapped = keys.make(address)
            where = {"tenant_id": address.tenant_id, "voice_id": address.voice_id}
            said = {"state": "ready", "state_reason": "", "model": MODEL, "created_at_s": 0.0, "updated_at_s": 0.0}
            told = {"told_generation": 1, "told_models": MODEL, "first_revision": revision, "revision": revision}
            label = key.encrypt(f"Person {revision}".encode(), "label")
            rows["voices"].append(
                {**where, **said, **told, "generation": 1, "net_speech_ms": 9_000, "label_ciphertext": label}
            )
            rows["keys"].append({**where, "wrapped": wrapped, "created_at_s": 0.0})
            sealed = key.encrypt(vector.tobytes(), "voiceprint", 1, MODEL)
            rows["prints"].append(
                {**where, "model": MODEL, "generation": 1, "net_speech_ms": 9_000, "ciphertext": sealed}
            )
        async with database.write() as connection:
            for table, filled in ((voices, "voices"), (data_keys, "keys"), (voiceprints, "prints")):
                await connection.execute(insert(table), rows[filled])
            await connection.execute(update(fleet_head).values(revision=start + len(vectors)))


def now() -> tuple[float, float]:
    """Wall and CPU seconds; the latter are what counts on a machine that has other work to do."""
    return time.perf_counter(), time.process_time()


async def read(database: Database) -> list[list[SealedHolding]]:
    """Every page, still sealed."""
    pages: list[list[SealedHolding]] = []
    after = None
    while True:
        async with database.read() as connection:
            page = await held_after(connection, MODEL, after, PAGE_VOICES)
        if not page:
            return pages
        pages.append(page)
        after = page[-1].voice


async def measure(count: int, dim: int, threads: int) -> dict[str, object]:
    """Each part in its turn."""
    with tempfile.TemporaryDirectory(prefix="speakerd-snapshot-") as folder:
        database = await open_database(f"sqlite+aiosqlite:///{Path(folder)}/bench.db", SystemClock(), lease_s=10.0)
        keys = KeyRing(bytes(32))
        took: dict[str, float] = {}
        cpu: dict[str, float] = {}

        def lap(part: str, began: tuple[float, float]) -> tuple[float, float]:
            wall_s, cpu_s = now()
            took[part], cpu[part] = round(wall_s - began[0], 3), round(cpu_s - began[1], 3)
            return wall_s, cpu_s

        at_s = now()
        await fill(database, keys, count, dim)
        at_s = lap("fill", at_s)
        sealed = await read(database)
        at_s = lap("read_from_sql", at_s)
        opened = await opened_by(sealed, keys, threads)
        at_s = lap("open", at_s)
        packed = [pack(MODEL, page).SerializeToString() for page in opened]
        at_s = lap("pack", at_s)
        device = DeviceThread(engine_loader("builtin", "null"), calls_max=64)
        engine = await device.start()
        store = VoiceStore(device, embedding_dim=dim)
        engine.gallery.__init__(dim)  # type: ignore[misc]  # of the dimension that is measured
        at_s = now()
        pages = [unpack(fleet_pb2.SnapshotPage.FromString(data), MODEL) for data in packed]
        at_s = lap("unpack", at_s)
        for page in pages:
            wanted = [
                (
                    Voice(one.tenant_id, one.voice_id, one.generation, one.label, -1, one.net_speech_samples),
                    one.embedding,
                )
                for one in page.voices
                if one.embedding is not None
            ]
            assert not await store.put_all(wanted)
        at_s = lap("apply", at_s)
        assert len(store) == count
        at_s = now()
        follower = Desired()
        async with database.read() as connection:
            async for told in desired(connection):
                follower.include(told)
        follower.begin(count)
        lap("first_digest", at_s)
        holds = follower.at(MODEL, count)
        assert holds is not None and holds.digest == store.digest(), "the node holds something else than it should"
        await device.stop()
        await database.close()
    bytes_sent = sum(map(len, packed))
    names = sum(len(message.names) for message in (pack(MODEL, page) for page in opened[:1]))
    return {
        "voices": count,
        "dim": dim,
        "threads": threads,
        "seconds": took,
        "cpu_us_a_voice": {part: round(1e6 * cpu_s / count, 1) for part, cpu_s in cpu.items()},
        "mib_sent": round(bytes_sent / 2**20, 1),
        "bytes_a_voice": round(bytes_sent / count, 1),
        "of_them_names": round(names / len(opened[0]), 1),
        "mib_resident_max": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


async def opened_by(sealed: Sequence[list[SealedHolding]], keys: KeyRing, threads: int) -> list[list[Holding]]:
    """All pages opened, some at a time."""
    turns = asyncio.Semaphore(threads)

    async def one(page: list[SealedHolding]) -> list[Holding]:
        async with turns:
            return await asyncio.to_thread(lambda: [item.open(keys) for item in page])

    return list(await asyncio.gather(*(one(page) for page in sealed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voices", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.voices, options.dim, options.threads)), indent=1))


if __name__ == "__main__":
    main()
