"""A node of release 0.1 in a fleet of today: joins, holds what it is told, and says what it came to hold.

ADDRESS KEY_FILE. Prints "serving", then, once it holds a voice and again once it holds none, a line each.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fake_node import FakeNode

from speakerd.v1 import node_pb2


async def main(address: str, key: str) -> None:
    node = await FakeNode("node-of-0-1", address, key).start()
    while node.state != node_pb2.NODE_STATE_SERVING:
        await asyncio.sleep(0.05)
    print("serving", flush=True)
    while not node.voices:
        await asyncio.sleep(0.05)
    print("holds", [label for _, label, _ in node.voices.values()], flush=True)
    while node.voices:
        await asyncio.sleep(0.05)
    print("holds nobody", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().strip()))
