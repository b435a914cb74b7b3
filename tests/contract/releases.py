"""The last release, as it is kept here: its stubs, what was written with them, and its descriptors."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LAST = max(
    (path for path in HERE.iterdir() if path.name[0].isdigit()), key=lambda path: [*map(int, path.name.split("."))]
)
"""The folder of the last release."""

FILES = tuple(path.stem.removesuffix("_pb2") for path in sorted((LAST / "speakerd" / "v1").glob("*_pb2.py")))
_TELL = """
import importlib, sys
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
found, seen = FileDescriptorSet(), set()
def tell(file):
    if file.name not in seen:
        seen.add(file.name)
        for other in file.dependencies:
            tell(other)
        file.CopyToProto(found.file.add())
for name in sys.argv[1:]:
    tell(importlib.import_module(f"speakerd.v1.{name}_pb2").DESCRIPTOR)
sys.stdout.buffer.write(found.SerializeToString())
"""


def with_its_stubs() -> dict[str, str]:
    """The environment in which `speakerd.v1` is the release's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPEAKERD_")}
    return {**kept, "PYTHONPATH": f"{LAST}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@functools.cache
def descriptors(*, released: bool) -> FileDescriptorSet:
    """The contract of the release, or that of today, each with the well-known files that it names."""
    environment = with_its_stubs() if released else {**os.environ, "PYTHONPATH": str(ROOT)}
    names = FILES if released else [path.stem.removesuffix("_pb2") for path in (ROOT / "speakerd/v1").glob("*_pb2.py")]
    told = subprocess.run(
        [sys.executable, "-P", "-c", _TELL, *names], check=True, capture_output=True, env=environment, timeout=120
    )
    return FileDescriptorSet.FromString(told.stdout)


class Contract:
    """A contract's message classes, in a pool of their own: both contracts can be held in one process."""

    def __init__(self, found: FileDescriptorSet) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for file in found.file:
            self._pool.AddSerializedFile(FileDescriptorProto.SerializeToString(file))
        self.names = [
            f"{file.package}.{message.name}"
            for file in found.file
            if file.package.startswith("speakerd.")
            for message in file.message_type
        ]

    def message(self, name: str) -> Any:
        """A message's class."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))
